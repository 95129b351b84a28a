"""Statistics of results and plain tables of them."""

import math
from collections.abc import Sequence
from typing import Any


def _at_least(right: int, trials: int, p: float) -> float:
    """Probability of at least `right` successes in `trials` draws of probability p, 0 < p < 1."""
    log_p, log_q = math.log(p), math.log1p(-p)
    return math.fsum(
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * log_p
            + (trials - k) * log_q
        )
        for k in range(right, trials + 1)
    )


def lower_bound_95(right: int, trials: int) -> float:
    """One-sided 95% Clopper-Pearson lower bound of an accuracy.

    Returns:
        The largest p for which `right` or more successes would still be no more likely than 5%; 0 without a success.

    Raises:
        ValueError: `right` does not lie between 0 and `trials`.
    """
    if not 0 <= right <= trials:
        raise ValueError(f"right {right} of trials {trials}: must lie between 0 and trials")
    if right == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(right, trials, middle) <= 0.05 else (low, middle)
    return low


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table; numbers to the right, None as a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(headings), line(["-" * w for w in widths]), *map(line, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
