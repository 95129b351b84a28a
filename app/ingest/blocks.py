"""From the paragraphs of a format to the parts of a document: where parts begin and what their places are called."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from textwrap import shorten

from app.ingest.clean import clean_line, visible
from app.ingest.text import CHAPTER_CHARS, LONGEST_PART_CHARS, PART_CHARS, good_end
from app.records import Part

CHAPTER_LABEL_CHARS = 48


@dataclass(frozen=True)
class Block:
    """A paragraph, heading, table, listing or note, with what tells where it stands.

    Attributes:
        text: its lines as they are meant; a row of a table is a line.
        chapter: title of the chapter that begins with it.
        opens: begins a part of its own: a chapter of a table of contents, a slide, a cell.
        place: its own label ("slide 3", "12:34"), which holds until the next; None: chapter and paragraph are counted.
        pages: (character, label) of each printed page that begins inside it.
        counted: it is a paragraph that a reader would count; not so headings and notes.
        joined: it follows the block before on the next line, as list items and verses do.
        kind: see `Part.kind`.
    """

    text: str
    chapter: str | None = None
    opens: bool = False
    place: str | None = None
    pages: tuple[tuple[int, str], ...] = ()
    counted: bool = True
    joined: bool = False
    kind: str = ""


@dataclass
class About:
    """What a reader finds out about a file while it gives its blocks.

    Attributes:
        title: the file's own, "" for none.
        notes: facts the user should see.
        skipped: (name, reason) of what was left out.
        done, total: how far the reader is, in units of its own.
        encoding: of a file of text, that the user chose; None: the reader finds it.
    """

    title: str = ""
    notes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    total: int = 0
    encoding: str | None = None


class Refused(Exception):
    """The file cannot be read; the message, put after its name, says why and what to do."""


def to_parts(blocks: Iterable[Block]) -> Iterator[Part]:
    """Join blocks to parts of about a page. A printed page, and a block that `opens`, begin a part of their own."""
    maker, index = _Maker(), 0
    for block in blocks:
        for text, place, opens in maker.pieces(block):
            if opens or maker.is_full(text):
                if part := maker.take(index + 1):
                    index += 1
                    yield part
            maker.add(block, text, place)
    if part := maker.take(index + 1):
        yield part


class _Maker:
    """The part that is being filled, and where in the document it stands."""

    def __init__(self) -> None:
        self._text, self._places, self._kind = "", [], ""
        self._chapter: str | None = None
        self._own_chapter: str | None = None  # of the part: that of its beginning
        self._page: str | None = None
        self._number = 0
        self._opens = False  # what comes next

    def pieces(self, block: Block) -> Iterator[tuple[str, str, bool]]:
        """A block cut where printed pages begin and where it is too long: (text, place, whether it opens a part)."""
        text, pages = _without_edges(block)
        if block.chapter is not None:
            self._chapter, self._number = clean_line(block.chapter) or None, 0
        opens = self._opens or block.opens or block.kind != self._kind
        opens |= block.chapter is not None and len(self._text) >= CHAPTER_CHARS
        self._number += block.counted and bool(text.strip())
        starts = [0, *(min(_word_end(text, at), len(text)) for at, _ in pages), len(text)]
        labels = [None, *(label for _, label in pages)]
        for (start, end), label in zip(pairwise(starts), labels, strict=True):
            if label is not None:
                self._page, opens = clean_line(label), True
            if not text[start:end].strip():
                continue  # what it opens is opened by the next piece that holds text
            for piece in _cut(text[start:end].lstrip(" ") if start else text[start:end]):
                yield piece, block.place or self._place(), opens
                opens = False
        self._opens = opens

    def _place(self) -> str:
        if self._page:
            return f"page {self._page}"
        chapter = shorten(self._chapter or "", CHAPTER_LABEL_CHARS, placeholder=" …")
        counted = f"paragraph {self._number}" if self._number else ""
        return ", ".join(filter(None, (chapter, counted))) or "the beginning"

    def is_full(self, text: str) -> bool:
        return bool(self._text) and len(self._text) + len(text) > PART_CHARS

    def add(self, block: Block, text: str, place: str) -> None:
        """Put a piece at the end of the part."""
        if not self._text:
            self._own_chapter, self._kind = self._chapter, block.kind
        elif not self._text.endswith("\n"):
            self._text += "\n" if block.joined else "\n\n"
        if not self._places or self._places[-1][1] != place:
            self._places.append((len(self._text), place))
        self._text += text.rstrip()

    def take(self, index: int) -> Part | None:
        """The part as it is, None if nothing is in it, and begin another."""
        if not self._text:
            return None
        part = Part(
            index, self._places[0][1], self._text, self._own_chapter, kind=self._kind, places=tuple(self._places)
        )
        self._text, self._places = "", []
        return part


def _without_edges(block: Block) -> tuple[str, list[tuple[int, str]]]:
    """The visible text without blank lines around it, and its pages moved along."""
    ends = [0, *(at for at, _ in block.pages), len(block.text)]
    pieces = [visible(block.text[start:end]) for start, end in pairwise(ends)]
    text = "".join(pieces)
    cut = len(text) - len(re.sub(r"\A(?:[^\S\n]*\n)+", "", text))
    at, pages = 0, []
    for piece, (_, label) in zip(pieces, block.pages, strict=False):
        at += len(piece)
        pages.append((max(0, at - cut), label))
    return text[cut:].rstrip(), pages


def _word_end(text: str, at: int) -> int:
    """A page may begin inside a word; the word stays whole on the page before."""
    while 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum():
        at += 1
    return at


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > LONGEST_PART_CHARS:
        end = good_end(text, start)
        yield text[start:end]
        start = end
    yield text[start:]
