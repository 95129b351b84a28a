"""The answer to a question about a whole text, put together from the notes of its parts: lines, each with its place."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.records import DocumentInfo, Evidence, Part
from app.tasks.versions import changes
from app.tasks.whole import Note, Task, merged, names, sentence

SHOWN = 40  # places that an answer lists; all are counted
SHOWN_NAMES = 30
Label = Callable[[DocumentInfo, Part, int, int], str]


@dataclass(frozen=True)
class Gone:
    """What one document gave so far.

    Attributes:
        notes: in the order of its parts.
        done: of its parts.
    """

    info: DocumentInfo
    parts: dict[int, Part]
    notes: Sequence[Note]
    done: int


@dataclass
class Listing:
    """An answer being put together.

    Attributes:
        marks: (place in the text, number of the passage under it from 1).
    """

    label: Label
    text: str = ""
    marks: list[tuple[int, int]] = field(default_factory=list)
    passages: list[Evidence] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.text += line + "\n"

    def place(
        self, gone: Gone, note: Note, head: str = "", quote: bool = True, bounds: tuple[int, int] | None = None
    ) -> None:
        """A line with a place of the text, cited as a passage; `bounds`: of it, where it is not a sentence."""
        info, part = gone.info, gone.parts[note.part]
        start, end = bounds or sentence(part.text, note.start, note.end, part.first_line is not None)
        said = " ".join(part.text[start:end].split()) if quote else ""
        where = self.label(info, part, note.start, note.end)
        self.text += f"- {': '.join(filter(None, [head, where, said]))}"
        self.passages.append(
            Evidence("", info.id, info.title, where, note.part, start, max(end, start + 1), part.text[start:end], 0.0,
                     found_by="words")
        )  # fmt: skip
        self.marks.append((len(self.text), len(self.passages)))
        self.text += "\n"


def listing(task: Task, found: Sequence[Gone], label: Label) -> Listing:
    """The answer from what all documents gave."""
    made = Listing(label)
    if task.kind == "compare":
        _compared(made, found)
        return made
    for gone in found:
        {"names": _names, "changes": _changes}.get(task.kind, _places)(made, task, gone)
    made.text = made.text.rstrip()
    return made


def _places(made: Listing, task: Task, gone: Gone) -> None:
    notes = merged([note for note in gone.notes if _inside(task.place, gone.parts[note.part])])
    if task.kind == "contents":
        notes = list({note.name.casefold(): note for note in reversed(notes)}.values())[::-1]
    made.say(_total(task, gone, notes) + (":" if notes else "."))
    if notes:
        made.say("")
    for note in notes[:SHOWN]:
        named = task.kind in ("contents", "timeline", "definitions")
        made.place(gone, note, note.name if named else "", quote=task.kind in ("count", "places", "timeline"))
    if len(notes) > SHOWN:
        made.say(f"\nand {len(notes) - SHOWN:,} more.")


def _total(task: Task, gone: Gone, notes: Sequence[Note]) -> str:
    """How many there are, and in how many parts."""
    count, title = len(notes), gone.info.title
    if task.kind in ("count", "places"):
        times = "once" if count == 1 else f"{count:,} times"
        where = f", in {len({note.part for note in notes}):,} of {len(gone.parts):,} parts" if count else ""
        return f"“{task.subject}” stands {times} in {title}{where}"
    word = {"definitions": "definition", "contents": "heading", "timeline": "date"}[task.kind]
    if task.kind == "contents" and gone.info.kind == "code":
        word = "file"
    of = f" of “{task.subject}”" if task.subject else ""
    where = f" of {task.place}" if task.place else ""
    return f"{title}{where} has {count:,} {word}{'' if count == 1 else 's'}{of}"


def _names(made: Listing, task: Task, gone: Gone) -> None:
    found = names(gone.notes, {index: part.text for index, part in gone.parts.items()})
    made.say(f"{gone.info.title} has {len(found):,} names that stand in it at least three times:\n")
    for name, places in found[:SHOWN_NAMES]:
        made.place(gone, min(places, key=lambda note: (note.part, note.start)), f"{name}, {len(places):,} times, first")
    if len(found) > SHOWN_NAMES:
        made.say(f"\nand {len(found) - SHOWN_NAMES:,} more.")


def _changes(made: Listing, task: Task, gone: Gone) -> None:
    """Which names come and go between two chapters."""
    scopes = task.place.split("\n")
    kept = names(gone.notes, {index: part.text for index, part in gone.parts.items()})
    times: list[Counter[str]] = [Counter(), Counter()]
    firsts: list[dict[str, Note]] = [{}, {}]
    for number, scope in enumerate(scopes):
        inside = {index for index, part in gone.parts.items() if _inside(scope, part)}
        if not inside:
            made.say(f"{gone.info.title} has no {scope}.")
            return
        for name, places in kept:
            own = [note for note in places if note.part in inside]
            if own:
                times[number][name], firsts[number][name] = len(own), own[0]
    both = times[0].keys() & times[1].keys()
    for number, scope in enumerate(scopes):
        only = [name for name, _ in times[number].most_common() if name not in both]
        made.say(f"Named in {scope} and not in {scopes[1 - number]} ({len(only):,}):\n")
        for name in only[:SHOWN_NAMES]:
            made.place(gone, firsts[number][name], f"{name}, {times[number][name]:,} times")
        made.say("")
    told = ", ".join(f"{name} ({times[0][name]} and {times[1][name]})" for name in sorted(both))
    made.say(f"Named in both, how often: {told or 'nothing'}.")


def _compared(made: Listing, found: Sequence[Gone]) -> None:
    """What differs between two documents, the same place of both beside each other."""
    if len(found) != 2:
        made.say("Two documents are compared, and no more: attach both of them to the chat, the older one first.")
        return
    before, after = found
    told = changes(list(before.parts.values()), list(after.parts.values()))
    parts = len({change.before.part for change in told if change.before})
    made.say(
        f"{before.info.title} and {after.info.title} differ in {len(told):,} place{'' if len(told) == 1 else 's'}, in "
        f"{parts:,} of {len(before.parts):,} parts of the first{':' if told else '.'}\n"
    )
    for change in told[:SHOWN]:
        for gone, piece, head in ((before, change.before, "before"), (after, change.after, "after")):
            if piece:
                alone = {"before": "taken out", "after": "added"}[head]
                word = head if change.before and change.after else alone
                made.place(gone, Note(piece.part, piece.start, piece.end, ""), word, bounds=(piece.start, piece.end))
    if len(told) > SHOWN:
        made.say(f"\nand {len(told) - SHOWN:,} more.")
    made.text = made.text.rstrip()


def _inside(place: str, part: Part) -> bool:
    """Whether a part is of a chapter or file that is named; chapters by number in either kind of figures."""
    if not place:
        return True
    if part.first_line is not None:
        return part.label == place or part.label.endswith(f"/{place}")
    chapter = (part.chapter or "").casefold()
    number = re.fullmatch(r"(.*?)(\d{1,3})", place.casefold())
    spellings = {place.casefold()} | ({number[1] + roman(int(number[2])).lower()} if number else set())
    return any(re.match(rf"{re.escape(spelling)}(?!\w)", chapter) for spelling in spellings)


def roman(number: int) -> str:
    """A number in Roman figures."""
    made = ""
    for value, figure in zip(
        (100, 90, 50, 40, 10, 9, 5, 4, 1), ("C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"), strict=True
    ):
        made += figure * (number // value)
        number %= value
    return made
