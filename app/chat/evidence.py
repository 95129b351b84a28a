"""Evidence: from the attention each region received to passages on pages or lines."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from app.ingest import spans
from app.records import DocumentInfo, Evidence, Look, MemoryText, Part, Span
from app.store.text import STOP_WORDS

MOST = 5  # passages under one answer
LEAST_SHARE = 0.2  # of the best region's, to be shown beside it
LEAST_WEIGHT = 0.005  # what rounds to 0% is not told
ALWAYS_SHARE, ALWAYS_TIMES = 0.03, 3.0  # an empty question looks there: that much, and so many times the mean
SHARPER = 2.0  # an answer that looks there so many times more means it

_WORD = re.compile(r"\w+")


class Parts(Protocol):
    """Where the documents' texts come from: the store."""

    def part(self, id: str, index: int) -> Part: ...
    def line_of(self, id: str, index: int) -> int: ...


@dataclass(frozen=True)
class Attached:
    """One memory attached to a chat: where it comes from and which regions its text has among all that is attached."""

    document: DocumentInfo
    number: int
    text: MemoryText
    first_region: int
    regions: int


def evidence(
    density: Sequence[float],
    attached: Sequence[Attached],
    parts: Parts,
    tokenizer,
    region_tokens: int,
    *,
    found_by: Mapping[int, str] | None = None,
    by_words: Sequence[Sequence[int]] = (),
    answer: str = "",
    unasked: Sequence[float] = (),
) -> list[Evidence]:
    """The passages that an answer rests on, best first: by attention; where words looked too, by both and the answer.

    Regions at which the model looks whatever it is asked are left out, as long as anything else is left.

    Args:
        density: [regions of the memories] attention mass per token of the region, as `AnswerEvidence` has it.
        tokenizer: the one that the memories were encoded with.
        found_by: what offered a region to the answer, where it did not see all.
        by_words: passages that words found, as regions, best first; those that the answer did not see do not count.
        answer: its text.
        unasked: the density of an answer to an empty question; empty when it is not known.
    """
    total, found_by = sum(density), found_by or {}
    if total <= 0:
        return []
    always = always_looked_at(density, unasked)
    if any(mass > 0 for region, mass in enumerate(density) if region not in always):
        density = [0.0 if region in always else mass for region, mass in enumerate(density)]
    offered = (run for run in by_words if run and (not found_by or all(region in found_by for region in run)))
    seen = [sorted(run) for run in offered][:MOST]
    inside = {region for run in seen for region in run}
    best = sorted(range(len(density)), key=density.__getitem__, reverse=True)[: 2 * MOST]
    enough = LEAST_SHARE * density[best[0]]
    looked = [place for place in best if density[place] >= enough]
    said = set(_WORD.findall(answer.lower())) - STOP_WORDS
    found: list[tuple[float, Evidence]] = []
    alone = sorted(place for place in looked if place not in inside)
    for memory, first, last in [*_runs(alone, attached), *(run for each in seen for run in _runs(each, attached))]:
        regions = range(memory.first_region + first, memory.first_region + last + 1)
        weight = sum(density[region] for region in regions) / total
        if item := _passage(memory, first, last, weight, parts, tokenizer, region_tokens, said):
            item = replace(item, found_by=_found_by(memory.first_region, first, last, found_by))
            found.append((_rank(item, regions, looked, seen, said), item))
    best = sorted(found, key=lambda pair: (-pair[0], -pair[1].weight))[:MOST]
    return [item for _, item in best if item.weight >= LEAST_WEIGHT]


def always_looked_at(density: Sequence[float], unasked: Sequence[float]) -> set[int]:
    """Regions at which an answer looked hardly more than one to an empty question does, and that one does much.

    An answer may see a few regions of many, so shares of the empty question are taken among those that it saw.
    """
    total, plain = sum(density), sum(unasked)
    if total <= 0 or plain <= 0 or len(density) != len(unasked):
        return set()
    much = plain * max(ALWAYS_SHARE, ALWAYS_TIMES / len(unasked))
    among = sum(before for mass, before in zip(density, unasked, strict=True) if mass > 0)
    return {
        region
        for region, (mass, before) in enumerate(zip(density, unasked, strict=True))
        if mass > 0 and before >= much and mass / total < min(SHARPER * before / among, (1 + before / among) / 2)
    }


