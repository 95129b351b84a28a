"""The walk through a page of HTML or XHTML: what of it is text, in which order, and what it is called."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lxml import etree

from app.ingest.blocks import Block
from app.ingest.formats import lists
from app.ingest.formats.formulas import from_mathml
from app.ingest.formats.notes import find_notes, label_of, without_label
from app.ingest.formats.parse import attribute, local

_BLOCKS = frozenset(
    """address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure
    footer form frameset header hgroup hr html legend li main menu nav ol optgroup p pre section summary table tbody td
    tfoot th thead tr ul""".split()
)
_UNREAD = frozenset(
    """audio base basefont button canvas col colgroup datalist embed head iframe input link map meta meter noembed
    noframes noscript option param progress rp script select source style textarea title track video""".split()
)
_HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
_TWINS = re.compile(r"\b(headerlink|katex-html|MathJax(_\w+)?|mjx-math|linenos|linenodiv|lineno|gutter)\b")
_SIDE_NUMBER = re.compile(
    r"\b(lnum|line-?num(ber)?|verse-?num(ber)?|versenum)\b", re.IGNORECASE
)  # floats beside its line
_TIGHT = frozenset(("div", "dd", "dt", "td", "th"))  # no blank line between neighbours of this kind
_HIDDEN = re.compile(r"(display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t\n\r\f\u00a0]+")
_RAISED = str.maketrans("0123456789+-−()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁽⁾ⁿ")
MOST_SPANNED = 1_000  # columns or rows, as in browsers
_LAYOUT = frozenset(("table", "pre", "ul", "ol", "dl", "blockquote", "figure", *_HEADINGS))  # in a cell


@dataclass
class Marks:
    """What is known of places in a page before it is walked, by the ids of its elements.

    Attributes:
        chapters: title of the chapter that begins there.
        pages: label of the printed page that begins there.
        headings: whether headings begin chapters; not so where a table of contents says which do.
        own_pages: whether marks in the page itself tell printed pages; not so where a list of pages does.
    """

    chapters: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    headings: bool = True
    own_pages: bool = True


class Walk:
    """Walks an element and keeps its blocks; what a browser would not show is left out.

    Attributes:
        blocks: what was found so far; `flush` ends the last.
    """

    def __init__(self, root: etree._Element, marks: Marks = Marks(), kind: str = "") -> None:
        self.blocks: list[Block] = []
        self._marks, self._kind = marks, kind
        self._notes = find_notes(root)
        self._note_elements = set(self._notes.values())
        self._read_notes: set[etree._Element] = set()
        self._waiting_notes: list[
            tuple[etree._Element, str]
        ] = []  # (note, label) of those that the open paragraph names
        self._text: list[str] = []
        self._length = 0
        self._pages: list[tuple[int, str]] = []
        self._chapter: str | None = None
        self._opens = False
        self._heading = False
        self._container: etree._Element = root  # the block element that is open
        self._before: etree._Element | None = None  # the one that gave the last block
        self._depth = 0  # of lists
        self._in_list = False  # an item of the list that is open was read
        self._marker = ""
        self._pre = 0
        self._slots: list[dict[str, list]] = []

    def read(self, element: etree._Element) -> list[Block]:
        """The blocks of an element."""
        self.visit(element)
        self.flush()
        return self.blocks

    def begin(self, chapter: str | None, page: str | None = None) -> None:
        """A chapter, a printed page, or both, begin with the next text."""
        if chapter is not None:
            self.flush()
            self._chapter, self._opens = chapter, True
        if page is not None:
            self._pages.append((self._length, page))

    def visit(self, element: etree._Element) -> None:
        """Read an element and what is in it, not its tail."""
        name = local(element)
        if not name or self._unseen(element, name):
            return
        self._arrive(element, name)
        if name in ("math", "img", "svg", "br", "hr", "wbr"):
            self._put_object(element, name)
        elif name == "pre":
            self._put_pre(element)
        elif name in _HEADINGS:
            self._put_heading(element)
        elif name == "table":
            self._put_table(element)
        elif name == "switch":
            self._put_switch(element)
        elif name in ("ul", "ol", "menu", "dir"):
            self._put_list(element, name)
        elif name in _BLOCKS:
            self.flush()
            outer, self._container = self._container, element
            self._children(element)
            self.flush()
            self._container = outer
        else:
            self._put_inline(element, name)

    def flush(self) -> None:
        """End the paragraph that is open, and put the notes that it names after it."""
        text = "".join(self._text)
        text = text.rstrip() if self._pre else re.sub(" +\n", "\n", text.strip(" \n"))
        if text.strip():
            chapter = self._chapter
            if self._heading and self._marks.headings and chapter is None:
                chapter = text
            self.blocks.append(
                Block(
                    self._marker + text,
                    chapter,
                    opens=self._opens,
                    pages=tuple((at + len(self._marker) if at else 0, label) for at, label in self._pages),
                    counted=not self._heading,
                    joined=self._in_list or self._is_tight(),
                    kind=self._kind,
                )
            )
            self._chapter, self._opens, self._marker, self._pages = None, False, "", []
            self._before, self._in_list = self._container, self._depth > 0
        else:
            self._pages = [(0, label) for _, label in self._pages]
        self._text, self._length = [], 0
        waiting, self._waiting_notes = self._waiting_notes, []
        for note, label in waiting:
            self._put_note(note, label)

    def _is_tight(self) -> bool:
        """True for a line that stands right under the block before, as verses do."""
        here, before = self._container, self._before
        return (
            local(here) in _TIGHT
            and before is not None
            and here is not before
            and (local(before) == local(here) and before.getparent() is here.getparent())
        )

    def _put(self, text: str | None) -> None:
        if not text:
            return
        if not self._pre:
            text = _BLANKS.sub(" ", text)
            if text[0] == " " and (not self._text or self._text[-1][-1] in " \n"):
                text = text[1:]
        if text:
            self._text.append(text)
            self._length += len(text)

    def _children(self, element: etree._Element) -> None:
        template = next((child for child in element if local(child) == "template"), None)
        if template is not None and (attribute(template, "shadowrootmode") or attribute(template, "shadowmode")):
            self._slots.append(_slotted(element, template))
            self._contents(template)
            self._slots.pop()
        else:
            self._contents(element)

    def _contents(self, element: etree._Element) -> None:
        self._put(element.text)
        for child in element:
            self.visit(child)
            self._put(child.tail)

    def _arrive(self, element: etree._Element, name: str) -> None:
        """Look whether a chapter or a printed page begins with this element."""
        id = element.get("id") or (element.get("name") if name == "a" else None) or ""
        if element in self._note_elements:
            self._read_notes.add(element)
        if not id:
            return
        if id in self._marks.pages:
            self.begin(None, self._marks.pages[id])
        elif self._marks.own_pages and is_page_break(element):
            self.begin(None, page_label(element))
        if id in self._marks.chapters:
            self.begin(self._marks.chapters[id])

    def _unseen(self, element: etree._Element, name: str) -> bool:
        if name == "script" and attribute(element, "type").startswith("math/tex"):
            self._put(f"${(element.text or '').strip()}$")
        if name in _UNREAD or element.get("hidden") is not None or _HIDDEN.search(element.get("style", "")):
            return True
        if name == "dialog" and element.get("open") is None or name == "template":
            return True
        if name == "nav" or attribute(element, "role") == "navigation":
            return True
        if element in self._read_notes:
            return True
        if is_page_break(element):
            self._arrive(element, name)
            return True  # its number is a label, no word
        if name == "mjx-container":
            for formula in element.iter():
                if local(formula) == "math":
                    self._put(from_mathml(formula))
                    break
            return True
        return bool(_TWINS.search(element.get("class", ""))) or _is_back_link(element, name)

    def _put_object(self, element: etree._Element, name: str) -> None:
        if name == "br":
            self._text.append("\n")
            self._length += 1
        elif name == "hr":
            self.flush()
        elif name == "math":
            self._put(from_mathml(element))
        elif name == "img":
            self._put_alternative(element.get("alt", ""), element)
        elif name == "svg":
            words = [" ".join("".join(node.itertext()).split()) for node in element.iter() if local(node) == "text"]
            titles = [node.text or "" for node in element.iter() if local(node) in ("title", "desc")]
            self._put_alternative(" ".join(filter(None, [*titles[:1], *words])), element)

    def _put_alternative(self, text: str, element: etree._Element) -> None:
        """The alternative text of a picture in brackets, unless the caption beside it says the same."""
        text = " ".join(text.split())
        figure = next((above for above in element.iterancestors() if local(above) == "figure"), None)
        around = "" if figure is None else " ".join("".join(figure.itertext()).split())
        if text and text not in around:
            self._put(f"[{text}]")

    def _put_pre(self, element: etree._Element) -> None:
        self.flush()
        self._pre += 1
        self._children(element)
        self._text = list(filter(None, ["".join(self._text).strip("\n")]))
        self.flush()
        self._pre -= 1

    def _put_heading(self, element: etree._Element) -> None:
        self.flush()
        outer, self._container, self._heading = self._container, element, True
        self._children(element)
        self.flush()
        self._container, self._heading = outer, False

    def _put_list(self, element: etree._Element, name: str) -> None:
        self.flush()
        self._depth += 1
        markers = lists.html_markers(element, name)
        for child in element:
            marker = markers.get(child)
            if marker is not None:
                self.flush()
                self._marker = "  " * (self._depth - 1) + marker
            self.visit(child)
            self._put(child.tail)
            self.flush()
        self._depth -= 1
        self._marker, self._in_list = "", self._depth > 0

    def _put_inline(self, element: etree._Element, name: str) -> None:
        if name == "slot":
            items = self._slots[-1].pop(element.get("name", ""), None) if self._slots else None
            for item in items or ():
                self._put(item) if isinstance(item, str) else self.visit(item)
            if not items:
                self._children(element)
        elif name == "a" and (note := self._note_of(element)) is not None:
            self._put(f"[{label_of(element)}]")
            if note not in self._read_notes:
                self._read_notes.add(note)
                self._waiting_notes.append((note, label_of(element)))
        elif name == "sup" and re.fullmatch(r"[0-9+\-−()n]+", flat(element)) and not len(element):
            self._put(flat(element).translate(_RAISED))
        elif name == "rt":
            reading = flat(element)
            self._put(f"({reading})" if reading else "")
        elif name == "q":
            self._put("“")
            self._children(element)
            self._put("”")
        else:
            self._put(" " if _SIDE_NUMBER.search(element.get("class", "")) else "")
            self._children(element)

    def _put_switch(self, switch: etree._Element) -> None:
        """One of several forms of the same: the one with formulas, else that for everyone."""
        cases = [case for case in switch if any(local(inner) == "math" for inner in case.iter())]
        cases += [case for case in switch if local(case) == "default"]
        for case in cases[:1]:
            self._children(case)

    def _note_of(self, link: etree._Element) -> etree._Element | None:
        """The note that a link calls, None when it is another link."""
        note = self._notes.get(attribute(link, "href").partition("#")[2])
        return None if note is None or note in link.iterancestors() else note

    def _put_note(self, note: etree._Element, label: str) -> None:
        inner = self._inner()
        inner._children(note)
        inner.flush()
        text = without_label("\n".join(block.text for block in inner.blocks), label)
        if text:
            self.blocks.append(Block(f"[{label}] {text}", counted=False, joined=True, kind=self._kind))
        self._waiting_notes += inner._waiting_notes

    def _inner(self) -> "Walk":
        """A walk for what is put somewhere else: a note, a cell."""
        walk = Walk.__new__(Walk)
        walk.__dict__.update(self.__dict__)
        walk.blocks, walk._text, walk._pages, walk._waiting_notes = [], [], [], []
        walk._length = walk._depth = walk._pre = 0
        walk._chapter, walk._opens, walk._heading, walk._in_list, walk._marker = None, False, False, False, ""
        return walk

    def _put_table(self, table: etree._Element) -> None:
        self.flush()
        rows = [row for row in table.iter() if local(row) == "tr" and _table_of(row) is table]
        cells = [cell for row in rows for cell in row if local(cell) in ("td", "th")]
        if any(local(inner) in _LAYOUT for cell in cells for inner in cell.iterdescendants()):
            self._contents(table)  # a table that only lays out what stands in it
            self.flush()
            return
        for caption in table:
            if local(caption) == "caption":
                self.visit(caption)
                self.flush()
        lines: list[str] = []
        reaching: dict[int, int] = {}  # how many rows more a cell above fills, by column
        for row in rows:
            if self._unseen(row, "tr"):
                continue
            self._arrive(row, "tr")
            line = " | ".join(self._row(row, reaching))
            if line.strip(" |"):
                self._put_line(lines, line)
        self.flush_lines(lines)

    def _row(self, row: etree._Element, reaching: dict[int, int]) -> list[str]:
        """The texts of a row by columns; "" where a cell before or above it reaches over."""
        texts, column = [], 0
        for cell in row:
            if local(cell) not in ("td", "th"):
                continue
            while reaching.get(column, 0):
                reaching[column] -= 1
                column += 1
            texts += [*[""] * (column - len(texts)), self._cell(cell)]
            for _ in range(_span(cell, "colspan")):
                reaching[column] = _span(cell, "rowspan") - 1
                column += 1
        for later in [later for later in reaching if later >= column]:
            reaching[later] = max(0, reaching[later] - 1)
        return texts

    def _put_line(self, lines: list[str], line: str) -> None:
        lines.append(line.strip())
        self._length += len(lines[-1]) + 1

    def flush_lines(self, lines: list[str]) -> None:
        """The rows of a table are one block, a line each."""
        self._text = list(filter(None, ["\n".join(lines)]))
        self.flush()

    def _cell(self, cell: etree._Element) -> str:
        if self._unseen(cell, local(cell)):
            return ""
        self._arrive(cell, local(cell))
        inner = self._inner()
        inner._children(cell)
        waiting = inner._waiting_notes
        inner._waiting_notes = []
        inner.flush()
        self._pages += [(self._length, label) for block in inner.blocks for _, label in block.pages]
        self._waiting_notes += waiting
        return " ".join(" ".join(block.text.split()) for block in inner.blocks)


def flat(element: etree._Element) -> str:
    """The text of an element on one line."""
    return " ".join("".join(element.itertext()).split())


def is_page_break(element: etree._Element) -> bool:
    """True for the mark of a printed page."""
    return "pagebreak" in attribute(element, "type").split() or "doc-pagebreak" in attribute(element, "role").split()


def page_label(element: etree._Element) -> str:
    """The number of the page that a mark begins."""
    named = element.get("title") or element.get("aria-label") or flat(element) or element.get("id", "")
    return re.sub(r"^\s*(page|p\.?)[\s_-]*(?=\S)", "", named, flags=re.IGNORECASE).strip() or named


def _is_back_link(element: etree._Element, name: str) -> bool:
    if name != "a":
        return False
    kinds = f"{attribute(element, 'role')} {attribute(element, 'type')} {element.get('class', '')}"
    return "backlink" in kinds or "footnote-back" in kinds or flat(element).strip("\ufe0e\ufe0f") in ("↩", "↑", "¶")


def _span(cell: etree._Element, name: str) -> int:
    """How many columns or rows a cell fills."""
    value = cell.get(name, "").strip()
    return min(max(int(value), 1), MOST_SPANNED) if value.isascii() and value.isdecimal() else 1


def _table_of(row: etree._Element) -> etree._Element | None:
    return next((above for above in row.iterancestors() if local(above) == "table"), None)


def _slotted(host: etree._Element, template: etree._Element) -> dict[str, list]:
    """What an element holds itself, by the slot of its shadow tree in which it is shown."""
    found: dict[str, list] = {"": [host.text or ""]}
    for child in host:
        if child is not template:
            found.setdefault(attribute(child, "slot"), []).append(child)
        found[""].append(child.tail or "")
    return found
