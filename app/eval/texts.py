"""Texts of a wanted length in tokens, read and asked about as a user's document is."""

import lzma
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import CancelledError, ConfigError, InputError
from app.store.passages import PassageIndex
from app.store.text import question_query
from app.tasks.needles import REPEAT_FILLER

if TYPE_CHECKING:
    from app.memory.memory import RegionMemory
    from app.runtime.engine import Engine

ROUNDS = 4
MOST_TRIALS = 100_000
LOOKED = 64  # regions told of an answer


@dataclass(frozen=True)
class Reply:
    """An answer of the model.

    Attributes:
        looked: regions of the memories that it looked at, most first, at most 64.
    """

    text: str
    looked: tuple[int, ...] = ()


def never() -> bool:
    """A `cancelled` that never is."""
    return False


def encode(engine: "Engine", text: str) -> list[int]:
    """Token ids of a text as a document: BOS, then its parts, exactly as ingestion and the app do it."""
    from app.ingest import spans
    from app.ingest.text import split_parts

    memories = spans.encode(split_parts(text), engine.text_tokenizer, engine.bos_id)
    if not memories:  # blanks alone
        return [] if engine.bos_id is None else [engine.bos_id]
    return memories[0].token_ids


def lines_of(path: Path) -> list[str]:
    """The lines of a document, as ingestion cleans it; of a text packed as .xz, as they are.

    Raises:
        InputError: the file cannot be read, or holds no text.
    """
    if path.suffix == ".xz":
        try:
            lines = lzma.open(path, "rt", encoding="utf-8").read().splitlines()
        except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as packed text: {error}") from error
    else:
        from app.ingest.load import load_document

        lines = [line for part in load_document(path).parts for line in part.text.splitlines()]
    if not any(map(str.strip, lines)):
        raise InputError(f"{path}: holds no text; choose another file")
    return lines


def around(lines: Sequence[str], rng: random.Random) -> Iterator[str]:
    """The lines for ever, from a random one on."""
    start = rng.randrange(len(lines))
    while True:
        yield from lines[start:]
        start = 0


def fit(
    engine: "Engine", lines: Callable[[], Iterator[str]], compose: Callable[[list[str]], str], tokens: int
) -> list[int]:
    """Make a document of `tokens` tokens, or up to a line fewer.

    Args:
        lines: gives filler lines without end, the same at each call; the last one taken is cut at a word.
        compose: makes the document of the lines taken.

    Returns:
        The document's token ids.

    Raises:
        ConfigError: what `compose` adds to the filler leaves no room for it.
    """
    fixed = len(encode(engine, compose([])))
    costs: dict[str, int] = {}
    drift, best = 0, []
    for _ in range(ROUNDS):  # lines are counted one by one; the whole may come out a little longer or shorter
        taken, counted, line = _take(engine, lines(), tokens - fixed - drift, costs)
        if not taken:
            break
        ids = encode(engine, compose(taken))
        if len(best) < len(ids) <= tokens:
            best = ids
        if tokens - line <= len(ids) <= tokens:
            return ids
        drift = len(ids) - fixed - counted
    if not best:
        raise ConfigError(f"a text of {tokens} tokens has no room: what is planted takes {fixed}; ask for more tokens")
    return best


