"""Questions about a text as a whole: its chapters, how often and in what order things stand in it."""

import random
import re
from bisect import bisect_right
from collections.abc import Iterator

from app.tasks.questions.passage import Passage, TextQuestion, flat, shuffled

_NUMBERED = re.compile(
    r"((?:chapter|book|part|act|canto|letter|section|stave|volume)\s+[\w-]+)(?:\s*[.:—–-]+\s*(.+\S))?\W*",
    re.IGNORECASE | re.DOTALL,
)
_CAPITALS = re.compile(r"\s*\n\s*\n\s*([A-Z](?:(?!\n[ \t]*\n)[^a-z]){8,200}?)[ \t]*\n[ \t]*\n")
MOST_HEADINGS = 40
MOST_COUNTED = 6


def _chapters(passage: Passage) -> list[tuple[int, int, str]]:
    """Headings whose titles differ, when there are at least two; a table of contents would make each stand twice."""
    titles = [title for _, _, title in passage.headings]
    distinct = len(set(titles)) == len(titles) >= 2
    return passage.headings if distinct else []


def contents(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """All headings in their order: the shortest summary of a text."""
    chapters = _chapters(passage)
    if 3 <= len(chapters) <= MOST_HEADINGS:
        asked = rng.choice(("List the headings of the text in order.", "Which chapters does the text have, in order?"))
        first, *places = [(start, end) for start, end, _ in chapters]
        yield TextQuestion("contents", asked, "\n".join(title for *_, title in chapters), *first, tuple(places))


def next_heading(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """Which heading follows another, or stands before it."""
    chapters = _chapters(passage)
    for a, b in shuffled(rng, zip(chapters, chapters[1:], strict=False)):
        given, wanted, where = (a, b, "after") if rng.random() < 0.5 else (b, a, "before")
        question = f'Which heading comes right {where} "{given[2]}"?'
        yield TextQuestion("next_heading", question, wanted[2], *wanted[:2], (given[:2],))


def chapter_of(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """Under which heading a sentence stands."""
    chapters = _chapters(passage)
    starts = [start for start, _, _ in chapters]
    for sentence in shuffled(rng, passage.narrated):
        at = bisect_right(starts, sentence.start) - 1
        said = flat(passage.text[sentence.start : sentence.end])
        if chapters and at >= 0 and passage.once(said):
            start, end, title = chapters[at]
            asked = rng.choice(('Under which heading stands "{}"?', 'In which chapter is it said: "{}"?'))
            yield TextQuestion("chapter_of", asked.format(said), title, start, end, ((sentence.start, sentence.end),))


def chapter_title(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """The title of a numbered chapter: after its number, or in capitals on the line below."""
    for start, end, heading in shuffled(rng, _chapters(passage)):
        found = _NUMBERED.fullmatch(passage.text, start, end)
        if not found or not passage.once(heading):
            continue
        number, place = flat(found[1]), found.span(2)
        if not found[2]:
            below = _CAPITALS.match(passage.text, end)
            if not below:
                continue
            place = below.span(1)
        title = flat(passage.text[slice(*place)])
        question = rng.choice(("What is the title of {}?", "What is {} called?")).format(number)
        yield TextQuestion("chapter_title", question, title, *place, ((start, found.end(1)),))


def chapter_begins(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """The first sentence under a heading."""
    starts = [sentence.start for sentence in passage.sentences]
    for start, end, title in shuffled(rng, _chapters(passage)):
        at = bisect_right(starts, end)
        if at == len(starts) or starts[at] - end > 3 or passage.sentences[at] not in passage.narrated:
            continue
        sentence = passage.sentences[at]
        said = flat(passage.text[sentence.start : sentence.end])
        asked = rng.choice(('What is the first sentence of "{}"?', 'With which sentence does "{}" begin?'))
        yield TextQuestion("chapter_begins", asked.format(title), said, sentence.start, sentence.end, ((start, end),))


def count(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """How often a name stands in the text; all its places are told."""
    for name in shuffled(rng, passage.known):
        if not 2 <= passage.count(name) <= MOST_COUNTED:
            continue
        places = [p for p in passage.find(name, 0, len(passage.text)) if _whole(passage.text, *p)]
        if len(places) == passage.count(name):
            question = rng.choice(('How often does "{}" occur in the text?', 'How many times does the text say "{}"?'))
            yield TextQuestion("count", question.format(name), str(len(places)), *places[0], tuple(places[1:]))


def first_named(passage: Passage, rng: random.Random) -> Iterator[TextQuestion]:
    """Which of two names comes first in the text."""
    for a, b in zip(shuffled(rng, passage.known), shuffled(rng, passage.known), strict=True):
        places = [_first(passage, name) for name in (a, b)]
        if a in b or b in a or None in places:
            continue
        first, second = sorted(places)
        question = f"Which is named first in the text, {a} or {b}?"
        yield TextQuestion("first_named", question, flat(passage.text[slice(*first)]), *first, (second,))


def _first(passage: Passage, name: str) -> tuple[int, int] | None:
    """Where a name stands first."""
    return next((p for p in passage.find(name, 0, len(passage.text)) if _whole(passage.text, *p)), None)


def _whole(text: str, start: int, end: int) -> bool:
    """Whether the span is not a part of a longer word."""
    return not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum())
