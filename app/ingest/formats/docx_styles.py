"""Styles and numbers of Word files: which paragraphs are headings, and what stands before a list item."""

from dataclasses import dataclass, field, replace

from lxml import etree

from app.ingest.formats.lists import BULLET, numeral
from app.ingest.formats.office import Parts, child
from app.ingest.formats.parse import attribute, local

DEEPEST = 20  # styles that a style is based on
_FORMS = {"lowerLetter": "a", "upperLetter": "A", "lowerRoman": "i", "upperRoman": "I"}
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True)
class Level:
    """A level of a list: how it counts and what it shows ("%1.%2.")."""

    form: str = "decimal"
    text: str = ""
    start: int = 1
    plain: bool = False  # all numbers as digits


@dataclass
class _List:
    levels: dict[int, Level]
    counts: dict[int, int] = field(default_factory=dict)


class Styles:
    """Headings and list numbers of one file; numbers count on as paragraphs are asked about in order."""

    def __init__(self, parts: Parts, main: str) -> None:
        self._styles = {attribute(e, "styleid"): e for e in _children(parts, main, "styles") if local(e) == "style"}
        normal = [id for id, e in self._styles.items() if attribute(e, "default") in ("1", "true")]
        self.default = next((id for id in normal if attribute(self._styles[id], "type") == "paragraph"), "")
        numbering = list(_children(parts, main, "numbering"))
        abstract = {attribute(e, "abstractnumid"): e for e in numbering if local(e) == "abstractnum"}
        self._lists: dict[str, _List] = {}
        self._numbers: dict[str, tuple[str, dict[int, int]]] = {}  # number -> (list, starts of its own)
        for element in numbering:
            if local(element) == "num":
                self._add_number(element, abstract)
        self._begun: set[str] = set()

    def name(self, style: str) -> str:
        """A style's name as Word knows it, lower case."""
        return _value(child(self._styles.get(style), "name")).lower()

    def heading(self, properties: etree._Element | None) -> int:
        """The level of a paragraph's heading, 1 is the highest; 0: it is none."""
        style = _value(child(properties, "pstyle")) or self.default
        for element in (properties, *(child(s, "ppr") for s in self._chain(style))):
            level = _value(child(element, "outlinelvl"))
            if level.isdecimal():
                return int(level) + 1 if int(level) < 9 else 0
        names = [_value(child(s, "name")).lower() for s in self._chain(style)]
        found = next((name for name in names if name == "title" or name.startswith("heading ")), "")
        number = found.rpartition(" ")[2]
        return int(number) if number.isdecimal() else int(bool(found))

    def marker(self, properties: etree._Element | None) -> tuple[str, int]:
        """What stands before a paragraph, and how deep in its list it is; counts the paragraph."""
        style = _value(child(properties, "pstyle")) or self.default
        number = level = ""
        for element in (properties, *(child(s, "ppr") for s in self._chain(style))):
            found = child(element, "numpr")
            number = number or _value(child(found, "numid"))
            level = level or _value(child(found, "ilvl"))
        if number not in self._numbers or not (level or "0").isdecimal():
            return "", 0
        depth = int(level or 0)
        return self._count(number, depth), depth

    def _chain(self, style: str) -> list[etree._Element]:
        found: list[etree._Element] = []
        while style in self._styles and len(found) < DEEPEST:
            found.append(self._styles[style])
            style = _value(child(found[-1], "basedon"))
        return found

    def _add_number(self, element: etree._Element, abstract: dict[str, etree._Element]) -> None:
        id = _value(child(element, "abstractnumid"))
        if id not in abstract:
            return
        link = _value(child(abstract[id], "numstylelink"))
        if link:  # the levels are those of a style's list
            id = next((key for key, e in abstract.items() if _value(child(e, "stylelink")) == link), id)
        levels = {int(attribute(e, "ilvl") or 0): _level(e) for e in abstract[id] if local(e) == "lvl"}
        starts: dict[int, int] = {}
        for change in element:
            if local(change) == "lvloverride":
                depth, start = int(attribute(change, "ilvl") or 0), _value(child(change, "startoverride"))
                if start.isdecimal():
                    starts[depth] = int(start)
                if (own := child(change, "lvl")) is not None:
                    levels[depth] = _level(own)
                    id = f"{id}#{attribute(element, 'numid')}"  # such a list counts by itself
        self._lists.setdefault(id, _List(levels))
        self._numbers[attribute(element, "numid")] = (id, starts)

    def _count(self, number: str, depth: int) -> str:
        id, starts = self._numbers[number]
        found = self._lists[id]
        level = found.levels.get(depth, Level())
        if number not in self._begun and starts:
            found.counts = {d: c for d, c in found.counts.items() if d not in starts}
            levels = found.levels.items()
            found.levels = {d: replace(one, start=starts.get(d, one.start)) for d, one in levels}
            level = found.levels.get(depth, level)
        self._begun.add(number)
        found.counts[depth] = found.counts[depth] + 1 if depth in found.counts else level.start
        found.counts = {d: c for d, c in found.counts.items() if d <= depth}
        if level.form == "bullet":
            return BULLET
        text = level.text
        for above in range(depth, -1, -1):
            own = found.levels.get(above, Level())
            count = found.counts.get(above, own.start)
            text = text.replace(f"%{above + 1}", _shown(count, "decimal" if level.plain else own.form))
        return f"{text} " if text else ""


def _level(element: etree._Element) -> Level:
    form, text = _value(child(element, "numfmt")), _value(child(element, "lvltext"))
    start = _value(child(element, "start"))
    plain = child(element, "islgl") is not None
    return Level(form or "decimal", text, int(start) if start.isdecimal() else 1, plain)


def _shown(count: int, form: str) -> str:
    if form in ("lowerLetter", "upperLetter") and count > 0:  # z is followed by aa, bb
        letters = chr(97 + (count - 1) % 26) * ((count - 1) // 26 + 1)
        return letters if form == "lowerLetter" else letters.upper()
    if form == "none":
        return ""
    if form == "decimalZero":
        return f"{count:02}"
    if form == "ordinal":
        return f"{count}{'th' if count % 100 in (11, 12, 13) else _ORDINALS.get(count % 10, 'th')}"
    return numeral(count, _FORMS.get(form, "1"))


def _children(parts: Parts, main: str, kind: str) -> list[etree._Element]:
    root = next((parts.xml(target) for target in parts.related(main, kind)), None)
    return list(root) if root is not None else []


def _value(element: etree._Element | None) -> str:
    return "" if element is None else attribute(element, "val")
