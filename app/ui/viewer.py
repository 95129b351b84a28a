"""The page viewer: one part of a document with a passage marked, cut to a window when it is long."""

import re
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from textwrap import shorten

from app.errors import NotFoundError
from app.records import DocumentKind, Evidence, Part, Removal
from app.ui import format

WINDOW_CHARS = 50_000  # a browser shows this at once; more makes it slow
RESTS_NATS = 2.0  # a fall beyond this, and beyond three times the ordinary one, is plain
MARKED_NATS = 3.0  # a token that loses so much is marked fully
WRAPPED_LINE = re.compile(r"(?<=[^\n]{45})\n(?=[^\s\n])")


def window(text: str, start: int, end: int, limit: int = WINDOW_CHARS) -> tuple[int, int]:
    """The character range to show: all of a short text, else `limit` characters around [start, end)."""
    if len(text) <= limit:
        return 0, len(text)
    first = max(0, min((start + end) // 2 - limit // 2, len(text) - limit))
    return first, first + limit


def _prose(text: str, start: int, end: int, wrapped: bool) -> str:
    """Flowing text; if it was `wrapped` at a margin lines are joined again, short ones (verse, titles) are kept."""

    def flow(piece: str) -> str:
        return escape(WRAPPED_LINE.sub(" ", piece) if wrapped else piece)

    marked = f'<mark class="lt-mark">{flow(text[start:end])}</mark>' if end > start else ""
    return f'<div class="lt-prose">{flow(text[:start])}{marked}{flow(text[end:])}</div>'


def _code(text: str, start: int, end: int, first_line: int) -> str:
    """Numbered lines; the marked range is marked line by line."""
    rows, offset = [], 0
    for number, line in enumerate(text.split("\n"), first_line):
        a, b = max(start - offset, 0), min(end - offset, len(line))
        body = escape(line)
        if a < b:
            body = f'{escape(line[:a])}<mark class="lt-mark">{escape(line[a:b])}</mark>{escape(line[b:])}'
        rows.append(f'<span class="lt-number">{number if number > 0 else ""}</span><span>{body or " "}</span>')
        offset += len(line) + 1
    return f'<div class="lt-code">{"".join(f"<div>{row}</div>" for row in rows)}</div>'


def text(part: Part, start: int, end: int) -> str:
    """HTML of the part's text with [start, end) marked; says when it shows a window only."""
    first, last = window(part.text, start, end)
    shown = part.text[first:last]
    start, end = max(0, start - first), max(0, min(end, last) - first)
    if part.first_line is None:
        body = _prose(shown, start, end, wrapped=not part.places)
    else:
        body = _code(shown, start, end, part.first_line + part.text[:first].count("\n"))
    before = '<p class="lt-cut">… the part begins earlier</p>' if first else ""
    after = '<p class="lt-cut">the part goes on …</p>' if last < len(part.text) else ""
    return before + body + after


def picture(image: bytes | None, part: Part, start: int, end: int) -> str:
    """The page as it was scanned, with boxes around characters [start, end), and its text folded under it.

    Args:
        image: JPEG; None where there is none: the text alone is shown.
    """
    if image is None:
        return text(part, start, end)
    boxes = "".join(
        f'<span class="lt-where" style="left:{box.left:.2%};top:{box.top:.2%};width:{box.right - box.left:.2%};'
        f'height:{box.bottom - box.top:.2%}"></span>'
        for box in part.boxes_of(start, end)
    )
    source = b64encode(image).decode("ascii")
    drawn = f'<img alt="The page as it was scanned" src="data:image/jpeg;base64,{source}">'
    return (
        f'<div class="lt-scan">{drawn}{boxes}</div>'
        f'<details class="lt-fold"><summary>Its text</summary>{text(part, start, end)}</details>'
    )


def page(
    evidence: Evidence,
    part: Part,
    parts: int,
    kind: DocumentKind | None,
    *,
    siblings: Sequence[str] = (),
    image: bytes | None = None,
) -> str:
    """The whole viewer.

    Args:
        part: the evidence's own part, or another one of the same document that the user turned to.
        parts: number of parts of the document.
        siblings: ids of all passages under the answer, in order.
        image: of the page, where it is a scan.
    """
    own = part.index == evidence.part
    start, end = (evidence.char_start, evidence.char_end) if own else (0, 0)
    where = format.place(evidence.label if own else part.label, kind)
    told = where.startswith(shorten(part.chapter or "", 24, placeholder=""))  # by the place itself
    told |= own and part.label != evidence.label and (kind == "text" or bool(part.places))  # which may begin a chapter
    chapter = f"{escape(part.chapter)} · " if part.chapter and not told else ""
    return (
        '<section class="lt-page" tabindex="-1" aria-label="Passage">'
        f"<header><div><h3>{escape(evidence.title)}</h3><p>{chapter}{escape(where)}{by_ocr(part, start, end)}</p></div>"
        '<button type="button" class="lt-tool" data-do="close" aria-label="Close the passage">✕</button></header>'
        f"{_siblings(evidence.id, siblings)}"
        f'<div class="lt-text" tabindex="0">{picture(image, part, start, end)}</div>'
        f"<nav>{_turn(evidence, part.index - 1, parts, '‹ Previous')}<span>{part.index} of {parts}</span>"
        f"{_turn(evidence, part.index + 1, parts, 'Next ›')}</nav>"
        f'<footer><button type="button" class="lt-button" data-do="without" data-id="{escape(evidence.id)}">'
        "Answer without this</button><p>Hides this passage from the model, scores the same answer again and asks for "
        "a new one. Nothing is saved.</p></footer></section>"
    )


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
    boxes = part.boxes_of(start, end) or part.boxes
    letters = sum(box.char_end - box.char_start for box in boxes)
    if not letters:
        return ""
    sure = sum((box.char_end - box.char_start) * box.confidence for box in boxes) / letters
    return f" · read by OCR, mean confidence {sure:.0%}"


def _turn(evidence: Evidence, index: int, parts: int, word: str) -> str:
    """A button that turns to another part; the data-id is read by `target`."""
    off = "" if 1 <= index <= parts else " disabled"
    return (
        f'<button type="button" class="lt-tool" data-do="turn" data-id="{escape(evidence.id)}@{index}"{off}>'
        f"{word}</button>"
    )


def target(name: str) -> tuple[str, int]:
    """Take apart the data-id of a turn button: evidence id and part index.

    Raises:
        NotFoundError: it is none.
    """
    evidence, _, index = name.rpartition("@")
    if not re.fullmatch("[0-9]{1,9}", index):
        raise NotFoundError(f"there is no part {index!r:.40}")
    return evidence, int(index)


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
