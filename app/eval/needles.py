"""Needles: several facts planted in one long text, asked from the memory of it by first and by second questions."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from app.errors import ConfigError
from app.eval import report, texts
from app.tasks import needles
from app.tasks.needles import NAMES, Needle

if TYPE_CHECKING:
    from app.memory.memory import RegionMemory
    from app.runtime.engine import Engine

Task = Literal[
    "single",
    "multi-key",
    "multi-value",
    "multi-query",
    "key-value",
    "uuid",
    "tracking",
    "common-words",
    "frequent-words",
]
TASKS: tuple[Task, ...] = get_args(Task)
VALUES = 3  # of one name
QUERIES = 3  # keys of one question
HOPS = 3  # of one chain
COMMON = {"often": 5, "times": 12, "others": 40, "other_times": 2}
FREQUENT = {"words": 120, "asked": 3}
NAMES_EACH = {
    "single": 1,
    "multi-key": 1,
    "multi-value": 1,
    "multi-query": QUERIES,
    "tracking": HOPS + 1,
    "common-words": 1,
    "frequent-words": 1,
}
ANSWER_TOKENS = {"uuid": 112, "multi-query": 96}
OTHER_ANSWER_TOKENS = 64
KEPT = 0.85  # of the score at the shortest length, up to the effective length


@dataclass(frozen=True)
class NeedlesConfig:
    """What to run.

    Attributes:
        tasks: kinds of needles; those of all tasks stand in the same readings.
        lengths: tokens of the documents.
        trials: first questions per task and length.
        per_reading: questions per task in one reading.
        second: of those, how many are asked once more as the second question of a chat; scored apart.
        distractors: needles per task that are planted and never asked.
        filler: `prose`, the lines of `filler_file`, or `repeat`.
    """

    tasks: tuple[Task, ...]
    lengths: tuple[int, ...]
    trials: int = 20
    per_reading: int = 5
    second: int = 2
    distractors: int = 0
    filler: Literal["repeat", "prose"] = "prose"
    filler_file: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ConfigError(f"task {', '.join(unknown) or 'missing'}: choose from {', '.join(TASKS)}")
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"needle lengths {list(self.lengths)}: need at least one, each positive")
        if not (1 <= self.trials <= texts.MOST_TRIALS and 1 <= self.per_reading <= texts.MOST_TRIALS):
            raise ConfigError(
                f"needles: {self.trials} trials, {self.per_reading} per reading: each must lie between 1 and "
                f"{texts.MOST_TRIALS:,}"
            )
        if self.second < 0 or self.distractors < 0:
            raise ConfigError(f"needles: second {self.second}, distractors {self.distractors}: must be 0 or more")
        names = self.planted * sum(NAMES_EACH.get(task, 0) for task in self.tasks)
        if names > len(NAMES):
            raise ConfigError(
                f"{self.planted} needles of each task: take {names} names, of which there are {len(NAMES)}; "
                "ask for fewer"
            )
        texts.check_filler(self.filler, self.filler_file)

    @property
    def planted(self) -> int:
        """Needles per task in one reading."""
        return self.per_reading + self.distractors

    @property
    def readings(self) -> int:
        """Readings of each length."""
        return -(-self.trials // self.per_reading)


@dataclass(frozen=True)
class Asked:
    """One question and what came of it.

    Attributes:
        turn: 1, or 2 for a question after another in the same chat.
        depth: where the needle's first sentence stood, 0 to 1.
        score: share of the wanted values that the answer holds.
    """

    task: Task
    tokens: int
    document_tokens: int
    turn: int
    depth: float
    score: float
    wanted: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Planted:
    """A needle and the depths of its sentences, ascending."""

    task: Task
    needle: Needle
    depths: tuple[float, ...]


def make(rng: random.Random, task: Task, count: int, names: Sequence[str] = NAMES) -> list[Needle]:
    """`count` needles of one task; words that name them are taken from `names`."""
    if task == "single":
        return needles.passes(rng, count, names)
    if task == "multi-key":
        return needles.pairs(rng, count, "word", names)
    if task in ("key-value", "uuid"):
        return needles.pairs(rng, count, "digits" if task == "key-value" else "uuid")
    if task == "multi-value":
        return needles.several_values(rng, count, VALUES, names)
    if task == "multi-query":
        return needles.queries(rng, count, QUERIES, "word", names)
    if task == "tracking":
        return needles.chains(rng, count, HOPS, names)
    if task == "common-words":
        return needles.common_words(rng, count, **COMMON, names=names)
    return needles.frequent_words(rng, count, **FREQUENT, names=names)


def plan(rng: random.Random, tasks: Sequence[Task], count: int) -> list[Planted]:
    """`count` needles of every task, no name in two of them, their sentences spread evenly over all depths."""
    names = rng.sample(NAMES, len(NAMES))
    drawn: list[tuple[Task, Needle]] = []
    for task in tasks:
        taken = count * NAMES_EACH.get(task, 0)
        drawn += [(task, needle) for needle in make(rng, task, count, names[:taken])]
        names = names[taken:]
    depths = texts.spread(rng, sum(len(needle.sentences) for _, needle in drawn))
    rng.shuffle(depths)
    places = iter(depths)
    return [Planted(task, needle, tuple(sorted(next(places) for _ in needle.sentences))) for task, needle in drawn]


def run(
    engine: "Engine",
    config: NeedlesConfig,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = texts.never,
) -> Iterator[Asked]:
    """Read each document once and yield every question asked of it.

    Args:
        on_progress: gets the document tokens read so far and in all.

    Raises:
        ConfigError: a length leaves no room for the needles.
        InputError: the filler file cannot be read.
        CancelledError: `cancelled` said so.
    """
    filler = texts.filler_lines(config.filler, config.filler_file)
    done, total = 0, config.readings * sum(config.lengths)
    for length in config.lengths:
        rng = random.Random(f"{config.seed}-{length}")
        left = config.trials
        for _ in range(config.readings):
            planted = plan(rng, config.tasks, config.planted)
            ids = document(engine, filler, planted, length, rng.randrange(2**32))
            memory = engine.read(ids, cancelled=cancelled)
            asked = _to_ask(planted, config, min(left, config.per_reading))
            left -= config.per_reading
            yield from ask(engine, memory, asked, length, config.second * len(config.tasks), cancelled)
            done += length
            on_progress(done, total)


def document(engine: "Engine", filler: Sequence[str], planted: Sequence[Planted], tokens: int, seed: int) -> list[int]:
    """Token ids of a text of `tokens` tokens, up to a line fewer, that holds the needles at their depths."""
    sentences = [sentence for place in planted for sentence in place.needle.sentences]
    depths = [depth for place in planted for depth in place.depths]
    return texts.filled(engine, filler, sentences, depths, tokens, seed)


def _to_ask(planted: Sequence[Planted], config: NeedlesConfig, count: int) -> list[Planted]:
    return [place for task in config.tasks for place in [p for p in planted if p.task == task][:count]]


def ask(
    engine: "Engine",
    memory: "RegionMemory",
    asked: Sequence[Planted],
    tokens: int,
    second: int,
    cancelled: Callable[[], bool] = texts.never,
) -> Iterator[Asked]:
    """Ask for each needle in a chat of its own; `second` chats, evenly chosen, go on with the needle after it."""
    count = len(asked)
    follow = texts.evenly(min(second, count), count) if count > 1 else set()
    for i, place in enumerate(asked):
        turns = [place, asked[(i + 1) % count]] if i in follow else [place]
        limit = max(ANSWER_TOKENS.get(p.task, OTHER_ANSWER_TOKENS) for p in turns)
        replies = texts.converse(engine, [memory], [p.needle.question for p in turns], limit, cancelled)
        for turn, (p, reply) in enumerate(zip(turns, replies, strict=True), start=1):
            score = p.needle.score(reply.text)
            yield Asked(p.task, tokens, len(memory.token_ids), turn, p.depths[0], score, p.needle.values, reply.text)


def summary(asked: Sequence[Asked]) -> dict[str, Any]:
    """First questions in all; per task and length, first and second questions apart; effective lengths."""
    rows = []
    for task in dict.fromkeys(a.task for a in asked):
        for tokens in sorted({a.tokens for a in asked if a.task == task}):
            here = [a for a in asked if a.task == task and a.tokens == tokens]
            row = {"task": task, "tokens": tokens, "document_tokens": max(a.document_tokens for a in here)}
            rows.append(row | _score([a for a in here if a.turn == 1]) | {"second": _second(here)})
    misses = [
        {"task": a.task, "tokens": a.tokens, "turn": a.turn, "depth": round(a.depth, 4), "wanted": list(a.wanted)}
        | {"answer": a.answer}
        for a in asked
        if a.score < 1
    ]
    first = _score([a for a in asked if a.turn == 1])
    return {**first, "effective_tokens": effective_tokens(rows), "rows": rows, "misses": misses}


def effective_tokens(rows: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Per task the length up to which first questions keep 85% of the score at the shortest length, RULER's measure.

    Args:
        rows: with `task`, `tokens` and `score`, in any order.

    Returns:
        The last length before the first that falls short; None where the shortest scores nothing.
    """
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        here = sorted((row["tokens"], row["score"]) for row in rows if row["task"] == task)
        kept = takewhile(lambda row, least=KEPT * here[0][1]: row[1] >= least, here)
        found[task] = max(tokens for tokens, _ in kept) if here[0][1] else None
    return found


def _second(asked: Sequence[Asked]) -> dict[str, Any] | None:
    second = [a for a in asked if a.turn == 2]
    return _score(second) if second else None


def _score(asked: Sequence[Asked]) -> dict[str, Any]:
    """Mean score, and how many answers held every value, with the bound of that share."""
    right = sum(a.score == 1 for a in asked)
    return {
        "score": sum(a.score for a in asked) / len(asked) if asked else 0.0,
        "accuracy": right / len(asked) if asked else 0.0,
        "lower_bound_95": round(report.lower_bound_95(right, len(asked)), 4),
        "right": right,
        "trials": len(asked),
    }
