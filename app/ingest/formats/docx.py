"""Word files: what Word shows when changes are accepted, part by part from the XML."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lxml import etree

from app.ingest.blocks import About, Block
from app.ingest.formats import html
from app.ingest.formats.docx_pages import Pages
from app.ingest.formats.docx_styles import Styles
from app.ingest.formats.formulas import from_omml
from app.ingest.formats.lists import numeral
from app.ingest.formats.office import Parts, child, chosen, is_on, symbol
from app.ingest.formats.package import Package
from app.ingest.formats.parse import attribute, local

MOST_COLUMNS = 63  # Word's own limit
LONGEST_ROW = 3_000  # characters: a table with longer ones lays out text
_THROUGH = frozenset(
    """ins moveto hyperlink smarttag sdt sdtcontent customxml dir bdo fldsimple rubybase p tbl body txbxcontent
    subdoc""".split()
)
_CODE = ("code", "preformatted", "verbatim", "macro text", "plain text")


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The paragraphs and tables of a document; notes stand under the paragraph that calls them.

    Raises:
        Refused: it is damaged, encrypted, or no Word file.
    """
    parts = Parts(Package(path))
    main = parts.main("word")
    root = parts.xml(main)
    document = _Document(parts, main, root, about)
    yield from document.read(child(root, "body"))
    yield from document.finish()
    comments = next((parts.xml(part) for part in parts.related(main, "comments")), None)
    if comments is not None and len(comments):
        about.notes.append(f"{len(comments):,} comments are not read")


@dataclass
class _Line:
    """A paragraph that is being read.

    Attributes:
        fields: of each field that is open, whether its result has begun.
        boxes: text boxes and charts that hang on it, to be read after it.
    """

    text: list[str] = field(default_factory=list)
    length: int = 0
    pages: list[tuple[int, str]] = field(default_factory=list)
    fields: list[bool] = field(default_factory=list)
    boxes: list[etree._Element | str] = field(default_factory=list)
    notes: list[tuple[str, str, str]] = field(default_factory=list)  # (kind, id, label)

    def put(self, text: str) -> None:
        if text and all(self.fields):
            self.text.append(text)
            self.length += len(text)


