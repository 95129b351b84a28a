"""Parts to token ids and back: which part, page or lines any token stands for."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from app.errors import CancelledError, InputError
from app.ingest.files import Cancelled, Progress, never, no_progress
from app.ingest.stream import as_reason
from app.ingest.text import find_headings
from app.records import MemoryText, Part, Span

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHAPTER_CHARS = 48  # of a chapter's heading beside a line number
_BATCH_CHARS = 1 << 17  # of text in one call of the tokenizer: it cannot be stopped, and its side tables are large
_PIECE_CHARS = 1 << 14  # the most that it gets in one text: some fail or take quadratic time on a very long word or run
_NUMBERED = re.compile(r"(.*?)(\d[\d:]*)", re.DOTALL)  # a place and its number, page or time
_SEAM_CHARS = 1 << 10  # at the end of a piece that are searched for a place to cut
_SEAM = re.compile(r"(?<=[^\W_])(?=[ \n][^\W_])")  # no tokenizer joins a word to the blank after it


def encode(
    document_parts: Sequence[Part],
    tokenizer: "Tokenizer",
    bos_id: int | None,
    *,
    progress: Progress = no_progress,
    cancelled: Cancelled = never,
) -> list[MemoryText]:
    """Tokenise a document: one memory per group, in order of the groups' numbers.

    Each part is tokenised by itself, so a span's tokens spell exactly its part and the line end after it. What is
    longer than _PIECE_CHARS is cut before, so that time and memory grow with the text alone.

    Args:
        tokenizer: set to encode special tokens as text, because a document is not to be trusted.
        bos_id: put before each memory, unless None.
        progress: called with (characters done, characters).
        cancelled: asked several times a second.

    Raises:
        InputError: the tokenizer failed; the message says on which part.
        CancelledError: `cancelled` said so.
    """
    assert tokenizer.encode_special_tokens, "a marker inside a document must stay text"
    memories: dict[int, tuple[list[int], list[Span]]] = {}
    ids: dict[int, int] = {}  # one number object for all places of a token: a list of new ones takes five times more
    done, total = 0, sum(len(part.text) for part in document_parts)
    for batch in _batches(document_parts):
        if cancelled():
            raise CancelledError("counting the tokens was cancelled")
        for (part, piece), piece_ids in zip(batch, _token_ids(batch, tokenizer), strict=True):
            tokens, spans = memories.setdefault(part.group, ([] if bos_id is None else [bos_id], []))
            if not spans or spans[-1].part != part.index:
                spans.append(Span(part.index, len(tokens), len(tokens)))
            tokens += [ids.setdefault(token, token) for token in piece_ids]
            spans[-1] = Span(part.index, spans[-1].token_start, len(tokens))
            done += len(piece)
        progress(min(done, total), total)  # the line ends that parts get are not counted in the total
    return [MemoryText(tokens, tuple(spans)) for _, (tokens, spans) in sorted(memories.items())]


def locate(part: Part, span: Span, tokenizer: "Tokenizer", token_start: int, token_end: int) -> tuple[int, int]:
    """The characters of a part that tokens [token_start, token_end) of its memory stand for, clipped to the part."""
    offsets = _offsets(part, tokenizer, _PIECE_CHARS)
    if len(offsets) != span.token_end - span.token_start:  # older releases did not cut long parts
        offsets = _offsets(part, tokenizer, len(part.text) + 1)
    assert len(offsets) == span.token_end - span.token_start, "the span was made by another tokenizer"
    inside = offsets[max(0, token_start - span.token_start) : max(0, token_end - span.token_start)]
    if not inside:
        return 0, 0
    return min(inside[0][0], len(part.text)), min(inside[-1][1], len(part.text))


def offsets_of(part: Part, tokenizer: "Tokenizer") -> list[tuple[int, int]]:
    """The characters (start, end) that each token of a part stands for."""
    return tokenizer.encode(_as_read(part), add_special_tokens=False).offsets


def tokens_of(span: Span, offsets: Sequence[tuple[int, int]], char_start: int, char_end: int) -> tuple[int, int]:
    """The tokens of a memory that characters [char_start, char_end) of a part stand in: `locate` the other way.

    Args:
        offsets: of the part, as `offsets_of` gives them.
    """
    assert len(offsets) == span.token_end - span.token_start, "the span was made by another tokenizer"
    first = bisect_right(offsets, char_start, key=lambda place: place[1])
    last = bisect_left(offsets, char_end, key=lambda place: place[0])
    return span.token_start + first, span.token_start + max(first, last)


def beginning(text: MemoryText, tokens: int) -> MemoryText:
    """The first tokens of a text; the last span reaches beyond them, for it belongs to a whole part."""
    return MemoryText(text.token_ids[:tokens], tuple(span for span in text.spans if span.token_start < tokens))


def parts_in(spans: Sequence[Span], token_start: int, token_end: int) -> list[Span]:
    """The spans of one memory that share tokens with [token_start, token_end)."""
    first = bisect_right(spans, token_start, key=lambda span: span.token_end)
    last = bisect_left(spans, token_end, key=lambda span: span.token_start)
    return [span for span in spans[first:last] if span.token_start < span.token_end]


def label(part: Part, char_start: int, char_end: int, text_line: int | None = None) -> str:
    """Where a passage stands: the page label, `path:first-last` lines of a file, chapter and lines of a plain text,
    or the places from that which it begins in to that which it ends in.

    Args:
        text_line: of a plain text's part, whose label only counts parts: number of the line that it begins on.
    """
    if text_line is None and part.places:
        return _from_to(_place_at(part, char_start), _place_at(part, max(char_start, char_end - 1)))
    begins = part.first_line if text_line is None else text_line
    if begins is None:
        return part.label
    passage = part.text[char_start:char_end]
    char_start += len(passage) - len(passage.lstrip("\n"))
    char_end -= len(passage) - len(passage.rstrip("\n"))
    first = max(1, begins + part.text.count("\n", 0, char_start))
    last = max(1, begins + part.text.count("\n", 0, max(char_start, char_end)))
    if text_line is None:
        return f"{part.label}:{first}-{last}"
    lines = f"line {first:,}" if first == last else f"lines {first:,}-{last:,}"
    chapter = _chapter_at(part, char_start)
    return f"{shorten(chapter, _CHAPTER_CHARS, placeholder=' …')}, {lines}" if chapter else lines


def _place_at(part: Part, char: int) -> str:
    return part.places[max(0, bisect_right(part.places, char, key=lambda place: place[0]) - 1)][1]


def _from_to(first: str, last: str) -> str:
    """ "Tides, paragraph 3" to "Tides, paragraph 5" is "Tides, paragraph 3-5"; both in full where more differs.

    A heading, "Tides", stands before the first of its paragraphs.
    """
    end = _NUMBERED.fullmatch(last)
    if end and end[1].startswith(f"{first}, "):
        first = f"{end[1]}1"
    if first == last:
        return first
    start = _NUMBERED.fullmatch(first)
    if start and end and start[1] == end[1]:
        return f"{first}-{end[2]}"
    return f"{first} to {last}"


def _chapter_at(part: Part, char: int) -> str | None:
    """The heading that a place of a text stands under: the part's chapter is that of its beginning only."""
    marked = find_headings(part.text, markdown=True) if part.chapter else []  # "# a" is a comment where nothing is one
    above = [title for start, _, title in sorted(find_headings(part.text) + marked) if start <= char]
    return above[-1] if above else part.chapter


