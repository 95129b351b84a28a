"""Questions about a whole text that code answers: counts, places, definitions, dates, names, contents, changes.

What the user wants is recognised in the question's words; each part of the text gives notes by itself, and the answer
is put together from all of them. No model counts here. Pure functions of text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from app.ingest.text import find_headings
from app.records import Part
from app.tasks.questions.code import DEFINED
from app.tasks.sentences import sentence_ends

Kind = Literal["count", "places", "definitions", "contents", "timeline", "names", "changes", "compare"]
RULES_VERSION = 1  # of what a part gives; notes of another are made anew
LEAST_TIMES = 3  # a name of a text stands so often in it
MOST_SENTENCE = 300  # characters shown of a place

_QUOTED = r"[\"“”'‘’«»`]"
_SUBJECT = rf"(?:the (?:words?|names?|terms?|phrases?|function|class) )?{_QUOTED}?(?P<subject>.+?){_QUOTED}?"
_END = r"(?: (?:in|within|throughout) (?:the|this|all of the|the whole|it)\b.*)?[\s?.!]*$"
_STANDS = r"(?:occur|appear|stand|mention(?:ed)?|name[d]?|used?|say|said|called|come up)s?"
_ALL = r"^(?:list |find |show |give )?(?:me )?(?:all |every )(?:of )?(?:the )?"
_SPOTS = r"(?:places?|passages?|mentions?|occurrences?|uses?)"


def _rule(rule: str) -> re.Pattern[str]:
    return re.compile(rule + _END, re.IGNORECASE | re.DOTALL)


RULES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("count", _rule(
        r"^how (?:often|many times) (?:does |do |is |are |did |was |were )?(?:the text (?:say|name|mention) )?"
        rf"{_SUBJECT}(?: {_STANDS})?"
    )),
    ("count", _rule(rf"^count (?:all |every |the )?{_SPOTS} of {_SUBJECT}")),
    ("definitions", _rule(rf"{_ALL}(?:places? |passages? )?where {_SUBJECT} is defined")),
    ("definitions", _rule(
        rf"{_ALL}(?:functions?|definitions?|classes|methods)(?: and (?:classes|functions|methods))?"
        r"(?: (?:of|in|from) (?P<place>[\w./-]+\.\w+))?"
    )),
    ("places", _rule(
        rf"{_ALL}{_SPOTS}(?: (?:where|of|that (?:name|mention)|in which))? {_SUBJECT}(?: (?:is |are )?{_STANDS})?"
    )),
    ("contents", _rule(
        r"^(?:list |what are |which are |show )?(?:me )?(?:all |every )?(?:of )?(?:the )?"
        r"(?:chapters?|headings?|sections|contents)(?: (?:are there|does it have|of (?:the|this) \w+))?"
    )),
    ("timeline", _rule(
        r"^(?:make |give |list |show )?(?:me )?(?:a |the |all )?(?:timeline|chronology|dates)(?: of .*)?"
    )),
    ("names", _rule(
        r"^(?:list |who are |name |give |show )?(?:me )?(?:all |every )?(?:of )?(?:the )?"
        r"(?:people|characters|persons|names)(?: and who they are)?"
    )),
    ("compare", _rule(
        r"^(?:compare|what (?:has )?changed? between|what (?:is different|are the (?:differences|changes)) between)"
        r" (?:the |these )?(?:two |both )?(?:texts|versions|documents|books|files|repositories|contracts)"
    )),
    ("changes", _rule(r"^what (?:has )?change[sd]? between (?P<first>.+?) and (?P<second>.+?)")),
)  # fmt: skip
_ONE_WORD = re.compile(r"[A-Za-z_]\w*")
_MONTHS = "January February March April May June July August September October November December".split()
_TH = "(?:st|nd|rd|th)?"
_DATE = re.compile(
    rf"\b(?:(?P<day>\d{{1,2}}){_TH}(?: of)? )?(?:(?P<month>{'|'.join(_MONTHS)})(?: (?P<after>\d{{1,2}}){_TH})?,? )?"
    r"(?P<year>1[0-9]{3}|20[0-9]{2})\b(?![\d,.]\d)"
)
_SAYS = re.compile(r"\W{0,3}\s*(?:\([^)]{0,40}\)\s*)?(?:is|are|means?|denotes?|refers? to)\b")
_NAME = re.compile(r"\b[A-Z][a-z]+(?:['’-][A-Z]?[a-z]+)?(?: (?:de |of |von |van )?[A-Z][a-z]+)*")


@dataclass(frozen=True)
class Task:
    """What is wanted of a whole text.

    Attributes:
        subject: what is counted or looked for; "" where the kind says it.
        place: file or chapter that it is about, "" for all; of changes the two, joined by a line end.
    """

    kind: Kind
    subject: str = ""
    place: str = ""

    @property
    def key(self) -> str:
        """What notes are kept under: the same for the same work on a part."""
        kind = {"count": "places", "changes": "names"}.get(self.kind, self.kind)
        subject = self.subject if kind == "definitions" else self.subject.casefold()
        return f"{RULES_VERSION} {kind} {subject}".rstrip()


@dataclass(frozen=True)
class Note:
    """A place that a part gives: characters [start, end) of its text, what is there, and how it is sorted."""

    part: int
    start: int
    end: int
    name: str
    order: int = 0


def recognise(question: str) -> Task | None:
    """The task that a question is; None where it is none, and is answered as any other."""
    asked = " ".join(question.split())
    for kind, rule in RULES:
        if not (found := rule.match(asked)):
            continue
        groups = found.groupdict()
        subject = (groups.get("subject") or "").strip(" \"“”'‘’«»`?.")
        subject = re.sub(rf" (?:is |are |was |were )?{_STANDS}$", "", subject, flags=re.IGNORECASE)
        if kind == "count" and not _named(subject, question):
            continue
        if kind in ("count", "places") and not subject:
            continue
        if kind == "changes":
            return Task(kind, place="\n".join((groups["first"], groups["second"])))
        return Task(kind, subject, groups.get("place") or "")
    return None


def chosen(question: str) -> Task | None:
    """The task of a question that shall be answered from the whole text: where its name stands, if it has one only."""
    if task := recognise(question):
        return task
    quoted = re.findall(rf"{_QUOTED}([^\"“”]{{2,80}}?){_QUOTED}(?!\w)", question)
    named = [found[0] if found.start() else found[0].partition(" ")[2] for found in _NAME.finditer(question)]
    subjects = dict.fromkeys(quoted or filter(None, named))
    return Task("places", next(iter(subjects))) if len(subjects) == 1 else None


def _named(subject: str, question: str) -> bool:
    """Whether a thing is named, and not described: it is quoted, a name, or a name of code ("it rain" is none)."""
    if not subject:
        return False
    quoted = re.search(rf"{_QUOTED}{re.escape(subject)}{_QUOTED}", question)
    return (
        bool(quoted) or subject[:1].isupper() or bool(_ONE_WORD.fullmatch(subject) and re.search("[_A-Z0-9]", subject))
    )


def occurrences(subject: str, text: str) -> Iterator[tuple[int, int]]:
    """Where a name stands in a text as whole words, in any case, over line ends too."""
    words = r"[\s­]+".join(map(re.escape, subject.split()))
    if words:
        yield from (m.span() for m in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE))


def notes_of(task: Task, part: Part) -> list[Note]:
    """What a part gives to a task, in its order."""
    text = part.text
    if task.kind in ("count", "places"):
        return [Note(part.index, start, end, text[start:end]) for start, end in occurrences(task.subject, text)]
    if task.kind == "definitions":
        return list(_definitions(task.subject, part))
    if task.kind == "timeline":
        return [Note(part.index, *m.span(), m[0], _when(m)) for m in _DATE.finditer(text) if part.first_line is None]
    if task.kind == "contents":
        if part.first_line is not None:
            return [Note(part.index, 0, len(part.label), part.label)]
        own = [Note(part.index, *found) for found in find_headings(text)]
        held = {note.name.casefold() for note in own}
        named = part.chapter and not own and part.chapter.casefold() not in held
        return [*([Note(part.index, 0, 0, part.chapter)] if named else []), *own]
    if task.kind in ("names", "changes"):
        return [Note(part.index, *m.span(), m[0]) for m in _NAME.finditer(text)]
    return []


def _when(found: re.Match[str]) -> int:
    month = _MONTHS.index(found["month"]) + 1 if found["month"] else 0
    return int(found["year"]) * 10_000 + month * 100 + int(found["day"] or found["after"] or 0)


def _definitions(subject: str, part: Part) -> Iterator[Note]:
    """In code the definitions, of one name where one is given; in prose sentences that say what a thing is."""
    if part.first_line is not None:
        for found in DEFINED.finditer(part.text):
            if not subject or found[3] == subject:
                yield Note(part.index, found.start(2), found.end(3), f"{found[2]} {found[3]}")
        return
    for start, end in occurrences(subject, part.text):
        after = part.text[end : end + 60]
        if re.match(
            r"\W{0,3}\s*(?:\([^)]{0,40}\)\s*)?(?:is|are|means?|denotes?|refers? to|is defined|is called)\b", after
        ):
            yield Note(part.index, start, end, part.text[start:end])


def sentence(text: str, start: int, end: int, code: bool = False) -> tuple[int, int]:
    """The sentence, or the line of code, around a place."""
    if code:
        after = text.find("\n", end)
        return text.rfind("\n", 0, start) + 1, len(text) if after < 0 else after
    first = max((at for at in sentence_ends(text, max(0, start - MOST_SENTENCE), start) if at <= start), default=0)
    first = max(first, start - MOST_SENTENCE)
    last = next((at for at in sentence_ends(text, end, end + MOST_SENTENCE) if at >= end), len(text))
    return first + len(text[first:start]) - len(text[first:start].lstrip()), min(last, end + MOST_SENTENCE)


def names(notes: Sequence[Note], texts: dict[int, str]) -> list[tuple[str, list[Note]]]:
    """Names of people and places with where they stand, the most frequent first.

    A word that also begins sentences only, or stands without a capital elsewhere, is none.
    """
    places: dict[str, list[Note]] = {}
    for note in notes:
        before = texts[note.part][max(0, note.start - 3) : note.start].rstrip(" ")
        name = note.name
        if not before or before[-1] in ".!?\n\"“”‘'’:;—-(":  # a capital says nothing here
            name = name.partition(" ")[2] if " " in name else ""
        if name:
            at = note.end - len(name)
            places.setdefault(name, []).append(replace(note, start=at, name=name))
    plain = Counter(word for text in texts.values() for word in re.findall(r"\b[a-z]+\b", text))
    kept = {n: p for n, p in places.items() if len(p) >= LEAST_TIMES and plain[n.lower()] <= len(p) // 4}
    return sorted(kept.items(), key=lambda item: (-len(item[1]), item[0]))


def merged(notes: Sequence[Note]) -> list[Note]:
    """Notes in the order of the text, or of time, each place once."""
    return sorted(dict.fromkeys(notes), key=lambda note: (note.order, note.part, note.start))
