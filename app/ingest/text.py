"""Text files: split into parts of about a page, find the chapters."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from app.errors import CancelledError, InputError
from app.ingest import gutenberg
from app.ingest.encoding import decode, is_utf8
from app.ingest.files import MAX_TEXT_BYTES, Cancelled, digest_of, never, read_file
from app.records import Document, Part

PART_CHARS = 3_000
LONGEST_PART_CHARS = 4_500
CHAPTER_CHARS = 1_000  # a heading begins a new part when the one before holds at least so much
MARKDOWN = (".md", ".markdown")
_ENDING = re.compile(r"\.\w{1,8}")  # of a file name; "Chapter 1. The Beginning" has none

_COUNTED = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    "|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-[a-z]+)?|the [a-z]+(?:-[a-z]+)?|first|second|third|last"
)
_NAMED = re.compile(
    rf"(?:chapter|book|part|act|canto|letter|section|stave|volume) (?:[IVXLCDM]+|[0-9]+|{_COUNTED})\b"
    r"(?:\W*|[ .:—–-]+.{0,90}[^.,;])|(?:prologue|epilogue|preface|foreword|introduction|afterword|appendix)\W*",
    re.IGNORECASE,
)
_ROMAN = re.compile(r"[IVXLC]+\.?")
_EMPTY_LINES = r"\n[ \t]*\n(?:[ \t\n]*\n)?"  # a group repeated for each line would keep all of them in mind
_PARAGRAPH_BREAK = re.compile(_EMPTY_LINES)
_MARKDOWN_BREAK = re.compile(rf"{_EMPTY_LINES}|\n(?=#{{1,3}} )")
_MARKDOWN_HEADING = re.compile(r"#{1,3} +(.*\S)")
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)


def load_text(path: Path, name: str, *, encoding: str | None = None, cancelled: Cancelled = never) -> Document:
    """Read a text or Markdown file, one part for about a page.

    Args:
        encoding: that the user chose, which makes it another document; None finds it.

    Raises:
        InputError: it is too large, or binary.
        CancelledError: `cancelled` said so.
    """
    data = read_file(path, name, MAX_TEXT_BYTES)
    digest = digest_of(data, encoding)
    text, note = decode(data, name, encoding=encoding, cancelled=cancelled)
    if not text.strip():
        raise InputError(f"{name}: holds only blanks ({len(data)} bytes); choose a file with text in it")
    keep = encoding is not None or not is_utf8(data)
    del data
    parts, beside = _book_parts(text, name.lower().endswith(MARKDOWN), cancelled)
    title = Path(name).stem if _ENDING.fullmatch(Path(name).suffix) else name
    notes = tuple(filter(None, (note, beside)))
    return Document(title, "text", digest, tuple(parts), notes=notes, keep_file=keep)


def _book_parts(text: str, markdown: bool, cancelled: Cancelled) -> tuple[list[Part], str | None]:
    """The parts of a text, what Project Gutenberg put around it as parts of their own, and a note when there is any."""
    start, end = gutenberg.cut(text)
    parts: list[Part] = []
    for piece, kind in ((text[:start], gutenberg.FRONT), (text[start:end], ""), (text[end:], gutenberg.LICENCE)):
        for part in split_parts(piece, markdown=markdown and not kind, cancelled=cancelled):
            number = len(parts) + 1
            chapter = kind.capitalize() or part.chapter
            parts.append(replace(part, index=number, label=str(number), chapter=chapter, kind=kind))
    kinds = list(dict.fromkeys(part.kind for part in parts if part.kind))
    if not kinds:
        return parts, None
    return parts, f"Project Gutenberg's {' and '.join(kinds)}: muted unless you ask to look there too"


def split_parts(text: str, *, markdown: bool = False, cancelled: Cancelled = never) -> list[Part]:
    """Split at paragraph ends and chapter headings into parts of about a page; only blanks may get lost.

    Raises:
        CancelledError: `cancelled`, asked now and then, said so.
    """
    pages: list[tuple[str, str | None]] = []
    blocks: list[str] = []  # of the page that is being filled
    size, blank, page_chapter, chapter = 0, True, None, None
    for block, heading in _blocks(text, markdown, cancelled):
        full = size + len(block) > PART_CHARS
        if not blank and (full or (heading and size >= CHAPTER_CHARS)):
            pages.append(("".join(blocks), page_chapter))
            blocks, size, blank = [], 0, True
        chapter = heading or chapter
        page_chapter = chapter if blank else page_chapter
        blocks.append(block)
        size += len(block)
        blank = blank and not block.strip()
    pages.append(("".join(blocks), page_chapter))
    return [Part(i, str(i), page, title) for i, (page, title) in enumerate(pages, start=1) if page.strip()]


def find_headings(text: str, *, markdown: bool = False) -> list[tuple[int, int, str]]:
    """Where the chapter headings of a text stand: (start, end, title) in characters, in order."""
    found, start = [], 0
    for paragraph, heading in _headed(text, markdown, never):
        if heading:
            title = heading if markdown else paragraph.strip()
            place = start + paragraph.index(title)
            found.append((place, place + len(title), heading))
        start += len(paragraph)
    return found


def _blocks(text: str, markdown: bool, cancelled: Cancelled) -> Iterator[tuple[str, str | None]]:
    """Paragraphs with the blank lines after them, none longer than a part may be, and the heading that each is."""
    for paragraph, heading in _headed(text, markdown, cancelled):
        start = 0
        while len(paragraph) - start > LONGEST_PART_CHARS:
            end = good_end(paragraph, start)
            yield paragraph[start:end], heading if start == 0 else None
            start = end
        yield paragraph[start:] if start else paragraph, heading if start == 0 else None


def _headed(text: str, markdown: bool, cancelled: Cancelled) -> Iterator[tuple[str, str | None]]:
    """Paragraphs with the blank lines after them, and the heading that each is. One by one: there may be millions."""
    where = _MARKDOWN_BREAK if markdown else _PARAGRAPH_BREAK
    heading = _MarkdownHeadings() if markdown else _book_headings(_cut(text, where, cancelled))
    for paragraph in _cut(text, where, cancelled):
        yield paragraph, heading(paragraph)


def _cut(text: str, where: re.Pattern[str], cancelled: Cancelled) -> Iterator[str]:
    start = 0
    for count, match in enumerate(where.finditer(text)):
        if count % 4096 == 0 and cancelled():
            raise CancelledError("splitting the text was cancelled")
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]


def good_end(text: str, start: int) -> int:
    """Where to end a part that begins at `start`: at a line end, a sentence end or a blank if there is one."""
    for mark in ("\n", ". ", " "):
        found = text.rfind(mark, start + PART_CHARS // 2, start + PART_CHARS)
        if found >= 0:
            return found + len(mark)
    return start + PART_CHARS


def _book_headings(paragraphs: Iterator[str]) -> Callable[[str], str | None]:
    """What tells the headings of a book: such as "CHAPTER IV. The Bell", or lone Roman numerals where it has none."""
    numbered = 0
    for paragraph in paragraphs:
        if _named(paragraph):
            return _named
        numbered += _numbered(paragraph) is not None
    return _numbered if numbered >= 3 else lambda paragraph: None


def _named(paragraph: str) -> str | None:
    line = _line(paragraph)
    return line if _NAMED.fullmatch(line) else None


def _numbered(paragraph: str) -> str | None:
    line = _line(paragraph)
    return line if _ROMAN.fullmatch(line) else None


def _line(paragraph: str) -> str:
    """A paragraph on one line; nothing when it is too long for a heading."""
    return " ".join(paragraph.split()) if len(paragraph) < 130 else ""


class _MarkdownHeadings:
    """Tells `# Title` to `### Title`, unless it stands inside a code fence; asked for each paragraph in order."""

    def __init__(self) -> None:
        self._fences = 0

    def __call__(self, paragraph: str) -> str | None:
        found = _MARKDOWN_HEADING.match(paragraph)
        heading = found[1].rstrip("# ") if found and self._fences % 2 == 0 else None
        self._fences += len(_FENCE.findall(paragraph))
        return heading
