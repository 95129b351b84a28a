"""Printed pages of Word files: only those that Word itself noted when it last laid the file out."""

from lxml import etree

from app.ingest.formats.lists import numeral
from app.ingest.formats.office import child
from app.ingest.formats.parse import attribute, local

_FORMS = {"lowerLetter": "a", "upperLetter": "A", "lowerRoman": "i", "upperRoman": "I"}


class Pages:
    """Counts pages while a document is walked; labels are None where Word noted none."""

    def __init__(self, root: etree._Element) -> None:
        self._known = any(local(element) == "lastrenderedpagebreak" for element in root.iter())
        sections = [element for element in root.iter() if local(element) == "sectpr"]
        self._sections = [child(section, "pgnumtype") for section in sections]
        self._number = 0
        self._restart: int | None = self._start() or 1
        self._broken = False  # a break was set, and no text since
        self._begun = False

    def end_section(self) -> None:
        """The section that is open ends with this paragraph."""
        self._sections = self._sections[1:]
        self._restart = self._start()

    def text(self) -> None:
        """Text follows."""
        self._broken = False

    def broken(self) -> str | None:
        """The label of the page that an explicit break begins."""
        self._broken = True
        return self._next()

    def rendered(self) -> str | None:
        """The label of the page that a noted break begins; None when an explicit one has begun it already."""
        if self._broken:
            return None
        return self._next()

    def first(self) -> str | None:
        """The label of the first page, once."""
        if self._begun or not self._known:
            return None
        self._begun = True
        return self._next()

    def _next(self) -> str | None:
        if not self._known:
            return None
        self._begun = True
        self._number = self._number + 1 if self._restart is None else self._restart
        self._restart = None
        form = attribute(self._sections[0], "fmt") if self._sections and self._sections[0] is not None else ""
        return numeral(self._number, _FORMS.get(form, "1"))

    def _start(self) -> int | None:
        found = attribute(self._sections[0], "start") if self._sections and self._sections[0] is not None else ""
        return int(found) if found.isdecimal() else None
