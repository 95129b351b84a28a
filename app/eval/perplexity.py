"""Perplexity of a text at several lengths of what was read before, on the same tokens each time."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import ConfigError, InputError
from app.eval import report, texts

if TYPE_CHECKING:
    from app.runtime.engine import Engine


@dataclass(frozen=True)
class PerplexityConfig:
    """What to measure.

    Attributes:
        lengths: tokens of a reading (the window), BOS with them.
        counted: tokens at the end of each reading whose probability counts; None means half the shortest length, at
            most 512. They are the same text at every length, so that lengths can be compared.
        windows: places of the text, evenly spread, each read at every length.
    """

    lengths: tuple[int, ...]
    counted: int | None = None
    windows: int = 4

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 4:
            raise ConfigError(f"perplexity lengths {list(self.lengths)}: need at least one, each 4 tokens or more")
        if not 1 <= self.counted_tokens < min(self.lengths):
            raise ConfigError(f"counted tokens {self.counted}: must lie between 1 and the shortest length, less one")
        if self.windows < 1:
            raise ConfigError(f"windows {self.windows}: must be at least 1")

    @property
    def counted_tokens(self) -> int:
        return min(512, min(self.lengths) // 2) if self.counted is None else self.counted


@dataclass(frozen=True)
class Window:
    """One reading: mean negative log-probability of its counted tokens, in nats."""

    tokens: int
    end: int
    nats: float


def ends(total: int, config: PerplexityConfig) -> list[int]:
    """Where the windows end in a text of `total` tokens; windows that would count a token twice are left out.

    Raises:
        InputError: the text is shorter than the longest length.
    """
    longest = max(config.lengths)
    if total < longest:
        raise InputError(f"the text has {total:,} tokens, fewer than the length {longest:,}; name a longer file")
    room = total - longest
    windows = min(config.windows, 1 + room // config.counted_tokens)
    return [longest + room * i // max(1, windows - 1) for i in range(windows)] if windows > 1 else [total]


def run(
    engine: "Engine",
    token_ids: Sequence[int],
    config: PerplexityConfig,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = texts.never,
) -> Iterator[Window]:
    """Yield one result per length and window; `token_ids` is a document with its BOS."""
    places = ends(len(token_ids), config)
    bos, done, total = list(token_ids[:1]), 0, len(places) * sum(config.lengths)
    for length in sorted(config.lengths):
        for end in places:
            ids = bos + list(token_ids[end - length + 1 : end])
            counted = engine.log_probs(ids, counted_from=length - config.counted_tokens, cancelled=cancelled)
            yield Window(length, end, -float(counted.double().mean()))
            done += length
            on_progress(done, total)


def summary(windows: Sequence[Window], config: PerplexityConfig) -> dict[str, Any]:
    """Perplexity per length; the standard error is that of the mean nats over windows."""
    places = sorted({window.end for window in windows})
    rows = []
    for tokens in sorted({window.tokens for window in windows}):
        nats = [window.nats for window in windows if window.tokens == tokens]
        mean = math.fsum(nats) / len(nats)
        rows.append(
            {
                "tokens": tokens,
                "perplexity": math.exp(mean),
                "nats": mean,
                "standard_error": report.standard_error(nats),
                "windows": len(nats),
                "counted_tokens": len(nats) * config.counted_tokens,
            }
        )
    stride = (places[-1] - places[0]) // (len(places) - 1) if len(places) > 1 else None
    return {"lengths": rows, "counted_per_window": config.counted_tokens, "stride": stride}