def _rank(
    item: Evidence, regions: range, looked: Sequence[int], seen: Sequence[Sequence[int]], said: set[str]
) -> float:
    """How much speaks for a passage: its place by attention, and where words looked its place by them and how many of
    the answer's words it holds."""
    by_attention = next((n for n, region in enumerate(looked, start=1) if region in regions), None)
    if not seen:
        return item.weight
    by_words = next((n for n, run in enumerate(seen, start=1) if run[0] in regions), None)
    return sum(1 / place for place in (by_attention, by_words) if place) + _held(said, item.text)


def _found_by(offset: int, first: int, last: int, found_by: Mapping[int, str]) -> str:
    """What offered a run of regions: `both` when it was not one thing alone."""
    by = {found_by[offset + region] for region in range(first, last + 1) if offset + region in found_by}
    return by.pop() if len(by) == 1 else "both" if by else ""


def _runs(places: Sequence[int], attached: Sequence[Attached]) -> list[tuple[Attached, int, int]]:
    """Neighbouring regions of one memory as (memory, first region, last region)."""
    runs: list[tuple[Attached, int, int]] = []
    for place in places:
        memory = next(m for m in attached if m.first_region <= place < m.first_region + m.regions)
        region = place - memory.first_region
        if runs and runs[-1][0] is memory and runs[-1][2] == region - 1:
            runs[-1] = (memory, runs[-1][1], region)
        else:
            runs.append((memory, region, region))
    return runs


def _passage(
    memory: Attached, first: int, last: int, weight: float, parts: Parts, tokenizer, size: int, said: set[str]
) -> Evidence | None:
    """The run of regions as one passage, in the part with most of the answer's words, of such that with most of it."""
    start, end = first * size, min((last + 1) * size, len(memory.text.token_ids))
    inside = spans.parts_in(memory.text.spans, start, end)
    if not inside:
        return None
    id = memory.document.id

    def within(span: Span) -> tuple[Part, int, int]:
        page = parts.part(id, span.part)
        return page, *_whole_words(page.text, *spans.locate(page, span, tokenizer, start, end))

    def speaks_for(found: tuple[Part, int, int]) -> float:
        page, char_start, char_end = found
        return _held(said, page.text[char_start:char_end])

    inside.sort(key=lambda span: max(span.token_start, start) - min(span.token_end, end))
    page, char_start, char_end = max(map(within, inside), key=speaks_for) if said else within(inside[0])
    text = page.text[char_start:char_end]
    if not text.strip():
        return None
    char_start += len(text) - len(text.lstrip())
    text_line = parts.line_of(id, page.index) if memory.document.kind == "text" else None
    return Evidence(
        id="",
        document=id,
        title=memory.document.title,
        label=spans.label(page, char_start, char_end, text_line),
        part=page.index,
        char_start=char_start,
        char_end=char_end,
        text=text.strip(),
        weight=round(weight, 4),
        confidence=page.confidence(char_start, char_end),
        regions=tuple((memory.number, region) for region in range(first, last + 1)),
    )


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Characters [start, end) of a text, and the words that they begin and end in."""
    while 0 < start < len(text) and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
        end += 1
    return start, end


def _held(said: set[str], text: str) -> float:
    """The share of an answer's words that a text holds."""
    return len(said & set(_WORD.findall(text.lower()))) / len(said) if said else 0.0


def looks(
    pieces: Sequence[str], seen: Sequence[Sequence[tuple[int, float]]], attached: Sequence[Attached]
) -> tuple[Look, ...]:
    """Where each token of an answer looked.

    Args:
        pieces: the tokens' texts.
        seen: per token its best regions of the cache and their shares.
    """

    def place(region: int, share: float) -> tuple[str, int, int, float]:
        memory = next(m for m in attached if m.first_region <= region < m.first_region + m.regions)
        return memory.document.id, memory.number, region - memory.first_region, round(share, 4)

    return tuple(Look(text, tuple(place(*pair) for pair in best)) for text, best in zip(pieces, seen, strict=False))


def regions_of(evidence: Evidence, attached: Sequence[Attached]) -> set[int]:
    """The cache regions behind a passage; empty when its document is not attached."""
    wanted = set(evidence.regions)
    return {
        memory.first_region + region
        for memory in attached
        if memory.document.id == evidence.document
        for region in range(memory.regions)
        if (memory.number, region) in wanted
    }