def _take(engine: "Engine", lines: Iterator[str], budget: int, costs: dict[str, int]) -> tuple[list[str], int, int]:
    """Lines of `budget` tokens in all, what they cost, and what the line that was cut would have cost whole."""

    def cost(line: str) -> int:
        return max(1, len(engine.text_tokenizer.encode(line + "\n", add_special_tokens=False).ids))

    taken, left = [], budget
    for line in lines:
        if line not in costs:
            costs[line] = cost(line)
        if costs[line] > left:
            break
        taken.append(line)
        left -= costs[line]
    words = line.split()
    piece = " ".join(words[: max(0, left) * len(words) // costs[line]])
    if piece and cost(piece) <= left:
        taken.append(piece)
        left -= cost(piece)
    return taken, budget - left, costs[line]


def plant(lines: Sequence[str], passages: Sequence[str], depths: Sequence[float]) -> str:
    """Put each passage at its depth (0 start, 1 end) among the lines."""
    planted = list(lines)
    for depth, passage in sorted(zip(depths, passages, strict=True), key=lambda place: -place[0]):
        planted.insert(round(depth * len(lines)), passage)
    return "\n".join(planted) + "\n"


def filled(
    engine: "Engine", filler: Sequence[str], passages: Sequence[str], depths: Sequence[float], tokens: int, seed: int
) -> list[int]:
    """Token ids of a text of `tokens` tokens, up to a line fewer: filler that holds each passage at its depth."""
    return fit(
        engine,
        lambda: around(filler, random.Random(seed)),
        lambda lines: plant(lines, passages, depths),
        tokens,
    )


def filler_lines(filler: str, file: Path | None) -> list[str]:
    """The lines that fill a text: of `file` for prose, else one group of sentences."""
    if filler == "prose":
        assert file is not None, "checked by the configuration"
        return lines_of(file)
    return [REPEAT_FILLER]


def check_filler(filler: str, file: Path | None) -> None:
    """Raises ConfigError when there is no such filler, or prose without a file."""
    if filler not in ("repeat", "prose"):
        raise ConfigError(f"filler {filler}: not known; choose repeat or prose")
    if filler == "prose" and file is None:
        raise ConfigError("filler prose: name the file whose lines fill the text")


def spread(rng: random.Random, count: int) -> list[float]:
    """Depths, one in each of `count` equal parts of the text, ascending."""
    return [(i + rng.random()) / count for i in range(count)]


def evenly(some: int, count: int) -> set[int]:
    """`some` of the numbers below `count`, evenly spread."""
    return {i * count // some for i in range(some)}


def read_on(
    engine: "Engine",
    memory: "RegionMemory | None",
    token_ids: Sequence[int],
    *,
    on_progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] = never,
) -> "RegionMemory":
    """Read a text that may begin as the one before it did: `memory` goes back to where they part, and reads on.

    What is kept ends where a group of queries ends, so that the memory is that of a whole reading. `memory` itself
    becomes the new one.
    """
    if memory is None:
        return engine.read(token_ids, on_progress=on_progress, cancelled=cancelled)
    pairs = enumerate(zip(memory.token_ids, token_ids, strict=False))
    same = next((i for i, (old, new) in pairs if old != new), min(len(memory.token_ids), len(token_ids)))
    group = engine.shape.attention.group_tokens
    memory.truncate(min(same, len(token_ids) - 1) // group * group)
    return engine.read(token_ids, resume=memory, on_progress=on_progress, cancelled=cancelled)


def converse(
    engine: "Engine",
    memories: Sequence["RegionMemory"],
    questions: Sequence[str],
    max_new_tokens: int,
    cancelled: Callable[[], bool] = never,
    words: "WordIndex | None" = None,
) -> list[Reply]:
    """The greedy answers to questions asked one after the other in one fresh chat over memories read before.

    Args:
        words: of the memories, for the words of the questions to be looked up too; None: attention looks alone.
    """
    from app.memory.config import GenerationConfig

    config = GenerationConfig(max_new_tokens=max_new_tokens)
    cache, messages, replies = engine.open_chat(memories), [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        tail = cache.tail.token_ids
        turn = engine.encode_turn(messages, tail[-1] if tail else None)
        before = [message["content"] for message in reversed(messages[:-1])]
        offered = words.offered(question, before, cache.shape.attention.budget_regions) if words else ()
        tokens = engine.generate(cache, turn, config, offered=offered, cancelled=cancelled)
        text = engine.decode(list(tokens)).strip()
        if cancelled():
            raise CancelledError("stopped")
        messages.append({"role": "assistant", "content": text})
        replies.append(Reply(text, _looked(cache)))
    return replies


def _looked(cache) -> tuple[int, ...]:
    """The regions of a cache's memories that its last answer looked at."""
    best = cache.evidence.density.topk(min(LOOKED, len(cache.evidence.density)))
    return tuple(best.indices[best.values > 0].tolist())


def answer(
    engine: "Engine", memory: "RegionMemory", question: str, max_new_tokens: int, cancelled: Callable[[], bool] = never
) -> str:
    """The greedy answer to one question in a fresh chat over a memory that was read before."""
    return converse(engine, [memory], [question], max_new_tokens, cancelled)[0].text


def regions_of(engine: "Engine", memory: "RegionMemory", line: str, start: int = 0, end: int | None = None) -> range:
    """Regions of a memory that hold the characters [start, end) of a line of its text; none when it is not there."""
    found = engine.text_tokenizer.encode(line, add_special_tokens=False)
    wanted = found.ids[1:-1]  # the tokens at its ends may hold what stands beside it too
    place = _find(memory.token_ids, wanted) if wanted else None
    if place is None:
        return range(0)
    end = len(line) if end is None else end
    inside = [i for i, (first, last) in enumerate(found.offsets) if first < end and last > start]
    size = engine.shape.attention.region_tokens
    first, last = (min(max(i - 1, 0), len(wanted) - 1) for i in (inside[0], inside[-1]))
    return range((place + first) // size, (place + last) // size + 1)


def _find(ids: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Where a run of ids begins in another for the first time."""
    place = -1
    while True:
        try:
            place = ids.index(wanted[0], place + 1)
        except ValueError:
            return None
        if ids[place : place + len(wanted)] == wanted:
            return place


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
