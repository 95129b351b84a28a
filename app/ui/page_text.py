"""Texts of the viewer as HTML: prose, code with colours, Markdown and web pages, each with a passage marked."""

import re
from collections.abc import Callable, Iterable, Iterator
from html import escape

from app import markdown
from app.ingest.colours import tokens
from app.records import DocumentKind, Part
from app.tasks.sentences import sentence_ends

WINDOW_CHARS = 50_000  # a browser shows this at once; more makes it slow
FARTHEST_SENTENCE = 300  # characters to where a sentence begins or ends; farther, the mark stays as it is
WRAPPED_LINE = re.compile(r"(?<=[^\n]{45})\n(?=[^\s\n])")
MARKED_UP: tuple[DocumentKind, ...] = ("web", "book", "document")  # of their markup the library keeps the lines
_ITEM = re.compile(r" *(?:[-•◦▪] |\d+[.)] )")


def window(text: str, start: int, end: int, limit: int = WINDOW_CHARS) -> tuple[int, int]:
    """The character range to show: all of a short text, else `limit` characters around [start, end)."""
    if len(text) <= limit:
        return 0, len(text)
    first = max(0, min((start + end) // 2 - limit // 2, len(text) - limit))
    return first, first + limit


def whole_sentences(part: Part, start: int, end: int) -> tuple[int, int]:
    """The range widened to sentences, or to lines in code; as it is where none begins or ends near."""
    text = part.text
    if start >= end:
        return start, end
    if part.first_line is not None:
        after = text.find("\n", max(start, end - 1))
        return text.rfind("\n", 0, start) + 1, len(text) if after < 0 else after
    begin = max(sentence_ends(text, max(0, start - FARTHEST_SENTENCE), start), default=None)
    if begin is None:
        begin = 0 if start <= FARTHEST_SENTENCE else start
    while begin < start and text[begin].isspace():
        begin += 1
    close = next((at for at in sentence_ends(text, end - 1, end + FARTHEST_SENTENCE) if at >= end), end)
    return begin, max(end, len(text[:close].rstrip()))


def text(part: Part, start: int, end: int, kind: DocumentKind | None = None) -> str:
    """HTML of the part's text with [start, end) marked; says when it shows a window only."""
    first, last = window(part.text, start, end)
    shown = part.text[first:last]
    start, end = max(0, start - first), max(0, min(end, last) - first)
    if part.first_line is not None:
        body = _code(part.label, shown, start, end, part.first_line + part.text[:first].count("\n"))
    elif kind in MARKED_UP and part.places:
        headings = {at - first for at, label in part.places if part.text.startswith(label.rstrip(" …"), at)}
        body = _marked_up(shown, start, end, headings)
    else:
        body = _prose(shown, start, end, wrapped=not part.places)
    return _cut(part, first, last, body)


def formatted(part: Part, start: int, end: int, kind: DocumentKind | None) -> str:
    """HTML of a part that is Markdown, with [start, end) marked; "" for others."""
    named = part.first_line is not None and part.label.lower().endswith((".md", ".markdown"))
    if not named and (kind != "text" or not markdown.looks_marked_up(part.text)):
        return ""
    first, last = window(part.text, start, end)
    if named and part.first_line == 0 and not first:  # its name, which the library put before it
        first = part.text.find("\n") + 1
    start, end = max(0, start - first), max(0, min(end, last) - first)
    return _cut(part, 0 if named else first, last, markdown.marked_html(part.text[first:last], start, end))


def _cut(part: Part, first: int, last: int, body: str) -> str:
    before = '<p class="lt-cut">… the part begins earlier</p>' if first else ""
    after = '<p class="lt-cut">the part goes on …</p>' if last < len(part.text) else ""
    return before + body + after


def _mark(html: str) -> str:
    return f'<mark class="lt-mark">{html}</mark>' if html else ""


def _prose(text: str, start: int, end: int, wrapped: bool) -> str:
    """Flowing text; if it was `wrapped` at a margin lines are joined again, short ones (verse, titles) are kept."""

    def flow(piece: str) -> str:
        return escape(WRAPPED_LINE.sub(" ", piece) if wrapped else piece)

    marked = _mark(flow(text[start:end])) if end > start else ""
    return f'<div class="lt-prose">{flow(text[:start])}{marked}{flow(text[end:])}</div>'


def _code(name: str, text: str, start: int, end: int, first_line: int) -> str:
    """Numbered lines with colours; the marked range is marked line by line."""
    rows: list[list[str]] = [[]]
    head = text.partition("\n")[0] if first_line == 0 else ""  # its name, which the library put before it
    pieces = [("", head), *tokens(text[len(head) :], name)]
    for kind, piece, at in _placed(pieces):
        for number, line in enumerate(piece.split("\n")):
            if number:
                rows.append([])
                at += 1
            rows[-1].append(_coloured(kind, line, start - at, end - at))
            at += len(line)
    between = '</mark><mark class="lt-mark">'  # of two tokens that are both marked
    numbered = (
        f'<div><span class="lt-number">{number if number > 0 else ""}</span>'
        f"<span>{''.join(row).replace(between, '') or ' '}</span></div>"
        for number, row in enumerate(rows, first_line)
    )
    return f'<div class="lt-code">{"".join(numbered)}</div>'


def _placed(pieces: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, int]]:
    at = 0
    for kind, piece in pieces:
        yield kind, piece, at
        at += len(piece)


def _coloured(kind: str, line: str, start: int, end: int) -> str:
    """A piece of a line, [start, end) of it marked."""
    start, end = max(0, start), max(0, min(end, len(line)))

    def colour(text: str) -> str:
        return f'<span class="lt-token-{kind}">{escape(text)}</span>' if kind and text.strip() else escape(text)

    if start >= end:
        return colour(line)
    return f"{colour(line[:start])}{_mark(colour(line[start:end]))}{colour(line[end:])}"


def _marked_up(text: str, start: int, end: int, headings: set[int]) -> str:
    """Blocks of a web page, an e-book or an office file: headings, lists, tables and paragraphs.

    Args:
        headings: where headings begin.
    """
    made = []
    for found in re.finditer(r"(?s)\S.*?(?=\n\s*\n|\Z)|[ \t]+\S.*?(?=\n\s*\n|\Z)", text):
        at, block = found.start(), found[0]

        def marked(first: int, last: int, at: int = at) -> str:
            """Characters [first, last) of the block."""
            a, b = (min(max(place - at, first), last) for place in (start, end))
            block_text = text[at + first : at + last]
            return f"{escape(block_text[: a - first])}{_mark(escape(block_text[a - first : b - first]))}" + escape(
                block_text[b - first :]
            )

        made.append(_block(block, marked, at in headings))
    return f'<div class="lt-prose lt-set">{"".join(made)}</div>'


def _block(block: str, marked: Callable[[int, int], str], heading: bool) -> str:
    """One block; `marked(first, last)` gives the HTML of a range of it."""
    lines, at = [], 0
    for line in block.split("\n"):
        lines.append((line, at, at + len(line)))
        at += len(line) + 1
    if heading and len(lines) == 1:
        return f"<h4>{marked(0, len(block))}</h4>"
    cells = [line.split(" | ") for line, _, _ in lines]
    if len(cells) > 1 and len(cells[0]) > 1 and {len(row) for row in cells} == {len(cells[0])}:
        rows = (_row(row, first, marked) for row, (_, first, _) in zip(cells, lines, strict=True))
        return f"<table>{''.join(rows)}</table>"
    if all(_ITEM.match(line) for line, _, _ in lines):
        items = (
            f'<li style="--d:{(len(line) - len(line.lstrip())) // 2}">{marked(first, last)}</li>'
            for line, first, last in lines
        )
        return f"<ul>{''.join(items)}</ul>"
    return f"<p>{marked(0, len(block))}</p>"


def _row(cells: list[str], at: int, marked: Callable[[int, int], str]) -> str:
    made = ""
    for cell in cells:
        made += f"<td>{marked(at, at + len(cell))}</td>"
        at += len(cell) + len(" | ")
    return f"<tr>{made}</tr>"