def _as_read(part: Part) -> str:
    """A part's text as it stands in a memory: it ends its line."""
    return part.text if part.text.endswith("\n") or not part.text else part.text + "\n"


def _pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` characters, cut between words where there are some."""
    start = 0
    while len(text) - start > size:
        end = start + size
        window = max(start + 1, end - _SEAM_CHARS)
        end = max((found.start() for found in _SEAM.finditer(text, window, end + 1)), default=end)
        yield text[start:end]
        start = end
    yield text[start:]


def _batches(parts: Sequence[Part]) -> Iterator[list[tuple[Part, str]]]:
    """Pieces of the parts for one call of the tokenizer each; an empty part is an empty piece."""
    batch: list[tuple[Part, str]] = []
    size = 0
    for part in parts:
        for piece in _pieces(_as_read(part), _PIECE_CHARS):
            batch.append((part, piece))
            size += len(piece)
            if size >= _BATCH_CHARS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _token_ids(batch: Sequence[tuple[Part, str]], tokenizer: "Tokenizer") -> list[list[int]]:
    """Token ids of each piece.

    Raises:
        InputError: the tokenizer failed; libraries that panic raise what `except Exception` does not catch.
    """
    try:
        encodings = tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
    except BaseException as error:
        labels = list(dict.fromkeys(part.label for part, _ in batch))
        where = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"
        reason = as_reason(error, f"counting the tokens of {where}")
        if reason is not error:
            raise reason from error
        if isinstance(error, Exception):
            raise InputError(f"the tokenizer failed on {where} ({error}); leave it out or change it") from error
        raise
    return [encoding.ids for encoding in encodings]


def _offsets(part: Part, tokenizer: "Tokenizer", size: int) -> list[tuple[int, int]]:
    """Where each token of a part stands in its text, when it is cut into pieces of at most `size` characters."""
    found: list[tuple[int, int]] = []
    start = 0
    for piece in _pieces(_as_read(part), size):
        offsets = tokenizer.encode(piece, add_special_tokens=False).offsets
        found += [(start + first, start + last) for first, last in offsets]
        start += len(piece)
    return found