class _Document:
    """Walks the body of one file."""

    def __init__(self, parts: Parts, main: str, root: etree._Element, about: About) -> None:
        self._parts, self._main, self._about = parts, main, about
        self._styles = Styles(parts, main)
        self._pages = Pages(root)
        self._line = _Line()
        self._notes = {kind: self._find_notes(kind) for kind in ("footnote", "endnote")}
        self._numbers = {"footnote": 0, "endnote": 0}
        self._page(self._pages.first())
        self._before = ""  # style of the paragraph before, when the next may follow on the next line

    def read(self, body: etree._Element | None) -> Iterator[Block]:
        """The blocks of the body, a text box or a cell."""
        elements = list(body) if body is not None else []
        self._about.total = max(self._about.total, len(elements))
        for done, element in enumerate(elements):
            self._about.done = max(self._about.done, done)
            yield from self._read_element(element)

    def finish(self) -> Iterator[Block]:
        """What the last paragraph left open."""
        yield from self._end("", "", 0, "")

    def _read_element(self, element: etree._Element) -> Iterator[Block]:
        name = local(element)
        if name == "p":
            yield from self._paragraph(element)
        elif name == "tbl":
            yield from self._table(element)
        elif name == "altchunk":
            yield from self._chunk(element)
        elif name == "alternatecontent":
            yield from self.read(chosen(element))
        elif name in ("omath", "omathpara"):
            yield Block(from_omml(element))
        elif name in _THROUGH:
            yield from self.read(element)

    def _paragraph(self, element: etree._Element) -> Iterator[Block]:
        properties = child(element, "ppr")
        for section in properties if properties is not None else ():
            if local(section) == "sectpr":
                self._pages.end_section()
        level = self._styles.heading(properties)
        marker, depth = self._styles.marker(properties)
        self._inline(element)
        if is_on(child(properties, "rpr", "del")) or attribute(child_or(properties, "framepr"), "dropcap") in (
            "drop", "margin",
        ):  # fmt: skip
            return  # its mark is deleted, or it is a large first letter: the next paragraph goes on
        style = attribute(child_or(properties, "pstyle"), "val")
        yield from self._end("" if level else "  " * depth + marker, marker if level else "", level, style)

    def _end(self, indent: str, number: str, level: int, style: str) -> Iterator[Block]:
        """End the open paragraph; its boxes and notes come after it."""
        line, self._line = self._line, _Line(fields=self._line.fields)
        text = number + "".join(line.text)
        kind = "list" if indent.strip() else style if any(code in self._styles.name(style) for code in _CODE) else ""
        if text.strip():
            shift = len(indent) + len(number)
            pages = tuple((at + shift if at else 0, label) for at, label in line.pages)
            joined = bool(kind) and kind == self._before
            yield Block(indent + text, text if level else None, pages=pages, counted=not level, joined=joined)
            self._before = kind
        else:
            self._line.pages = [(0, label) for _, label in line.pages]
        yield from self._after(line)

    def _after(self, line: _Line) -> Iterator[Block]:
        for box in line.boxes:
            if isinstance(box, str):
                yield Block(box, counted=False)
            else:
                open_line, self._line = self._line, _Line()
                yield from self.read(box)
                self._line = open_line
        for kind, id, label in line.notes:
            yield from self._note(kind, id, label)

    def _inline(self, element: etree._Element) -> None:
        for item in element:
            name = local(item)
            if name == "r":
                self._run(item)
            elif name in ("omath", "omathpara"):
                self._line.put(from_omml(item))
            elif name == "alternatecontent":
                if (found := chosen(item)) is not None:
                    self._inline(found)
            elif name in ("drawing", "pict", "object"):
                self._drawing(item)
            elif name in _THROUGH:
                self._inline(item)
            elif name == "ruby":
                self._ruby(item)

    def _ruby(self, ruby: etree._Element) -> None:
        """Characters, and how they are read in brackets after them."""
        for base in _within(ruby, "rubybase"):
            self._inline(base)
        reading = "".join(e.text or "" for rt in _within(ruby, "rt") for e in rt.iter() if local(e) == "t")
        self._line.put(f"({reading})" if reading else "")

    def _run(self, run: etree._Element) -> None:
        properties = child(run, "rpr")
        if is_on(child(properties, "vanish")) and not is_on(child(properties, "specvanish")):
            return
        raised = attribute(child_or(properties, "vertalign"), "val") == "superscript"
        for item in run:
            self._run_item(item, raised)

    def _run_item(self, item: etree._Element, raised: bool) -> None:
        name, line = local(item), self._line
        if name == "t":
            self._pages.text()
            line.put(_raised(item.text or "") if raised else item.text or "")
        elif name in ("tab", "ptab"):
            line.put("\t")
        elif name in ("br", "cr"):
            if attribute(item, "type") == "page":
                self._page(self._pages.broken())
            line.put("\n" if attribute(item, "type") in ("", "textWrapping") else " ")
        elif name == "lastrenderedpagebreak":
            self._page(self._pages.rendered())
        elif name == "nobreakhyphen":
            line.put("-")
        elif name == "sym":
            line.put(symbol(attribute(item, "font"), attribute(item, "char")))
        elif name in ("footnotereference", "endnotereference"):
            self._call_note(name.removesuffix("reference"), item)
        elif name == "fldchar":
            self._field(attribute(item, "fldchartype"))
        elif name == "ruby":
            self._ruby(item)
        elif name == "alternatecontent":
            for inner in chosen(item) if chosen(item) is not None else ():
                self._run_item(inner, raised)
        elif name in ("drawing", "pict", "object"):
            self._drawing(item)

    def _page(self, label: str | None) -> None:
        if label is not None:
            self._line.pages.append((self._line.length, label))

    def _field(self, kind: str) -> None:
        fields = self._line.fields
        if kind == "begin":
            fields.append(False)
        elif kind == "separate" and fields:
            fields[-1] = True
        elif kind == "end" and fields:
            fields.pop()

    def _drawing(self, drawing: etree._Element) -> None:
        """Texts of pictures go into the line, of boxes, charts and diagrams after the paragraph."""
        for element in _shown(drawing):
            name = local(element)
            if name in ("docpr", "shape", "rect", "oval") and not is_on(child(element, "hidden")):
                text = " ".join((attribute(element, "descr") or attribute(element, "alt")).split())
                self._line.put(f"[{text}]" if text else "")
            elif name == "textpath":
                self._line.put(attribute(element, "string"))
            elif name == "txbxcontent":
                self._line.boxes.append(element)
        self._line.boxes += [text for text in self._parts.drawn(self._main, drawing) if text]

    def _call_note(self, kind: str, reference: etree._Element) -> None:
        id = attribute(reference, "id")
        if attribute(reference, "custommarkfollows") in ("1", "true"):
            label = "".join(e.text or "" for e in reference.getparent().iter() if local(e) == "t") or "*"
        else:
            self._numbers[kind] += 1
            label = numeral(self._numbers[kind], "i" if kind == "endnote" else "1")
            self._line.put(f"[{label}]")
        if id in self._notes[kind]:
            self._line.notes.append((kind, id, label))

    def _find_notes(self, kind: str) -> dict[str, etree._Element]:
        root = next((self._parts.xml(part) for part in self._parts.related(self._main, f"{kind}s")), None)
        return {attribute(e, "id"): e for e in root if local(e) == kind} if root is not None else {}

    def _note(self, kind: str, id: str, label: str) -> Iterator[Block]:
        text = self._flat(self._notes[kind].get(id), " ")
        if text:
            yield Block(f"[{label}] {text}", counted=False, joined=True)

    def _flat(self, element: etree._Element | None, between: str) -> str:
        """The text of what is put elsewhere: a note, a cell."""
        state = self._line, self._before
        self._line, self._before = _Line(), ""
        found = [" ".join(block.text.split()) for block in self.read(element)]
        self._line, self._before = state
        return between.join(found)

    def _chunk(self, element: etree._Element) -> Iterator[Block]:
        """A web page or text that Word takes in when it opens the file."""
        part = self._parts.target(self._main, attribute(element, "id"))
        if part is None:
            return
        if part.lower().endswith((".html", ".htm", ".xhtml")):
            yield from html.page(self._parts.bytes(part), About())
        elif part.lower().endswith(".txt"):
            yield Block(self._parts.bytes(part).decode("utf-8", "replace"))
        else:
            self._about.skipped.append((part, "a file inside the file; add it by itself"))

    def _table(self, table: etree._Element) -> Iterator[Block]:
        rows = [_cells(row) for row in _within(table, "tr") if not is_there(row, "trpr", "del")]
        if self._is_layout(rows):
            for row in rows:
                for cell in row:
                    yield from self.read(cell)
            return
        lines, pages, after, length = [], [], _Line(), 0
        for row in rows:
            texts, column = [], 0
            for cell in row:
                texts += [*[""] * (column - len(texts)), self._cell(cell, after)]
                column += _columns(cell)
                pages += [(length, label) for _, label in after.pages]
                after.pages.clear()
            line = " | ".join(texts).strip()
            if line.strip(" |"):
                lines.append(line)
                length += len(line) + 1
        if lines:
            yield Block("\n".join(lines), pages=tuple(pages))
            self._before = ""
        yield from self._after(after)

    def _cell(self, cell: etree._Element, after: _Line) -> str:
        """The text of a cell on one line; its pages, boxes and notes are added to `after`."""
        if is_there(cell, "tcpr", "vmerge") and attribute(child(cell, "tcpr", "vmerge"), "val") != "restart":
            return ""
        texts = []
        for element in cell:
            if local(element) not in ("p", "sdt", "ins", "customxml"):
                continue
            state, self._line = self._line, _Line()
            for paragraph in [element] if local(element) == "p" else _within(element, "p"):
                texts.append(self._styles.marker(child(paragraph, "ppr"))[0])
                self._inline(paragraph)
                self._line.put("\n")
            texts.append("".join(self._line.text))
            after.pages += self._line.pages
            after.boxes += self._line.boxes
            after.notes += self._line.notes
            self._line = state
        return " ".join("".join(texts).split())

    def _is_layout(self, rows: list[list[etree._Element]]) -> bool:
        """True for a table that only places text: one column, tables or headings in cells, very long cells."""
        if max(map(len, rows), default=0) <= 1:
            return True
        for row in rows:
            for cell in row:
                size = sum(len(e.text or "") for e in cell.iter() if local(e) == "t")
                if size > LONGEST_ROW or any(local(e) == "tbl" for e in cell.iterdescendants()):
                    return True
        return False


