"""Focus and mute: documents, chapters, pages or files that the user names, as regions that an answer may see."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from app.chat.evidence import Attached, regions_of
from app.errors import InputError
from app.records import DocumentInfo, Evidence, Part

SHOWN = 12  # places that a message lists
EVERYTHING = "*"  # as a focus: what is muted by default is seen too
MOST_CHOICES = 400  # of one document: a list in a page must stay small

Parts = Callable[[str], Sequence[Part]]
Beside = Callable[[str], Mapping[str, frozenset[int]]]  # document to the kinds of its parts that are muted by default


@dataclass(frozen=True)
class Sight:
    """What an answer may see of the attached documents, as it was asked for.

    Attributes:
        focus: places that alone may be seen; all may when empty or with `EVERYTHING`, which alone mutes no licence.
        mute: places that may not be seen, even where they are in focus.
        without: id of a passage that may not be seen; "" for none.
    """

    focus: tuple[str, ...] = ()
    mute: tuple[str, ...] = ()
    without: str = ""

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> "Sight":
        """What an earlier answer was allowed to see, from its stats."""
        return cls(tuple(stats.get("focus", ())), tuple(stats.get("mute", ())), stats.get("without", ""))

    @property
    def words(self) -> str:
        """What the answer could see, for its user; "" when everything."""
        focus = [place for place in self.focus if place != EVERYTHING]
        facts = ["looked in front matter and licences too"] if EVERYTHING in self.focus else []
        facts += [f"looked only in {'; '.join(focus)}"] if focus else []
        facts += [f"did not look in {'; '.join(self.mute)}"] if self.mute else []
        facts += ["one passage was hidden"] if self.without else []
        return ", ".join(facts)

    @property
    def hides(self) -> bool:
        """Whether it leaves out anything."""
        return bool(set(self.focus) - {EVERYTHING} or self.mute or self.without)

    def __bool__(self) -> bool:
        return bool(self.focus or self.mute or self.without)


@dataclass(frozen=True)
class Place:
    """A place that was found.

    Attributes:
        name: document title and place, as it can be given again.
        parts: indices of the document's parts; None means all of them.
    """

    name: str
    document: str
    parts: frozenset[int] | None


def find_place(spec: str, attached: Sequence[Attached], parts: Parts) -> Place:
    """What a name stands for.

    Args:
        spec: `DOCUMENT` or `DOCUMENT#PLACE`. DOCUMENT is a title, an id or the beginning of one; PLACE a page label, a
            range of labels (`12-20`), a chapter title or its first words, a file, a folder, or a pattern (`src/*.py`).

    Raises:
        InputError: the document is not attached, or has no such place; the message lists what there is.
    """
    for cut in [len(spec), *(match.start() for match in re.finditer("#", spec))]:  # a title may hold the sign
        document = _document(spec[:cut], attached)
        if document is None:
            continue
        place = spec[cut + 1 :].strip()
        titles = [m.document.title for m in attached if m.document.id != document.id]
        name = document.id if document.title in titles else document.title
        if not place:
            return Place(name, document.id, None)
        known = parts(document.id)
        indices = _named_parts(place, known)
        if not indices:
            raise InputError(f"{spec}: {document.title} has no page, chapter or file {place!r}; it has {_list(known)}")
        return Place(f"{name}#{place}", document.id, indices)
    titles = "; ".join(dict.fromkeys(m.document.title for m in attached)) or "none"
    raise InputError(f"{spec}: no attached document is called {spec.partition('#')[0]!r}; attached: {titles}")


def place_regions(place: Place, attached: Sequence[Attached], size: int) -> set[int]:
    """The cache regions of `size` tokens that hold any token of a place."""
    regions: set[int] = set()
    for memory in attached:
        if memory.document.id != place.document:
            continue
        for span in memory.text.spans:
            if place.parts is None or span.part in place.parts:
                last = min(-(-span.token_end // size), memory.regions)
                regions.update(range(memory.first_region + span.token_start // size, memory.first_region + last))
    return regions


def _regions_of_its_own(place: Place, attached: Sequence[Attached], size: int) -> set[int]:
    """The regions of a place that hold nothing else."""
    spans = {span.part for memory in attached if memory.document.id == place.document for span in memory.text.spans}
    rest = Place("", place.document, frozenset(spans - (place.parts or frozenset())))
    return place_regions(place, attached, size) - place_regions(rest, attached, size)


def look(
    sight: Sight,
    hidden: Sequence[Evidence],
    attached: Sequence[Attached],
    parts: Parts,
    size: int,
    beside: Beside = lambda document: {},
) -> tuple[Sight, list[bool] | None]:
    """Which regions of the attached memories an answer may see.

    What stands beside a document, such as its licence, is muted unless a focus says where to look.

    Args:
        hidden: passages that may not be seen; the one that `sight.without` names among them.
        size: tokens of a region.

    Returns:
        (the sight with its places by their full names, [regions] True where they may be seen or None when all may).

    Raises:
        InputError: a place or passage that is not in the attached documents, or a focus of which nothing is left.
    """
    documents = {} if sight.focus else {memory.document.id: memory.document for memory in attached}
    aside = [
        Place(f"{document.title}#{kind}", id, indices)
        for id, document in documents.items()
        for kind, indices in beside(id).items()
    ]
    if not sight.hides and not hidden and not aside:
        return sight, None
    asked = [spec for spec in sight.focus if spec != EVERYTHING]
    focus, mute = ([find_place(spec, attached, parts) for spec in specs] for specs in (asked, sight.mute))
    allowed = [not focus] * sum(memory.regions for memory in attached)
    for places, value in ((focus, True), (mute, False)):
        for place in places:
            for region in place_regions(place, attached, size):
                allowed[region] = value
    for place in aside:
        for region in _regions_of_its_own(place, attached, size):
            allowed[region] = False
    if focus and not any(allowed):
        raise InputError(f"focus {'; '.join(p.name for p in focus)}: all of it is muted; mute less, or focus on more")
    for item in hidden:
        regions = regions_of(item, attached)
        if not regions:
            raise InputError(f"{item.title}, {item.label}: not attached to this chat any more; attach it again")
        for region in regions:
            allowed[region] = False
    muted = dict.fromkeys(place.name for place in (*mute, *aside))
    seen = [place.name for place in focus] + [EVERYTHING] * (EVERYTHING in sight.focus)
    named = Sight(tuple(seen), tuple(muted), sight.without)
    return named, allowed


def choices(document: DocumentInfo, parts: Sequence[Part]) -> list[tuple[str, str]]:
    """(what a list shows, place to give to `find_place`) of a document and its chapters, or folders and files."""
    if document.kind == "code":
        names = [*_folders(parts), *(part.label for part in parts)]
    else:
        names = list(dict.fromkeys(part.chapter for part in parts if part.chapter))
    names = names[:MOST_CHOICES] if len(names) > 1 else []
    return [(document.title, document.id), *((f"{document.title} › {n}", f"{document.id}#{n}") for n in names)]


def _document(name: str, attached: Sequence[Attached]) -> DocumentInfo | None:
    """The attached document of this title, or else of an id that begins so."""
    for fits in (lambda d: d.title == name, lambda d: bool(name) and d.id.startswith(name)):
        for memory in attached:
            if fits(memory.document):
                return memory.document
    return None


def _named_parts(place: str, parts: Sequence[Part]) -> frozenset[int]:
    """Indices of the parts with this label, in this range, this chapter, below this path or of this pattern."""
    labels = [part.label for part in parts]
    first, _, last = place.partition("-")
    if place not in labels and first in labels and last in labels:
        ends = sorted((labels.index(first), labels.index(last)))
        return frozenset(part.index for part in parts[ends[0] : ends[1] + 1])
    folder, words = place.rstrip("/") + "/", re.compile(re.escape(place) + r"(?!\w)", re.IGNORECASE)
    for fits in (
        lambda part: part.label == place or part.label.startswith(folder),
        lambda part: (part.chapter or "").casefold() == place.casefold(),
        lambda part: bool(words.match(part.chapter or "")),
        lambda part: fnmatchcase(part.label, place),
    ):
        found = frozenset(part.index for part in parts if fits(part))
        if found:
            return found
    return frozenset()


def _folders(parts: Sequence[Part]) -> list[str]:
    """Folders of the files, each before what is in it."""
    found = {"/".join(part.label.split("/")[:depth]) + "/" for part in parts for depth in range(1, _depth(part))}
    return sorted(found)


def _depth(part: Part) -> int:
    return part.label.count("/") + 1


def _list(parts: Sequence[Part]) -> str:
    """Names of a document's places for a message."""
    chapters = list(dict.fromkeys(part.chapter for part in parts if part.chapter))
    if parts and parts[0].first_line is not None:
        return _some("files", [part.label for part in parts])
    pages = f"pages {parts[0].label} to {parts[-1].label}" if parts else "no text"
    return f"{pages} and {_some('chapters', chapters)}" if chapters else pages


def _some(word: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"the {word} {'; '.join(names[:SHOWN])}{more}"
