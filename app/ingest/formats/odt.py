"""OpenDocument texts: paragraphs, lists, tables and notes of content.xml, as LibreOffice shows them."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from app.ingest.blocks import About, Block, Refused
from app.ingest.formats.formulas import from_mathml
from app.ingest.formats.lists import BULLET, numeral
from app.ingest.formats.office import child
from app.ingest.formats.package import Package
from app.ingest.formats.parse import attribute, local

_UNREAD = frozenset(
    """tracked-changes annotation annotation-end sequence-decls variable-decls user-field-decls forms note
    table-of-content-source illustration-index-source alphabetical-index-source bibliography-source shapes""".split()
)
_LAYOUT = ("table", "h")  # in a cell: the table only places text


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The paragraphs of a text document; notes stand under the paragraph that calls them.

    Raises:
        Refused: it is damaged, encrypted, or no text document.
    """
    package = Package(path)
    manifest = package.xml("META-INF/manifest.xml")
    if manifest is not None and any(local(e) == "encryption-data" for e in manifest.iter()):
        raise Refused("encrypted with a password; open it with its password, save a copy without one and add that")
    root = package.xml("content.xml")
    body = child(root, "body", "text")
    if body is None:
        raise Refused("no text document (content.xml holds no office:text); save it again as .odt, or as PDF")
    styles = package.xml("styles.xml")
    yield from _Text(package, [tree for tree in (root, styles) if tree is not None]).read(body, about)
    comments = sum(1 for e in body.iter() if local(e) == "annotation")
    if comments:
        about.notes.append(f"{comments:,} comments are not read")


class _Lists:
    """Numbers of list items and headings."""

    def __init__(self, trees: list[etree._Element]) -> None:
        self._styles: dict[str, dict[int, etree._Element]] = {}
        self._of_style: dict[str, str] = {}  # paragraph style -> list style
        for tree in reversed(trees):  # what the document says itself comes last
            for element in tree.iter():
                if local(element) in ("list-style", "outline-style"):
                    name = "" if local(element) == "outline-style" else attribute(element, "name")
                    self._styles[name] = {int(attribute(e, "level") or 1): e for e in element}
                elif local(element) == "style" and attribute(element, "list-style-name"):
                    self._of_style[attribute(element, "name")] = attribute(element, "list-style-name")
        self.counts: dict[str, dict[int, int]] = {}

    def has(self, style: str) -> bool:
        return style in self._styles

    def marker(self, style: str, level: int, start: str) -> str:
        """Count an item and return what stands before it."""
        levels = self._styles.get(style, {})
        own = levels.get(level)
        counts = self.counts.setdefault(style, {})
        first = int(attribute(own, "start-value") or 1) if own is not None else 1
        counts[level] = int(start) if start.isdecimal() else counts.get(level, first - 1) + 1
        for deeper in [depth for depth in counts if depth > level]:
            del counts[deeper]
        if own is None or local(own) == "list-level-style-image":
            return BULLET if style else ""
        if local(own) == "list-level-style-bullet":
            return BULLET
        if not attribute(own, "num-format"):
            return f"{attribute(own, 'num-prefix')}{attribute(own, 'num-suffix')} ".lstrip()
        shown = range(max(1, level - int(attribute(own, "display-levels") or 1) + 1), level + 1)
        numbers = [
            numeral(counts.get(depth, 1), attribute(levels[depth], "num-format"))
            for depth in shown
            if depth in levels and attribute(levels[depth], "num-format")
        ]
        return f"{attribute(own, 'num-prefix')}{'.'.join(numbers)}{attribute(own, 'num-suffix')} "