def child_or(element: etree._Element | None, name: str) -> Any:
    """The child of this name, or an element without attributes."""
    found = child(element, name)
    return etree.Element("none") if found is None else found


def is_there(element: etree._Element, *path: str) -> bool:
    """True when the path leads to an element."""
    return child(element, *path) is not None


def _within(element: etree._Element, name: str) -> Iterator[etree._Element]:
    """The rows, cells or paragraphs of an element, those in content controls and insertions too."""
    for item in element:
        if local(item) == name:
            yield item
        elif local(item) in ("sdt", "sdtcontent", "ins", "moveto", "customxml", "smarttag"):
            yield from _within(item, name)


def _cells(row: etree._Element) -> list[etree._Element]:
    return list(_within(row, "tc"))


def _columns(cell: etree._Element) -> int:
    """How many columns a cell fills."""
    value = attribute(child_or(child(cell, "tcpr"), "gridspan"), "val")
    return min(max(int(value), 1), MOST_COLUMNS) if value.isascii() and value.isdecimal() else 1


def _shown(drawing: etree._Element) -> Iterator[etree._Element]:
    """The elements of a drawing, without the twins for older versions and not into text boxes."""
    for element in drawing:
        if local(element) == "alternatecontent":
            if (found := chosen(element)) is not None:
                yield from _shown(found)
            continue
        yield element
        if local(element) != "txbxcontent":
            yield from _shown(element)


def _raised(text: str) -> str:
    digits = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")
    return text.translate(digits) if text.strip("0123456789+-−n") == "" else text
