"""Two versions of a text side by side: sentences, or lines of code, that were changed, added or taken out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from app.records import Part
from app.tasks.sentences import sentence_ends


@dataclass(frozen=True)
class Piece:
    """A sentence or line: characters [start, end) of a part, and what is compared of it."""

    part: int
    start: int
    end: int
    words: str


@dataclass(frozen=True)
class Change:
    """What stands in one version in the place of what stands in the other; None where there is nothing."""

    before: Piece | None
    after: Piece | None


def pieces(parts: Sequence[Part]) -> Iterator[Piece]:
    """The sentences of prose, or the lines of code that are not blank; blanks and line ends do not count."""
    for part in parts:
        ends = _line_ends(part.text) if part.first_line is not None else sentence_ends(part.text)
        start = 0
        for end in ends:
            if words := " ".join(part.text[start:end].split()):
                first = start + len(part.text[start:end]) - len(part.text[start:end].lstrip())
                yield Piece(part.index, first, first + len(part.text[first:end].rstrip()), words)
            start = end


def _line_ends(text: str) -> Iterator[int]:
    at = 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        yield at


def changes(before: Sequence[Part], after: Sequence[Part]) -> list[Change]:
    """What differs, in the order of the texts. What was moved counts as taken out here and added there."""
    old, new = list(pieces(before)), list(pieces(after))
    matcher = SequenceMatcher(None, [piece.words for piece in old], [piece.words for piece in new])
    found = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            continue
        found += _paired(old[a:b], new[c:d])
    return found


def _paired(old: Sequence[Piece], new: Sequence[Piece]) -> Iterator[Change]:
    """Pieces that stand in each other's place: those that share half of their words; one and one anyway."""
    if len(old) == len(new):
        yield from map(Change, old, new)
        return
    left = list(new)
    for piece in old:
        place = next((n for n, other in enumerate(left) if _alike(piece.words, other.words)), None)
        for other in left[:place] if place is not None else ():
            yield Change(None, other)
        yield Change(piece, None if place is None else left[place])
        left = left if place is None else left[place + 1 :]
    for other in left:
        yield Change(None, other)


def _alike(a: str, b: str) -> bool:
    one, two = set(a.lower().split()), set(b.lower().split())
    return 2 * len(one & two) >= max(len(one), len(two))