class _Text:
    """Walks the body of one file."""

    def __init__(self, package: Package, trees: list[etree._Element]) -> None:
        self._package, self._lists = package, _Lists(trees)
        self._page_known = any(local(e) == "soft-page-break" for e in trees[0].iter())
        self._page = 1
        self._line: list[str] = []
        self._after: list[Block | etree._Element] = []
        self._pages: list[tuple[int, str]] = [(0, "1")] if self._page_known else []
        self._indent = ""
        self._in_list = False

    def read(self, element: etree._Element, about: About | None = None) -> Iterator[Block]:
        """The blocks of the body, a section, a text box or a cell."""
        for done, item in enumerate(element):
            if about is not None:
                about.done, about.total = done, len(element)
            name = local(item)
            if name in _UNREAD:
                continue
            if name == "p":
                yield from self._paragraph(item, 0)
            elif name == "h":
                yield from self._paragraph(item, int(attribute(item, "outline-level") or 1))
            elif name == "list":
                yield from self._list(item, attribute(item, "style-name"), 1)
            elif name == "table":
                yield from self._table(item)
            elif name == "soft-page-break":
                self._break()
            elif name in ("frame", "custom-shape", "g", "rect", "text-box", "image", "object"):
                self._drawing(item)
                yield from self._end(0)
            else:
                yield from self.read(item)

    def _paragraph(self, element: etree._Element, level: int) -> Iterator[Block]:
        if level and self._lists.has("") and attribute(element, "is-list-header") != "true" and not self._indent:
            marker = self._lists.marker("", level, attribute(element, "start-value"))
            self._line.append(marker)
        self._inline(element)
        yield from self._end(level)

    def _end(self, level: int) -> Iterator[Block]:
        text = "".join(self._line)
        after, self._line, self._after = self._after, [], []
        if text.strip():
            pages, self._pages = tuple((at + len(self._indent) if at else 0, label) for at, label in self._pages), []
            chapter = text if level else None
            yield Block(self._indent + text, chapter, pages=pages, counted=not level, joined=self._in_list)
            self._indent = "  " * (len(self._indent) - len(self._indent.lstrip()) > 0)
        for item in after:
            if isinstance(item, Block):
                yield item
            else:
                yield from self.read(item)

    def _break(self) -> None:
        self._page += 1
        self._pages.append((sum(map(len, self._line)), str(self._page)))

    def _inline(self, element: etree._Element) -> None:
        self._put(element.text)
        for item in element:
            name = local(item)
            if name == "s":
                self._line.append(" " * min(int(attribute(item, "c") or 1), 100))
            elif name == "tab":
                self._line.append("\t")
            elif name == "line-break":
                self._line.append("\n")
            elif name == "soft-page-break":
                self._break()
            elif name == "note":
                self._note(item)
            elif name == "ruby":
                for part in item:
                    reading = "".join(part.itertext())
                    self._line.append(f"({reading})" if local(part) == "ruby-text" and reading else "")
                    self._inline(part) if local(part) == "ruby-base" else None
            elif name in ("frame", "custom-shape", "g", "rect", "ellipse", "polygon", "path", "line"):
                self._drawing(item)
            elif name not in _UNREAD and name != "hidden-text":
                self._inline(item)
            self._put(item.tail)

    def _put(self, text: str | None) -> None:
        """White space in the file is one blank; more is written as elements."""
        if text:
            text = " ".join(f"_{text}_".split())[1:-1]
            before = next((piece[-1] for piece in reversed(self._line) if piece), " ")
            self._line.append(text.removeprefix(" ") if before.isspace() else text)

    def _note(self, note: etree._Element) -> None:
        citation, body = child(note, "note-citation"), child(note, "note-body")
        label = (attribute(citation, "label") or "".join(citation.itertext())) if citation is not None else "note"
        self._line.append(f"[{label}]")
        text = self._flat(body) if body is not None else ""
        if text:
            self._after.append(Block(f"[{label}] {text}", counted=False, joined=True))

    def _flat(self, element: etree._Element) -> str:
        """The text of a note or a cell on one line; what hangs on it comes after the paragraph or table."""
        state = self._line, self._after, self._pages, self._indent, self._in_list
        self._line, self._after, self._pages, self._indent, self._in_list = [], [], [], "", False
        text = " ".join(" ".join(block.text.split()) for block in self.read(element))
        pages = self._pages
        self._line, self._after, self._pages, self._indent, self._in_list = state
        self._pages += pages
        return text

    def _drawing(self, drawing: etree._Element) -> None:
        """A picture's text goes into the line, a text box after the paragraph, a formula where it stands."""
        for item in drawing:
            name = local(item)
            if name == "object" and (formula := self._formula(item)):
                self._line.append(formula)
                return
            if name == "text-box" or name in ("p", "list") and local(drawing) != "frame":
                self._after.append(item if name == "text-box" else _wrapped(item))
            elif name in ("frame", "custom-shape", "g", "rect", "ellipse", "polygon", "path", "line"):
                self._drawing(item)
        found = next((child(drawing, name) for name in ("desc", "title") if child(drawing, name) is not None), None)
        text = " ".join("".join(found.itertext()).split()) if found is not None else ""
        self._line.append(f"[{text}]" if text else "")

    def _formula(self, item: etree._Element) -> str:
        inline = next((e for e in item.iter() if local(e) == "math"), None)
        if inline is None:
            place = attribute(item, "href").removeprefix("./").rstrip("/")
            root = self._package.xml(f"{place}/content.xml") if place else None
            inline = root if root is not None and local(root) == "math" else None
        return from_mathml(inline) if inline is not None else ""

    def _list(self, element: etree._Element, style: str, level: int) -> Iterator[Block]:
        continued = attribute(element, "continue-numbering") == "true" or attribute(element, "continue-list")
        if level == 1 and not continued:
            self._lists.counts.pop(style, None)
        was = self._in_list
        for item in element:
            if local(item) not in ("list-item", "list-header"):
                continue
            marker = ""
            if local(item) == "list-item" and any(local(e) in ("p", "h") for e in item):
                marker = self._lists.marker(style, level, attribute(item, "start-value"))
            self._indent = "  " * (level - 1) + marker
            for inner in item:
                if local(inner) == "list":
                    yield from self._list(inner, attribute(inner, "style-name") or style, level + 1)
                else:
                    for block in self.read(_wrapped(inner)):
                        yield block
                        self._in_list = True
        self._in_list, self._indent = was or level > 1, ""

    def _table(self, table: etree._Element) -> Iterator[Block]:
        rows = list(_rows(table))
        cells = [cell for row in rows for cell in row]
        if max(map(len, rows), default=0) <= 1 or any(local(e) in _LAYOUT for c in cells for e in c.iterdescendants()):
            for cell in cells:
                yield from self.read(cell)
            return
        lines: list[str] = []
        after: list[Block | etree._Element] = []
        for row in rows:
            texts = []
            for cell in row:
                state, self._after = self._after, []
                texts.append(self._cell(cell))
                after += self._after
                self._after = state
            if any(texts):
                lines.append(" | ".join(texts).strip())
        if lines:
            pages, self._pages = tuple((0, label) for _, label in self._pages), []
            yield Block("\n".join(lines), pages=pages)
        self._after += after
        yield from self._end(0)

    def _cell(self, cell: etree._Element) -> str:
        if local(cell) == "covered-table-cell":
            return ""
        return self._flat(cell)


def _wrapped(element: etree._Element) -> list[etree._Element]:
    """An element where a list of elements is walked."""
    return [element]


def _rows(table: etree._Element) -> Iterator[list[etree._Element]]:
    for item in table:
        if local(item) == "table-row":
            yield [cell for cell in item if local(cell) in ("table-cell", "covered-table-cell")]
        elif local(item) in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(item)
