"""Parts to token ids and back: which part, page or lines any token stands for."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from app.ingest.text import find_headings
from app.records import MemoryText, Part, Span

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHAPTER_CHARS = 48  # of a chapter's heading beside a line number
_BATCH_CHARS = 1 << 20  # of text in one call of the tokenizer, so that its side tables stay small


def encode(document_parts: Sequence[Part], tokenizer: "Tokenizer", bos_id: int | None) -> list[MemoryText]:
    """Tokenise a document: one memory per group, in order of the groups' numbers.

    Each part is tokenised by itself, so a span's tokens spell exactly its part and the line end after it.

    Args:
        tokenizer: set to encode special tokens as text, because a document is not to be trusted.
        bos_id: put before each memory, unless None.
    """
    assert tokenizer.encode_special_tokens, "a marker inside a document must stay text"
    memories: dict[int, tuple[list[int], list[Span]]] = {}
    for part, ids in zip(document_parts, _token_ids(document_parts, tokenizer), strict=True):
        if part.group not in memories:
            memories[part.group] = ([] if bos_id is None else [bos_id], [])
        tokens, spans = memories[part.group]
        spans.append(Span(part.index, len(tokens), len(tokens) + len(ids)))
        tokens += ids
    return [MemoryText(tokens, tuple(spans)) for _, (tokens, spans) in sorted(memories.items())]


def locate(part: Part, span: Span, tokenizer: "Tokenizer", token_start: int, token_end: int) -> tuple[int, int]:
    """The characters of a part that tokens [token_start, token_end) of its memory stand for, clipped to the part."""
    offsets = tokenizer.encode(_as_read(part), add_special_tokens=False).offsets
    assert len(offsets) == span.token_end - span.token_start, "the span was made by another tokenizer"
    inside = offsets[max(0, token_start - span.token_start) : max(0, token_end - span.token_start)]
    if not inside:
        return 0, 0
    return min(inside[0][0], len(part.text)), min(inside[-1][1], len(part.text))


def parts_in(spans: Sequence[Span], token_start: int, token_end: int) -> list[Span]:
    """The spans of one memory that share tokens with [token_start, token_end)."""
    first = bisect_right(spans, token_start, key=lambda span: span.token_end)
    last = bisect_left(spans, token_end, key=lambda span: span.token_start)
    return [span for span in spans[first:last] if span.token_start < span.token_end]


def label(part: Part, char_start: int, char_end: int, text_line: int | None = None) -> str:
    """Where a passage stands: the page label, `path:first-last` lines of a file, chapter and line of a plain text, or
    the place that it begins in.

    Args:
        text_line: of a plain text's part, whose label only counts parts: number of the line that it begins on.
    """
    if text_line is not None:
        line = text_line + part.text.count("\n", 0, char_start)
        chapter = _chapter_at(part, char_start)
        return f"{shorten(chapter, _CHAPTER_CHARS, placeholder=' …')}, line {line:,}" if chapter else f"line {line:,}"
    if part.places:
        return part.places[max(0, bisect_right(part.places, char_start, key=lambda place: place[0]) - 1)][1]
    if part.first_line is None:
        return part.label
    passage = part.text[char_start:char_end]
    char_start += len(passage) - len(passage.lstrip("\n"))
    char_end -= len(passage) - len(passage.rstrip("\n"))
    first = part.first_line + part.text.count("\n", 0, char_start)
    last = part.first_line + part.text.count("\n", 0, max(char_start, char_end))
    return f"{part.label}:{max(1, first)}-{max(1, last)}"


def _chapter_at(part: Part, char: int) -> str | None:
    """The heading that a place of a text stands under: the part's chapter is that of its beginning only."""
    marked = find_headings(part.text, markdown=True) if part.chapter else []  # "# a" is a comment where nothing is one
    above = [title for start, _, title in sorted(find_headings(part.text) + marked) if start <= char]
    return above[-1] if above else part.chapter


def _as_read(part: Part) -> str:
    """A part's text as it stands in a memory: it ends its line."""
    return part.text if part.text.endswith("\n") or not part.text else part.text + "\n"


def _token_ids(parts: Sequence[Part], tokenizer: "Tokenizer") -> Iterator[list[int]]:
    """Token ids of each part, encoded in batches."""
    waiting, size = [], 0
    for part in parts:
        waiting.append(_as_read(part))
        size += len(waiting[-1])
        if size >= _BATCH_CHARS or part is parts[-1]:
            yield from (encoding.ids for encoding in tokenizer.encode_batch_fast(waiting, add_special_tokens=False))
            waiting, size = [], 0
