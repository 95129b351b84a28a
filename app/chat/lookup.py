"""Looking up by words: the regions of attached texts whose words fit a question, for its answer to see."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from app.chat.evidence import Attached
from app.ingest import spans
from app.records import Message, Part
from app.store.passages import Found
from app.store.text import question_query

TURNS_BACK = 2  # earlier turns whose names a question may refer to
MOST_PASSAGES = 400  # looked at to find enough in what may be seen
EDGE = 4  # a region at an end of a passage counts if it holds a quarter of a region of it


class Passages(Protocol):
    """Where passages come from: the store."""

    def find_passages(self, query: str | None, documents: Sequence[str], limit: int) -> list[Found]: ...
    def part(self, id: str, index: int) -> Part: ...


def offered(
    question: str,
    history: Sequence[Message],
    attached: Sequence[Attached],
    store: Passages,
    tokenizer,
    *,
    region_tokens: int,
    visible: Sequence[bool] | None,
    count: int,
) -> list[list[int]]:
    """The passages of the attached texts that fit a question best by its words, as regions; best passage first.

    Args:
        history: the messages before the question.
        tokenizer: the one that the texts were encoded with.
        visible: [regions] True where they may be seen; None when all may.
        count: enough regions.
    """
    before = [message.content for message in reversed(history[-2 * TURNS_BACK :])]
    documents = list(dict.fromkeys(memory.document.id for memory in attached))
    limit = count if visible is None else MOST_PASSAGES
    offsets: dict[tuple[str, int], list[tuple[int, int]]] = {}  # a long part is tokenised once

    def places(passage: Found) -> list[tuple[int, int]]:
        key = passage.document, passage.part
        if key not in offsets:
            offsets[key] = spans.offsets_of(store.part(*key), tokenizer)
        return offsets[key]

    found: list[list[int]] = []
    for passage in store.find_passages(question_query(question, before), documents, limit):
        if regions := list(_regions(passage, attached, places, region_tokens, visible)):
            found.append(regions)
        if sum(map(len, found)) >= count:
            break
    return found


def _regions(
    passage: Found,
    attached: Sequence[Attached],
    places: Callable[[Found], list[tuple[int, int]]],
    size: int,
    visible: Sequence[bool] | None,
) -> Iterator[int]:
    """The regions that may be seen and hold a passage, but for those at its ends that hold little of it."""
    for memory in attached:
        if memory.document.id != passage.document:
            continue
        for span in memory.text.spans:
            if span.part != passage.part:
                continue
            first, last = span.token_start // size, min(-(-span.token_end // size), memory.regions)
            if visible is not None and not any(visible[memory.first_region + r] for r in range(first, last)):
                continue
            start, end = spans.tokens_of(span, places(passage), passage.char_start, passage.char_end)
            for region in range(start // size, min(-(-end // size), last)):  # not all may be read yet
                held, number = min(end, (region + 1) * size) - max(start, region * size), memory.first_region + region
                if held >= min(size // EDGE, end - start) and (visible is None or visible[number]):
                    yield number
