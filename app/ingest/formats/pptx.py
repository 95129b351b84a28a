"""PowerPoint files: what stands on each slide, in the order of its place, and the speaker's notes."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from app.ingest.blocks import About, Block, Refused
from app.ingest.formats.formulas import from_omml
from app.ingest.formats.lists import BULLET, numeral
from app.ingest.formats.office import Parts, child, chosen
from app.ingest.formats.package import Package
from app.ingest.formats.parse import attribute, local

ROWS = 24  # of a slide: shapes that begin in one row are read from the left
_TITLES = ("title", "ctrTitle")
_FURNITURE = ("sldNum", "dt", "ftr", "hdr", "sldImg")  # the same on every slide
_NUMBERS = {"alphaLc": "a", "alphaUc": "A", "romanLc": "i", "romanUc": "I"}


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The shapes of each slide, one part per slide; its title is the chapter.

    Raises:
        Refused: it is damaged, encrypted, no PowerPoint file, or has no slides.
    """
    parts = Parts(Package(path))
    main = parts.main("presentation")
    root = parts.xml(main)
    size = child(root, "sldsz")
    height = int(attribute(size, "cy") or 0) if size is not None else 0
    listed = child(root, "sldidlst")
    ids = [_relation(element) for element in (listed if listed is not None else ())]
    slides = [target for id in ids if (target := parts.target(main, id))]
    if not slides:
        raise Refused("this presentation has no slides (0); choose one with text in it")
    about.total = len(slides)
    for number, part in enumerate(slides, start=1):
        about.done = number
        root = parts.xml(part)
        if root is None:
            about.skipped.append((f"slide {number}", "it is not in the file"))
            continue
        yield from _Slide(parts, part, height or 6_858_000).read(root, f"slide {number}")


def _relation(element: etree._Element) -> str:
    return next((value for key, value in element.attrib.items() if key.endswith("}id")), "")


class _Slide:
    """Reads one slide."""

    def __init__(self, parts: Parts, part: str, height: int) -> None:
        self._parts, self._part, self._height = parts, part, height
        layout = next(iter(parts.related(part, "slideLayout")), "")
        master = next(iter(parts.related(layout, "slideMaster")), "") if layout else ""
        self._above = [root for name in (layout, master) if name and (root := parts.xml(name)) is not None]

    def read(self, root: etree._Element, place: str) -> Iterator[Block]:
        """The blocks of the slide and of its notes."""
        opens = True
        for shape in self._ordered(child(root, "csld", "sptree")):
            text = self._text(shape)
            if not text.strip():
                continue
            title = " ".join(text.split()) if opens and _placeholder(shape) in _TITLES else None
            yield Block(text, title if title else "" if opens else None, opens=opens, place=place)
            opens = False
        for notes in self._parts.related(self._part, "notesSlide"):
            self._above = []
            tree = child(self._parts.xml(notes), "csld", "sptree")
            text = "\n".join(filter(str.strip, (self._text(shape) for shape in self._ordered(tree))))
            if text:
                yield Block(f"Notes: {text}", "" if opens else None, opens=opens, place=place)
                opens = False

    def _ordered(self, tree: etree._Element | None) -> list[etree._Element]:
        """The shapes that are read, the title first, then from top to bottom and left to right."""
        found = []
        for element in tree if tree is not None else ():
            shape = chosen(element) if local(element) == "alternatecontent" else element
            inner = list(shape) if local(element) == "alternatecontent" and shape is not None else [shape]
            found += [s for s in inner if s is not None and local(s) in ("sp", "grpsp", "graphicframe", "pic", "cxnsp")]
        found = [s for s in found if _placeholder(s) not in _FURNITURE and not _is_hidden(s)]
        return sorted(found, key=lambda shape: (_placeholder(shape) not in _TITLES, *self._place(shape)))

    def _place(self, shape: etree._Element) -> tuple[int, int, int]:
        """(row, distance from the left, from the top), of a placeholder that does not say it that of its layout."""
        own = shape, *(self._inherited(shape, root) for root in self._above)
        for element in own:
            found = next((e for e in element.iter() if local(e) == "off"), None) if element is not None else None
            if found is not None:
                x, y = attribute(found, "x"), attribute(found, "y")
                if x.lstrip("-").isdecimal() and y.lstrip("-").isdecimal():
                    return int(y) * ROWS // self._height, int(x), int(y)
        return ROWS, 0, 0

    def _inherited(self, shape: etree._Element, root: etree._Element) -> etree._Element | None:
        own = next((e for e in shape.iter() if local(e) == "ph"), None)
        if own is None:
            return None
        others = [element for element in root.iter() if local(element) == "ph"]
        index, kind = attribute(own, "idx"), attribute(own, "type")
        found = next((other for other in others if index and attribute(other, "idx") == index), None)
        if found is None:
            found = next((other for other in others if attribute(other, "type") == kind), None)
        return None if found is None else next((e for e in found.iterancestors() if local(e) == "sp"), None)

    def _text(self, shape: etree._Element) -> str:
        name = local(shape)
        if name == "grpsp":
            return "\n".join(filter(str.strip, (self._text(inner) for inner in self._ordered(shape))))
        lines = [line for body in shape if local(body) == "txbody" for line in _paragraphs(body)]
        if name == "pic":
            lines.append(_alternative(shape))
        if name == "graphicframe":
            lines += [line for table in shape.iter() if local(table) == "tbl" for line in _rows(table)]
            lines += self._parts.drawn(self._part, shape)
            if not any(map(str.strip, lines)):
                lines.append(_alternative(shape))
        return "\n".join(filter(str.strip, lines))


