"""Passkey test: numbers planted in a long text, asked from the memory of it. The way is that of a user's document."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.errors import ConfigError
from app.eval import report, texts
from app.tasks import needles
from app.tasks.needles import Passkey

if TYPE_CHECKING:
    from app.runtime.engine import Engine

ANSWER_TOKENS = 48
DROPPING = ("h2o", "bounded")  # policies whose memories lose tokens


@dataclass(frozen=True)
class PasskeyConfig:
    """What to run.

    Attributes:
        lengths: tokens of the documents, as tokenised.
        trials: questions asked per length.
        per_reading: keys planted in one reading, each asked in a chat of its own.
        filler: `repeat`, one sentence group again and again, or `prose`, the lines of `filler_file`.
        depth_bands: depths are drawn evenly from this many equal parts of the text.
        distractors: keys of other names in every text, never asked; the asked keys have names then.
        one_text: the trials of a length share filler and distractors, and the asked key moves from the end towards the
            start: what stands before it is read once. The memories are those of whole readings, at half the cost.
    """

    lengths: tuple[int, ...]
    trials: int = 20
    per_reading: int = 1
    filler: Literal["repeat", "prose"] = "repeat"
    filler_file: Path | None = None
    seed: int = 0
    depth_bands: int = 10
    distractors: int = 0
    one_text: bool = False

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"passkey lengths {list(self.lengths)}: need at least one, each positive")
        if not 1 <= self.trials <= texts.MOST_TRIALS:
            raise ConfigError(f"passkey trials {self.trials}: must lie between 1 and {texts.MOST_TRIALS:,}")
        if not 1 <= self.per_reading <= len(needles.NAMES):
            raise ConfigError(f"keys per reading {self.per_reading}: must lie between 1 and {len(needles.NAMES)}")
        texts.check_filler(self.filler, self.filler_file)
        names = self.distractors + (self.trials if self.one_text and self.distractors else self.per_reading)
        if self.distractors < 0 or names > len(needles.NAMES):
            raise ConfigError(
                f"distractors {self.distractors}: must be 0 or more, and all keys have names of their own, "
                f"of which there are {len(needles.NAMES)}"
            )
        if self.one_text and self.per_reading > 1:
            raise ConfigError(f"one text for all trials: takes one key per reading, not {self.per_reading}")
        if self.depth_bands < 1:
            raise ConfigError(f"depth bands {self.depth_bands}: must be at least 1")


@dataclass(frozen=True)
class PasskeyCell:
    """The finished trials of one length and depth.

    Attributes:
        tokens: the length asked for.
        depth: middle of the depth band, 0 to 1.
        document_tokens: tokens of its longest document, at most one line fewer than `tokens`.
        misses: (number wanted, what was answered).
    """

    tokens: int
    depth: float
    right: int
    trials: int
    document_tokens: int = 0
    misses: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Trial:
    """A key to plant; `band` is None when it only stands beside others and is not asked."""

    depth: float
    band: int | None
    key: Passkey


@dataclass(frozen=True)
class _Asked:
    key: Passkey
    answer: str
    document_tokens: int


def plan(rng: random.Random, config: PasskeyConfig) -> list[list[Trial]]:
    """What stands together in each reading: every band gets its share of trials, readings get equal keys."""
    trials, bands = config.trials, config.depth_bands
    readings = -(-trials // config.per_reading)
    bands_of = [i * bands // trials for i in range(trials)]
    placed = [((band + rng.random()) / bands, band) for band in bands_of]
    if config.one_text:
        return _one_text(rng, placed, config.distractors)
    plans = []
    for i in range(readings):
        asked = placed[i::readings]
        others = config.per_reading - len(asked) + config.distractors
        keys = needles.draw(rng, len(asked) + others)
        places = [*asked, *((rng.random(), None) for _ in range(others))]
        plans.append([Trial(depth, band, key) for (depth, band), key in zip(places, keys, strict=True)])
    return plans


def _one_text(rng: random.Random, placed: Sequence[tuple[float, int]], distractors: int) -> list[list[Trial]]:
    """Readings that differ in the asked key alone, the deepest first."""
    count = len(placed)
    if distractors:
        keys = needles.draw(rng, count + distractors)
    else:
        keys = [needles.draw(rng, 1)[0] for _ in placed]
    beside = [Trial(rng.random(), None, key) for key in keys[count:]]
    asked = [Trial(depth, band, key) for (depth, band), key in zip(placed, keys[:count], strict=True)]
    return [[trial, *beside] for trial in sorted(asked, key=lambda trial: -trial.depth)]


def run(
    engine: "Engine",
    config: PasskeyConfig,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = texts.never,
) -> Iterator[PasskeyCell]:
    """Yield each cell once, when all its trials are asked.

    Args:
        on_progress: gets the document tokens read so far and in all.

    Raises:
        ConfigError: a length leaves no room for the keys, or one text is wanted of a policy that drops what it read.
        InputError: the filler file cannot be read.
        CancelledError: `cancelled` said so; the cells yielded before stand.
    """
    if config.one_text and engine.policy in DROPPING:
        raise ConfigError(f"one text for all trials: policy {engine.policy} drops what it read and cannot go back")
    filler = texts.filler_lines(config.filler, config.filler_file)
    done, total = 0, -(-config.trials // config.per_reading) * sum(config.lengths)
    for length in config.lengths:
        rng = random.Random(f"{config.seed}-{length}")
        plans = plan(rng, config)
        wanted = Counter(trial.band for trials in plans for trial in trials)
        asked: dict[int, list[_Asked]] = defaultdict(list)
        memory, seed = None, rng.randrange(2**32)
        for trials in plans:
            ids = _document(engine, filler, trials, length, seed if config.one_text else rng.randrange(2**32))
            progress = _shifted(on_progress, done, total)
            memory = texts.read_on(
                engine, memory if config.one_text else None, ids, on_progress=progress, cancelled=cancelled
            )
            done += length
            for trial in trials:
                if trial.band is not None:
                    text = texts.answer(engine, memory, trial.key.question, ANSWER_TOKENS, cancelled)
                    asked[trial.band].append(_Asked(trial.key, text, len(ids)))
            for band in [band for band, results in asked.items() if len(results) == wanted[band]]:
                yield _cell(length, (band + 0.5) / config.depth_bands, asked.pop(band))
        on_progress(done, total)


def _shifted(on_progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: on_progress(before + done, total)


def _document(engine: "Engine", filler: Sequence[str], trials: Sequence[Trial], tokens: int, seed: int) -> list[int]:
    keys, depths = [trial.key for trial in trials], [trial.depth for trial in trials]
    return texts.fit(
        engine,
        lambda: texts.around(filler, random.Random(seed)),
        lambda lines: needles.plant(lines, keys, depths),
        tokens,
    )


def _cell(tokens: int, depth: float, asked: Sequence[_Asked]) -> PasskeyCell:
    misses = tuple((a.key.number, a.answer) for a in asked if not a.key.found_in(a.answer))
    longest = max(a.document_tokens for a in asked)
    return PasskeyCell(tokens, depth, len(asked) - len(misses), len(asked), longest, misses)


def summary(cells: Sequence[PasskeyCell]) -> dict[str, Any]:
    """The result in all, per length and per depth; accuracies lie between 0 and 1."""
    lengths = []
    for tokens in sorted({cell.tokens for cell in cells}):
        rows = sorted((cell for cell in cells if cell.tokens == tokens), key=lambda cell: cell.depth)
        depths = [{"depth": round(cell.depth, 4), **_score([cell])} for cell in rows]
        longest = max(cell.document_tokens for cell in rows)
        lengths.append({"tokens": tokens, "document_tokens": longest, **_score(rows), "depths": depths})
    misses = [
        {"tokens": cell.tokens, "depth": round(cell.depth, 4), "wanted": wanted, "answer": answer}
        for cell in cells
        for wanted, answer in cell.misses
    ]
    return {**_score(cells), "lengths": lengths, "misses": misses}


def _score(cells: Sequence[PasskeyCell]) -> dict[str, Any]:
    right, trials = (sum(cell.right for cell in cells), sum(cell.trials for cell in cells))
    accuracy = right / trials if trials else 0.0
    bound = round(report.lower_bound_95(right, trials), 4)
    return {"accuracy": accuracy, "lower_bound_95": bound, "right": right, "trials": trials}
