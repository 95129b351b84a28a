"""The viewer: a page of a document with a passage marked, the way through the document, and the tests of a passage."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import shorten
from typing import TYPE_CHECKING

from app.errors import NotFoundError
from app.records import DocumentKind, Evidence, Part, Removal
from app.ui import format, page_text, strip

if TYPE_CHECKING:
    from app.chat.coverage import Coverage
    from app.ingest.page_image import Located

RESTS_NATS = 2.0  # a fall beyond this, and beyond three times the ordinary one, is plain
MARKED_NATS = 3.0  # a token that loses so much is marked fully
MOST_CONTENTS = 1_000


@dataclass(frozen=True)
class Doing:
    """What the buttons of a viewer do: the names of its actions.

    Attributes:
        turn: opens another part; its data-id is read by `target`.
        go: opens the part that is typed.
        find: looks for what is typed.
    """

    turn: str
    go: str
    find: str
    close: str


ASK = Doing("turn", "turn-go", "turn-find", "close")
LIBRARY = Doing("open-part", "open-go", "find-in", "found-close")


@dataclass(frozen=True)
class Shown:
    """A part of a document as the viewer shows it.

    Attributes:
        key: what the buttons name: id of a passage, or of the document.
        document: id of the document.
        parts: how many it has.
        start, end: of what is marked in the part's text.
        place: where the part stands, in words.
        page: its page as a picture and where on it the mark stands; None: it has none.
        contents: (first part, name) of chapters or files.
        found: (part, its place) of those that hold `words`; None: nothing was looked for.
        covered: the strip along the document.
    """

    doing: Doing
    key: str
    document: str
    title: str
    kind: DocumentKind | None
    part: Part
    parts: int
    start: int = 0
    end: int = 0
    place: str = ""
    page: "Located | None" = None
    contents: Sequence[tuple[int, str]] = ()
    words: str = ""
    found: Sequence[tuple[int, str]] | None = None
    covered: "Coverage | None" = None


def page(shown: Shown, evidence: Evidence | None = None, siblings: Sequence[str] = ()) -> str:
    """The whole viewer.

    Args:
        evidence: the passage that it was opened for.
        siblings: ids of all passages under the answer, in order.
    """
    name = "Passage" if evidence else "Document"
    through = f"{_contents(shown)}{_views(shown)}{_find(shown)}"
    return (
        f'<section class="lt-page" tabindex="-1" aria-label="{name}">'
        f"<header><div><h3>{escape(shown.title)}</h3><p>{escape(shown.place)}"
        f"{by_ocr(shown.part, shown.start, shown.end)}</p></div>"
        f'<button type="button" class="lt-tool" data-do="{shown.doing.close}" aria-label="Close {name.lower()}">✕'
        f"</button></header>{_siblings(evidence.id, siblings) if evidence else ''}"
        f"{strip.strip(shown.covered, shown.doing.turn, shown.key, shown.part.index) if shown.covered else ''}"
        f'<div class="lt-through">{through}</div>{_found(shown)}'
        f'<div class="lt-text" tabindex="0" aria-label="Text">{body(shown)}</div>{_pager(shown)}'
        f"{_test(evidence) if evidence and evidence.regions else ''}</section>"
    )


def body(shown: Shown) -> str:
    """What the part holds: its page, or formatted, and its text, which a switch shows."""
    part, start, end = shown.part, shown.start, shown.end
    plain = page_text.text(part, start, end, shown.kind)
    other = _picture(shown) if shown.page else page_text.formatted(part, start, end, shown.kind)
    return f'<div class="lt-as-page">{other}</div><div class="lt-as-text">{plain}</div>' if other else plain


def _picture(shown: Shown) -> str:
    """The page with boxes around what is marked; it is as high as it will be before the picture is there."""
    place = shown.page
    boxes = "".join(
        f'<span class="lt-where" style="left:{left:.2%};top:{top:.2%};width:{right - left:.2%};'
        f'height:{bottom - top:.2%}"></span>'
        for left, top, right, bottom in place.boxes
    )
    missing = ""
    if shown.end > shown.start and not place.boxes:
        missing = '<p class="lt-cut">The place could not be found on the page; it is marked in the text.</p>'
    source = f"/documents/{escape(shown.document)}/pages/{shown.part.index}.jpg"
    return (
        f'{missing}<div class="lt-scan" style="aspect-ratio:{max(1, place.width):.0f}/{max(1, place.height):.0f}">'
        f'<img alt="{escape(shown.place)} as it looks" src="{source}">{boxes}</div>'
    )


def _views(shown: Shown) -> str:
    """A switch between the page, or formatted text, and plain text; "" where there is one view only."""
    if shown.page:
        name = "Page"
    elif page_text.formatted(shown.part, 0, 0, shown.kind):
        name = "Formatted"
    else:
        return ""
    return (
        f'<span class="lt-views" role="group" aria-label="View"><button type="button" class="lt-tool" '
        f'data-view="page">{name}</button><button type="button" class="lt-tool" data-view="text">Text</button></span>'
    )


def _contents(shown: Shown) -> str:
    """Chapters or files, each opened by a click; "" where there is one only."""
    if len(shown.contents) < 2:
        return ""
    here = max((index for index, _ in shown.contents if index <= shown.part.index), default=1)
    rows = "".join(
        f'<li><button type="button" class="lt-tool" data-do="{shown.doing.turn}" '
        f'data-id="{escape(shown.key)}@{index}"{" aria-current=true" if index == here else ""}>'
        f"{escape(name)}</button></li>"
        for index, name in shown.contents[:MOST_CONTENTS]
    )
    return f'<details class="lt-contents"><summary class="lt-tool">Contents</summary><ol>{rows}</ol></details>'


def _find(shown: Shown) -> str:
    return (
        f'<form data-do="{shown.doing.find}" data-id="{escape(shown.key)}@{shown.part.index}"><input name="text" '
        f'value="{escape(shown.words)}" placeholder="Find in this document" aria-label="Find in this document"></form>'
    )


def _found(shown: Shown) -> str:
    """The places that hold the words that were looked for."""
    if shown.found is None:
        return ""
    words = escape(shown.words.strip())
    if not shown.found:
        return f'<p class="lt-nothing">Nothing here holds “{words}”.</p>'
    rows = "".join(
        f'<li><button type="button" class="lt-tool" data-do="{shown.doing.turn}" '
        f'data-id="{escape(f"{shown.key}@{index}|{shown.words}")}"'
        f"{' aria-current=true' if index == shown.part.index else ''}>{escape(place)}</button></li>"
        for index, place in shown.found
    )
    return f'<ul class="lt-hits" aria-label="Places">{rows}</ul>'


def _pager(shown: Shown) -> str:
    """Buttons to the parts before and after, and a field for the number of another."""
    now = shown.part.index

    def turn(index: int, word: str) -> str:
        off = "" if 1 <= index <= shown.parts else " disabled"
        return (
            f'<button type="button" class="lt-tool" data-do="{shown.doing.turn}" '
            f'data-id="{escape(shown.key)}@{index}"{off}>{word}</button>'
        )

    field = f"{now} of {shown.parts}"
    if shown.parts > 2:
        field = (
            f'<form data-do="{shown.doing.go}" data-id="{escape(shown.key)}@{now}"><input name="text" value="{now}" '
            f'inputmode="numeric" aria-label="Go to page"></form> of {shown.parts:,}'
        )
    return f"<nav>{turn(now - 1, '‹ Previous')}<span>{field}</span>{turn(now + 1, 'Next ›')}</nav>"


def _test(evidence: Evidence) -> str:
    return (
        f'<footer><button type="button" class="lt-button" data-do="without" data-id="{escape(evidence.id)}">'
        "Answer without this</button><p>Hides this passage from the model, scores the same answer again and asks for "
        "a new one. Nothing is saved.</p></footer>"
    )


def place_of(evidence: Evidence, part: Part, kind: DocumentKind | None) -> str:
    """Where a passage stands, or another part of its document that the user turned to, after its chapter."""
    own = part.index == evidence.part
    where = format.place(evidence.label if own else part.label, kind)
    told = where.startswith(shorten(part.chapter or "", 24, placeholder=""))  # by the place itself
    told |= own and part.label != evidence.label and (kind == "text" or bool(part.places))  # which may begin a chapter
    return f"{part.chapter} · {where}" if part.chapter and not told else where


def _siblings(id: str, siblings: Sequence[str]) -> str:
    """Buttons to the passages before and after this one under the answer; "" where it is the only one."""
    if id not in siblings or len(siblings) < 2:
        return ""
    place = siblings.index(id)

    def button(other: int, word: str, name: str) -> str:
        key = f'data-id="{escape(siblings[other])}"' if 0 <= other < len(siblings) else "disabled"
        name = f'aria-label="{name} passage"'
        return f'<button type="button" class="lt-tool" data-do="passage" {key} {name}>{word}</button>'

    before, after = button(place - 1, "‹", "Previous"), button(place + 1, "›", "Next")
    which = f"Passage {place + 1} of {len(siblings)}"
    return f'<nav class="lt-siblings">{before}<span>{which}</span>{after}</nav>'


def by_ocr(part: Part, start: int, end: int) -> str:
    """That a passage, or else its page, was read by OCR, and how sure it was; "" for other pages."""
    sure = part.confidence(start, end)
    sure = part.confidence(0, len(part.text)) if sure is None else sure
    return "" if sure is None else f" · read by OCR, mean confidence {sure:.0%}"


def target(name: str) -> tuple[str, int, str]:
    """Take apart the data-id of a button that opens a part: passage or document, part index, words to mark.

    Raises:
        NotFoundError: it is none.
    """
    place, _, words = name.partition("|")
    key, _, index = place.rpartition("@")
    if not re.fullmatch("[0-9]{1,9}", index):
        raise NotFoundError(f"there is no part {index!r:.40}")
    return key, int(index), words


def message(body: str) -> str:
    """A viewer that holds a message instead of a passage; `body` is HTML."""
    return (
        '<section class="lt-page" tabindex="-1" aria-label="Passage"><header><h3>Passage</h3>'
        '<button type="button" class="lt-tool" data-do="close" aria-label="Close">✕</button></header>'
        f"{body}</section>"
    )


def answer(said: str) -> str:
    return f'<div class="lt-prose">{escape(said) or "…"}</div>'


def removal(found: Removal) -> str:
    """How much the answer rests on the passage; its words are marked the more, the more they rest on it."""
    lost = [(before - after) / MARKED_NATS for before, after in zip(found.before, found.after, strict=True)]
    words = "".join(
        f'<span class="lt-rest" style="--f:{min(1.0, max(0.0, share)):.2f}">{escape(text)}</span>'
        for text, share in zip(found.pieces, lost, strict=True)
    )
    return (
        f'<p class="lt-fall">{_rests(found)}</p><div class="lt-prose lt-given">{words}</div>'
        f'<details class="lt-fold"><summary>Details</summary>{escape(found.words)}</details>'
    )


def _rests(found: Removal) -> str:
    """How much an answer rests on a passage, in everyday words; hiding other passages says what is ordinary."""
    ordinary = max(RESTS_NATS, 3 * abs(found.control or 0.0))
    if found.fall > ordinary:
        return "The answer rests on this passage: without it the model would hardly give it."
    if found.fall > abs(found.control or 0.0):
        return "The answer rests on this passage in part."
    return "The answer does not rest on this passage: without it the model would give it as well."


def comparison(body: str, facts: str = "") -> str:
    """The box under the passage with the answer that was given without it; `body` is HTML."""
    line = f'<p class="lt-cost">{escape(facts)}</p>' if facts else ""
    return f'<section class="lt-without" aria-live="polite"><h4>Without this passage</h4>{body}{line}</section>'