def _placeholder(shape: etree._Element) -> str:
    """The kind of placeholder that a shape is; "" for none."""
    if local(shape) == "grpsp":
        return ""
    found = next((e for e in shape.iter() if local(e) == "ph"), None)
    return "" if found is None else attribute(found, "type") or "obj"


def _properties(shape: etree._Element) -> etree._Element | None:
    return next((e for e in shape.iter() if local(e) == "cnvpr"), None)


def _is_hidden(shape: etree._Element) -> bool:
    found = _properties(shape)
    return found is not None and attribute(found, "hidden") in ("1", "true")


def _alternative(shape: etree._Element) -> str:
    found = _properties(shape)
    text = " ".join(attribute(found, "descr").split()) if found is not None else ""
    return f"[{text}]" if text else ""


def _paragraphs(body: etree._Element) -> list[str]:
    """A line per paragraph, with its own bullet or number."""
    lines: list[str] = []
    counts: dict[int, int] = {}
    for paragraph in body:
        if local(paragraph) != "p":
            continue
        text = _inline(paragraph)
        properties = child(paragraph, "ppr")
        depth = int(attribute(properties, "lvl") or 0) if properties is not None else 0
        auto = child(properties, "buautonum")
        counts = {
            level: count for level, count in counts.items() if level < depth or level == depth and auto is not None
        }
        if not text.strip():
            continue
        marker = BULLET if child(properties, "buchar") is not None else ""
        if auto is not None:
            counts[depth] = counts.get(depth, int(attribute(auto, "startat") or 1) - 1) + 1
            marker = _numbered(counts[depth], attribute(auto, "type"))
        lines.append("  " * depth * bool(marker) + marker + text)
    return lines


def _numbered(number: int, form: str) -> str:
    style = next((letter for name, letter in _NUMBERS.items() if form.startswith(name)), "1")
    text = numeral(number, style)
    if form.endswith("ParenBoth"):
        return f"({text}) "
    return f"{text}{')' if form.endswith('ParenR') else '' if form.endswith('Plain') else '.'} "


def _inline(element: etree._Element) -> str:
    """The text of a paragraph: runs, breaks, fields and formulas."""
    found = []
    for item in element:
        name = local(item)
        if name == "r":
            text = "".join(t.text or "" for t in item if local(t) == "t")
            found.append(text.replace("_x000B_", "\n").replace("\v", "\n"))
        elif name == "br":
            found.append("\n")
        elif name == "fld" and attribute(item, "type") != "slidenum":
            found.append("".join(t.text or "" for t in item if local(t) == "t"))
        elif name in ("omath", "omathpara"):
            found.append(from_omml(item))
        elif name == "alternatecontent":
            inner = chosen(item)
            found.append(_inline(inner) if inner is not None else "")
        elif name == "m":
            found.append(_inline(item))
    return "".join(found)


def _rows(table: etree._Element) -> Iterator[str]:
    for row in table:
        if local(row) == "tr":
            cells = [cell for cell in row if local(cell) == "tc"]
            texts = ["" if _is_merged(cell) else _cell(cell) for cell in cells]
            yield " | ".join(texts).strip() if any(texts) else ""


def _cell(cell: etree._Element) -> str:
    return " ".join(" ".join(line for body in cell if local(body) == "txbody" for line in _paragraphs(body)).split())


def _is_merged(cell: etree._Element) -> bool:
    return any(attribute(cell, name) in ("1", "true") for name in ("hmerge", "vmerge"))
