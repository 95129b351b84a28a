"""Text files: find the encoding, split into parts of about a page, find the chapters."""

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from app.errors import InputError
from app.ingest.files import hash_bytes, read_file
from app.records import Document, Part

MAX_TEXT_BYTES = 200 << 20
PART_CHARS = 3_000
LONGEST_PART_CHARS = 4_500
CHAPTER_CHARS = 1_000  # a heading begins a new part when the one before holds at least so much
MARKDOWN = (".md", ".markdown")

_BOMS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ENCODINGS = ["cp1252", "cp1251", "shift_jis", "gb18030", "big5", "euc_kr"]
_SAMPLE_BYTES = 256 << 10
_HIGH = re.compile(rb"[\x80-\xff]+")
_HIGH_RUN = re.compile(rb"[\x80-\xff]{2,}")  # accents stand alone among ASCII letters, other scripts run on
_NOT_TEXT = bytes(set(range(32)) - set(b"\t\n\f\r\x1b"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]+")

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
_PARAGRAPH_BREAK = re.compile(r"\n(?:[ \t]*\n)+")
_MARKDOWN_BREAK = re.compile(r"\n(?:[ \t]*\n)+|\n(?=#{1,3} )")
_MARKDOWN_HEADING = re.compile(r"#{1,3} +(.*\S)")
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)


def load_text(path: Path, name: str) -> Document:
    """Read a text or Markdown file, one part for about a page.

    Raises:
        InputError: it is too large, or binary.
    """
    data = read_file(path, name, MAX_TEXT_BYTES)
    text, note = decode(data, name)
    if not text.strip():
        raise InputError(f"{name}: holds only blanks ({len(data)} bytes); choose a file with text in it")
    parts = split_parts(text, markdown=name.lower().endswith(MARKDOWN))
    return Document(Path(name).stem, "text", hash_bytes(data), tuple(parts), notes=(note,) if note else ())


def is_binary(data: bytes) -> bool:
    """True when the first 8 KB hold a NUL, or more control characters than any text has."""
    head = data[:8192]
    if head.startswith(tuple(mark for mark, _ in _BOMS[1:])):
        return False
    return b"\0" in head or len(head) - len(head.translate(None, _NOT_TEXT)) > 0.02 * len(head)


def decode(data: bytes, name: str) -> tuple[str, str | None]:
    """Bytes to text with plain line ends.

    Returns:
        The text, and a note for the user when the encoding had to be guessed.

    Raises:
        InputError: the bytes are no text.
    """
    if is_binary(data):
        raise InputError(f"{name}: a binary file, not text (it holds control bytes); add the text or PDF it came from")
    text, note = _decode(data)
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")), note


def _decode(data: bytes) -> tuple[str, str | None]:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), None
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    if wrong * 20 < len(data) - len(text.encode("ascii", "ignore")):
        return text, f"{wrong} places are not valid UTF-8 and show as \ufffd"
    return _guess(data)


def _guess(data: bytes) -> tuple[str, str]:
    """Only common encodings are tried: unrestricted, the detector prefers exotic relatives of them."""
    from charset_normalizer import from_bytes

    if len(_HIGH_RUN.findall(data)) * 10 < len(_HIGH.findall(data)):
        with suppress(UnicodeDecodeError):
            return data.decode("cp1252"), "not UTF-8: read as cp1252"
    best = from_bytes(data[:_SAMPLE_BYTES].rpartition(b"\n")[0] or data[:_SAMPLE_BYTES], cp_isolation=_ENCODINGS).best()
    if best is not None:
        with suppress(UnicodeDecodeError):
            return data.decode(best.encoding), f"not UTF-8: read as {best.encoding}"
    return data.decode("latin-1"), "encoding unknown: read as latin-1, so some letters may be wrong"


def split_parts(text: str, *, markdown: bool = False) -> list[Part]:
    """Split at paragraph ends and chapter headings into parts of about a page; only blanks may get lost."""
    pages: list[tuple[str, str | None]] = []
    page, page_chapter, chapter = "", None, None
    for block, heading in _blocks(text, markdown):
        full = len(page) + len(block) > PART_CHARS
        if page.strip() and (full or (heading and len(page) >= CHAPTER_CHARS)):
            pages.append((page, page_chapter))
            page = ""
        chapter = heading or chapter
        page_chapter = page_chapter if page.strip() else chapter
        page += block
    pages.append((page, page_chapter))
    return [Part(i, str(i), page, title) for i, (page, title) in enumerate(pages, start=1) if page.strip()]


def find_headings(text: str, *, markdown: bool = False) -> list[tuple[int, int, str]]:
    """Where the chapter headings of a text stand: (start, end, title) in characters, in order."""
    paragraphs = _cut(text, _MARKDOWN_BREAK if markdown else _PARAGRAPH_BREAK)
    headings = _markdown_headings(paragraphs) if markdown else _book_headings(paragraphs)
    found, start = [], 0
    for paragraph, heading in zip(paragraphs, headings, strict=True):
        if heading:
            title = heading if markdown else paragraph.strip()
            place = start + paragraph.index(title)
            found.append((place, place + len(title), heading))
        start += len(paragraph)
    return found


def _blocks(text: str, markdown: bool) -> Iterator[tuple[str, str | None]]:
    """Paragraphs with the blank lines after them, none longer than a part may be, and the heading that each is."""
    paragraphs = _cut(text, _MARKDOWN_BREAK if markdown else _PARAGRAPH_BREAK)
    headings = _markdown_headings(paragraphs) if markdown else _book_headings(paragraphs)
    for paragraph, heading in zip(paragraphs, headings, strict=True):
        start = 0
        while len(paragraph) - start > LONGEST_PART_CHARS:
            end = good_end(paragraph, start)
            yield paragraph[start:end], heading if start == 0 else None
            start = end
        yield paragraph[start:], heading if start == 0 else None


def _cut(text: str, where: re.Pattern[str]) -> list[str]:
    ends = [match.end() for match in where.finditer(text)] + [len(text)]
    return [text[start:end] for start, end in pairwise([0, *ends]) if start < end]


def good_end(text: str, start: int) -> int:
    """Where to end a part that begins at `start`: at a line end, a sentence end or a blank if there is one."""
    for mark in ("\n", ". ", " "):
        found = text.rfind(mark, start + PART_CHARS // 2, start + PART_CHARS)
        if found >= 0:
            return found + len(mark)
    return start + PART_CHARS


def _book_headings(paragraphs: list[str]) -> list[str | None]:
    """Headings such as "CHAPTER IV. The Bell"; in a book without them, lone Roman numerals."""
    lines = [" ".join(paragraph.split()) if len(paragraph) < 130 else "" for paragraph in paragraphs]
    named = [line if _NAMED.fullmatch(line) else None for line in lines]
    if any(named):
        return named
    numbered = [line if _ROMAN.fullmatch(line) else None for line in lines]
    return numbered if sum(map(bool, numbered)) >= 3 else [None] * len(lines)


def _markdown_headings(paragraphs: list[str]) -> list[str | None]:
    """`# Title` to `### Title`, unless it stands inside a code fence."""
    headings, fences = [], 0
    for paragraph in paragraphs:
        found = _MARKDOWN_HEADING.match(paragraph)
        headings.append(found[1].rstrip("# ") if found and fences % 2 == 0 else None)
        fences += len(_FENCE.findall(paragraph))
    return headings
