"""Coverage: along a document, what has been read of it, what an answer looked at, what words found, what was muted.

Pure functions of parts and of what is stored, so that the page, `ask --json` and `documents show --json` tell the same.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.chat.evidence import Attached
from app.chat.focus import Sight, find_place
from app.errors import InputError
from app.records import DocumentInfo, Evidence, MemoryText, Part

CELLS = 60  # of a strip at most
NO_TEXT = MemoryText([], ())


@dataclass(frozen=True)
class Cell:
    """A stretch of a document: whole parts, or a piece of one long part.

    Attributes:
        part: index of the part that it begins in; `last` of the one that it ends in.
        label, chapter: of the first.
        char_start: where it begins in the first part.
        size: its share of the document's characters.
        read: share of it that has been read.
        looked: share of the answer's attention on its passages here; `words`: whether words found one of them.
        muted: whether the answer could see nothing of it.
        worked: share of it that a question about the whole text has gone through.
        passages: ids of the answer's passages that touch it.
    """

    part: int
    last: int
    label: str
    chapter: str | None
    char_start: int
    size: float
    read: float
    looked: float = 0.0
    words: bool = False
    muted: bool = False
    worked: float = 0.0
    passages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """A strip along a document, in its order.

    Attributes:
        tokens: what became of the tokens behind the answer, of all its documents, by the names of AnswerStats.
    """

    document: str
    title: str
    cells: tuple[Cell, ...]
    tokens: Mapping[str, int]

    @property
    def read(self) -> float:
        """Share of the document that has been read."""
        return round(sum(c.read * c.size for c in self.cells) / max(1e-9, sum(c.size for c in self.cells)), 4)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "read": self.read}


@dataclass(frozen=True)
class _Piece:
    """Characters [start, end) of a part."""

    part: Part
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


def coverage(
    info: DocumentInfo,
    parts: Sequence[Part],
    read: Mapping[int, float],
    *,
    evidence: Sequence[Evidence] = (),
    stats: Mapping[str, Any] | None = None,
    worked: Collection[int] = (),
) -> Coverage:
    """The strip of a document.

    Args:
        read: share that has been read of each part, by index; see `read_parts`.
        evidence, stats: of an answer.
        worked: indices of the parts that a question about the whole text has gone through.
    """
    stats = stats or {}
    muted = muted_parts(info, parts, Sight.of(stats))
    own = [item for item in evidence if item.document == info.id]
    total = max(1, sum(len(part.text) for part in parts))
    cells = []
    for pieces in _stretches(parts, total):
        size = max(1, sum(piece.size for piece in pieces))

        def share(of: Mapping[int, float], pieces: Sequence[_Piece] = pieces, size: int = size) -> float:
            return min(1.0, sum(of.get(piece.part.index, 0.0) * piece.size for piece in pieces) / size)

        touched = [(item, held) for item in own if (held := sum(_held(item, piece) for piece in pieces))]
        first = pieces[0]
        cells.append(
            Cell(
                first.part.index, pieces[-1].part.index, first.part.label, first.part.chapter, first.start,
                size=round(sum(piece.size for piece in pieces) / total, 6),
                read=round(_read(pieces, read, size), 4),
                looked=round(sum(item.weight * held for item, held in touched), 6),
                words=any(item.found_by in ("words", "both") for item, _ in touched),
                muted=all(piece.part.index in muted for piece in pieces),
                worked=round(share(dict.fromkeys(worked, 1.0)), 4),
                passages=tuple(item.id for item, _ in touched),
            )
        )  # fmt: skip
    counts = {
        name: int(stats[name]) for name in ("tokens_kept", "tokens_compressed", "tokens_evicted") if name in stats
    }
    return Coverage(info.id, info.title, tuple(cells), counts)


def _read(pieces: Sequence[_Piece], read: Mapping[int, float], size: int) -> float:
    """Share of pieces that has been read: of a part that is read in part, its beginning."""
    done = 0.0
    for piece in pieces:
        reached = read.get(piece.part.index, 0.0) * len(piece.part.text)
        done += min(max(0.0, reached - piece.start), piece.size)
    return min(1.0, done / size)


def _held(item: Evidence, piece: _Piece) -> float:
    """The share of a passage that stands in a piece."""
    if item.part != piece.part.index or item.char_end <= item.char_start:
        return 0.0
    inside = min(item.char_end, piece.end) - max(item.char_start, piece.start)
    return max(0, inside) / (item.char_end - item.char_start)


def _stretches(parts: Sequence[Part], total: int) -> list[list[_Piece]]:
    """The parts in CELLS stretches of about one length at most; a long part is cut, short neighbours stand together."""
    most = max(1, -(-total // CELLS))
    found: list[list[_Piece]] = []
    filled = most
    for part in parts:
        start = 0
        while start < len(part.text) or (start == 0 and not part.text and not found):
            if filled >= most:
                found.append([])
                filled = 0
            end = min(len(part.text), start + most - filled)
            if len(part.text) <= most:  # it stays whole
                end = len(part.text)
            found[-1].append(_Piece(part, start, end))
            filled += end - start
            start = max(end, 1)
    return found


def read_parts(texts: Sequence[MemoryText], tokens: Sequence[int]) -> dict[int, float]:
    """Share of each part that has been read, by index.

    Args:
        tokens: read of each of the texts.
    """
    found: dict[int, float] = {}
    for text, done in zip(texts, tokens, strict=True):
        for span in text.spans:
            inside = min(done, span.token_end) - span.token_start
            found[span.part] = max(0.0, min(1.0, inside / max(1, span.token_end - span.token_start)))
    return found


def muted_parts(info: DocumentInfo, parts: Sequence[Part], sight: Sight) -> frozenset[int]:
    """Indices of the parts that an answer could not see."""
    if not sight.hides:
        return frozenset()
    attached, all_of_it = [Attached(info, 0, NO_TEXT, 0, 0)], frozenset(part.index for part in parts)

    def named(specs: Sequence[str]) -> frozenset[int]:
        found: set[int] = set()
        for spec in specs:
            try:
                place = find_place(spec, attached, lambda _: parts)
            except InputError:  # of another document, or what stands beside this one, which is named by its kind
                kind = spec.removeprefix(f"{info.title}#")
                found |= {part.index for part in parts if part.kind and part.kind == kind}
                continue
            found |= all_of_it if place.parts is None else place.parts
        return frozenset(found)

    focus = [spec for spec in sight.focus if spec != "*"]
    seen = named(focus) if focus else all_of_it
    return all_of_it - (seen - named(sight.mute))
