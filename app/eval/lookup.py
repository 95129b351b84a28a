"""Looking up by words in memories that are in no library, as the app does in a library's documents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.store.passages import PassageIndex
from app.store.words import question_query

if TYPE_CHECKING:
    from app.memory.memory import RegionMemory
    from app.runtime.engine import Engine

PASSAGE_TOKENS = 300


class WordIndex:
    """The passages of some memories, whole regions each, found by the words of a question."""

    def __init__(self, engine: "Engine", memories: Sequence["RegionMemory"]) -> None:
        size = engine.shape.attention.region_tokens
        each = max(1, round(PASSAGE_TOKENS / size))
        self._runs: list[range] = []
        self._passages: list[str] = []
        offset = 0
        for memory in memories:
            for first in range(0, memory.regions, each):
                last = min(first + each, memory.regions)
                self._runs.append(range(offset + first, offset + last))
                self._passages.append(engine.decode(memory.token_ids[first * size : last * size]))
            offset += memory.regions
        self._index = PassageIndex(self._passages)

    def offered(self, question: str, before: Sequence[str] = (), count: int = 64) -> list[int]:
        """Regions, best passage first, at most `count`; `before` are the messages before the question, last first."""
        found = self._index.best(question_query(question, before), count)
        return [region for place in found for region in self._runs[place]][:count]

    def passages(self, question: str, count: int) -> list[str]:
        """The texts of the passages that fit best, best first."""
        return [self._passages[place] for place in self._index.best(question_query(question), count)]


def word_index(engine: "Engine", memories: Sequence["RegionMemory"]) -> WordIndex | None:
    """An index where the engine looks up by words; None where attention looks alone."""
    return None if engine.lookup == "attention" else WordIndex(engine, memories)
