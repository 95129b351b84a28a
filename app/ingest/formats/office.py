"""What Word and PowerPoint files share: parts and their relations, charts, diagrams, symbols, hidden twins."""

import posixpath
from collections.abc import Iterator

from lxml import etree

from app.ingest.blocks import Refused
from app.ingest.formats.package import Package, resolve
from app.ingest.formats.parse import attribute, local

# Letters of the Symbol font as Unicode; Word keeps them in the private area from U+F000 on.
_SYMBOL = dict(zip("abcdefghijklmnopqrstuvwxyz", "αβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True))
_SYMBOL |= dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ", strict=True))
_SYMBOL |= {"\xb7": "•", "\xb3": "≥", "\xa3": "≤", "\xb1": "±", "\xa5": "∞", "\xb0": "°", "\xb4": "×", "\xb8": "÷"}
_SYMBOL |= {"\xb9": "≠", "\xba": "≡", "\xbb": "≈", "\xae": "→", "\xac": "←", "\xde": "⇒", "\xce": "∈", "\xe5": "∑"}
_WINGDINGS = {"\xa8": "□", "\xfc": "✓", "\xfb": "✗", "\xfe": "☑", "\xe0": "→", "\xa7": "▪", "\xd8": "➢", "\x6f": "□"}


class Parts:
    """The parts of an office file, by their relations to each other."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._relations: dict[str, dict[str, tuple[str, str]]] = {}

    def main(self, what: str) -> str:
        """The part that all others hang on.

        Raises:
            Refused: there is none, or it is no `what` ("word", "presentation").
        """
        target = self.related("", "officeDocument")
        content = self._package.xml("[Content_Types].xml")
        kinds = [attribute(e, "contenttype") for e in content.iter()] if content is not None else []
        if not target or not any(what in kind and "main+xml" in kind for kind in kinds):
            raise Refused("not an office file of its kind, or damaged; save it again where it was made")
        return target[0]

    def xml(self, part: str | None) -> etree._Element | None:
        """The root of a part, None when there is no such part."""
        return self._package.xml(part) if part else None

    def bytes(self, part: str) -> bytes:
        """The bytes of a part."""
        return self._package.read(part)

    def related(self, part: str, kind: str) -> list[str]:
        """The parts that a part names in relations whose type ends in `kind`, in order."""
        return [target for type, target in self._of(part).values() if type.endswith(f"/{kind}")]

    def target(self, part: str, id: str) -> str | None:
        """The part that a relation of a part leads to."""
        found = self._of(part).get(id)
        return found[1] if found else None

    def _of(self, part: str) -> dict[str, tuple[str, str]]:
        if part not in self._relations:
            folder, name = posixpath.split(part)
            root = self._package.xml(posixpath.join(folder, "_rels", f"{name}.rels"))
            self._relations[part] = {
                attribute(e, "id"): (attribute(e, "type"), resolve(part, attribute(e, "target"))[0])
                for e in (root if root is not None else ())
                if local(e) == "relationship" and attribute(e, "targetmode").lower() != "external"
            }
        return self._relations[part]

    def drawn(self, part: str, drawing: etree._Element) -> Iterator[str]:
        """Texts of the charts and diagrams that a drawing shows."""
        for element in drawing.iter():
            if local(element) == "chart" and (target := self.target(part, attribute(element, "id"))):
                yield chart_text(self.xml(target))
            elif local(element) == "relids" and (target := self.target(part, attribute(element, "dm"))):
                yield diagram_text(self.xml(target))


def chart_text(root: etree._Element | None) -> str:
    """Title, axes' titles, and one line per row of a chart: its category and a value per series."""
    if root is None:
        return ""
    titles = []
    for title in root.iter():
        if local(title) == "title":
            titles.append(" ".join("".join(e.text or "" for e in p.iter() if local(e) == "t") for p in title.iter()
                                   if local(p) == "p").strip())  # fmt: skip
    series = [element for element in root.iter() if local(element) == "ser"]
    columns = [["", *_points(one, "cat", "xval")] for one in series[:1]]
    columns += [[" ".join(_points(one, "tx")), *_points(one, "val", "yval")] for one in series]
    height = max(map(len, columns), default=0)
    rows = [" | ".join(column[i] if i < len(column) else "" for column in columns).strip() for i in range(height)]
    return "\n".join(filter(lambda line: line.strip(" |"), [*titles, *rows]))


def _points(series: etree._Element, *names: str) -> list[str]:
    for child in series:
        if local(child) in names:
            return [e.text or "" for e in child.iter() if local(e) == "v"]
    return []


def diagram_text(root: etree._Element | None) -> str:
    """The texts of a diagram's (SmartArt) points, in the order in which its data names them."""
    lines = []
    for point in root.iter() if root is not None else ():
        if local(point) == "pt" and attribute(point, "type") not in ("pres", "sibTrans", "parTrans"):
            lines.append("".join(e.text or "" for e in point.iter() if local(e) == "t"))
    return "\n".join(filter(str.strip, lines))


def chosen(alternatives: etree._Element) -> etree._Element | None:
    """Of `mc:AlternateContent` the part that is read: the first choice that holds anything, else the fallback."""
    found = [child for child in alternatives if local(child) in ("choice", "fallback") and len(child)]
    return found[0] if found else None


def symbol(font: str, code: str) -> str:
    """A character that is named by its font and number."""
    try:
        char = chr(int(code, 16))
    except (ValueError, OverflowError):
        return ""
    if "\uf000" <= char <= "\uf0ff":
        char = chr(ord(char) - 0xF000)
        table = _SYMBOL if "symbol" in font.lower() else _WINGDINGS if "wingdings" in font.lower() else {}
        return table.get(char, char if not table and char.isprintable() else "•")
    return char


def is_on(element: etree._Element | None) -> bool:
    """True for a property that is there and not turned off."""
    return element is not None and attribute(element, "val").lower() not in ("0", "false", "off", "none")


def child(element: etree._Element | None, *path: str) -> etree._Element | None:
    """The first child of this name, and so on down the path; None where it ends."""
    for name in path:
        if element is None:
            return None
        element = next((inner for inner in element if local(inner) == name), None)
    return element
