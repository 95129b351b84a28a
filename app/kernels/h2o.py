"""Heavy hitters (H2O): the attention mass that each key received, and which keys it says to keep.

Published H2O keeps the newest keys and those with most accumulated mass. Ours always keeps the sinks, and tells the
others apart by the most that one query gave, lately and by how much the value weighs (`peak`), or by the mass that each
query row gave on average, so that old keys do not win by age alone (`mean`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from app.errors import ConfigError
from app.kernels.backend import use_triton

SCORES = ("mean", "sum", "decay", "peak")
ROWS = ("last", "all")
DECAY = 0.98  # per query, of the mass received before it
PEAK_DECAY = 0.995  # per token that follows, of the most that a query gave
LEAST = 1e-20  # mass that is told from none
GRACE = 16  # newest keys that `decay` never evicts: they have had no time to be seen


@dataclass(frozen=True)
class H2OOptions:
    """Which keys are kept.

    Attributes:
        score: `mean` is the mass per query row that saw the key, `sum` all of it (as published), `decay` a sum in which
            each query counts 0.98 times as much as the next, `peak` the most that one query gave (or several that are
            counted together, on average), times 0.995 for each token since, times the length of the value.
        rows: query rows whose mass counts while a text is read: `last`, some at the end of each group, or `all`.
        sinks: first keys of the text, always kept.
        recent: newest keys, always kept; 0 means half of the budget (as published).
        block: keys evicted together.
    """

    score: str = "mean"
    rows: str = "last"
    sinks: int = 4
    recent: int = 64
    block: int = 16

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ConfigError(f"score = {self.score!r}: not known; choose one of {', '.join(SCORES)}")
        if self.rows not in ROWS:
            raise ConfigError(f"rows = {self.rows!r}: not known; choose one of {', '.join(ROWS)}")
        for name, least in (("sinks", 0), ("recent", 0), ("block", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least {least}")

    def window(self, budget: int) -> int:
        """Newest keys that are kept whatever they score, within a budget."""
        recent = self.recent or budget // 2
        return max(recent, GRACE) if self.score == "decay" else recent


PRESETS = {
    "peak": H2OOptions(score="peak", recent=0),
    "mean": H2OOptions(),
    "exact": H2OOptions(rows="all"),
    "decay": H2OOptions(score="decay"),
    "published": H2OOptions(score="sum", rows="all", sinks=0, recent=0),
}


def attention_mass(
    queries: Tensor, keys: Tensor, mask: Tensor | None, scale: float, *, lse: Tensor | None = None
) -> Tensor:
    """Column sums of the attention of a few query rows.

    Args:
        queries: [..., Q, D], rotated.
        keys: [..., S, D], rotated.
        mask: broadcastable to [..., Q, S], True where a query sees a key; None when all are seen.
        lse: [..., Q] float32, log-sum-exp of the rows over what they see, where the attention has told it.

    Returns:
        [..., S], float32: mass received by each key, summed over the rows.
    """
    if use_triton(queries):
        from app.kernels.h2o_triton import column_sums

        return column_sums(queries, keys, scale, mask=mask, lse=lse)
    return attention_mass_reference(queries, keys, mask, scale, lse=lse)


def attention_mass_reference(
    queries: Tensor, keys: Tensor, mask: Tensor | None, scale: float, *, lse: Tensor | None = None
) -> Tensor:
    """The same in plain PyTorch, in float32, or float64 for such queries."""
    logits = queries @ keys.transpose(-1, -2)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return (torch.softmax(logits, dim=-1) if lse is None else (logits - lse[..., None]).exp()).sum(-2)


def causal_mass(
    queries: Tensor, keys: Tensor, ends: Tensor, scale: float, *, weights: Tensor | None = None, tile: int = 512
) -> Tensor:
    """Column sums of the attention of any number of query rows, exact: acc_j = sum_i exp(q_i k_j - lse_i).

    Two passes over tiles: the first finds each row's log-sum-exp, the second adds up. Never more than tile x tile
    products at once (the kernel's tiles are smaller).

    Args:
        queries: [..., Q, D], rotated.
        keys: [..., S, D], rotated.
        ends: [Q], int64: row i sees the first `ends[i]` keys, at least one.
        weights: [Q] float32, what each row counts; 1 when None.

    Returns:
        [..., S], float32.
    """
    if use_triton(queries):
        from app.kernels.h2o_triton import column_sums

        return column_sums(queries, keys, scale, ends=ends, weights=weights)
    return causal_mass_reference(queries, keys, ends, scale, weights=weights, tile=tile)


def causal_mass_reference(
    queries: Tensor, keys: Tensor, ends: Tensor, scale: float, *, weights: Tensor | None = None, tile: int = 512
) -> Tensor:
    """The same in plain PyTorch."""
    mass = torch.zeros(keys.shape[:-1], dtype=torch.float32, device=keys.device)
    for row in range(0, queries.shape[-2], tile):
        q, last = queries[..., row : row + tile, :], ends[row : row + tile]
        counted = 1.0 if weights is None else weights[row : row + tile, None]
        columns = range(0, int(last.max()), tile)

        def logits(first: int, q: Tensor = q, last: Tensor = last) -> Tensor:
            k = keys[..., first : first + tile, :]
            place = torch.arange(first, first + k.shape[-2], device=k.device)
            return ((q @ k.transpose(-1, -2)).float() * scale).masked_fill(place >= last[:, None], float("-inf"))

        lse = torch.full(q.shape[:-1], float("-inf"), device=q.device)
        for first in columns:
            lse = torch.logaddexp(lse, logits(first).logsumexp(-1))
        for first in columns:
            mass[..., first : first + tile] += ((logits(first) - lse[..., None]).exp() * counted).sum(-2)
    return mass


def peaks(mass: Tensor, places: Tensor | int) -> Tensor:
    """What is kept of the mass that queries gave, so that the largest of it is the `peak` score.

    A logarithm in which later queries count more: earlier ones need not be made smaller at every step.

    Args:
        mass: of one query each, float32. places: of the queries in the text, broadcastable to it.

    Returns:
        The same shape, positive; 0 is less than any mass.
    """
    return mass.clamp(min=LEAST).log() - math.log(LEAST) - places * math.log(PEAK_DECAY)


def scores(mass: Tensor, exposure: Tensor, score: str, values: Tensor | None = None) -> Tensor:
    """What each key is worth, the same shape, float32.

    Args:
        mass: mass received; summed over the query heads of a KV head; for `peak` the largest of `peaks`.
        exposure: query rows that saw the key, float32 of the same shape.
        score: see H2OOptions; a decaying sum is one already.
        values: lengths of the values, of the same shape; `peak` alone asks for them.
    """
    if score == "peak":
        assert values is not None, "a peak is weighed by the value"
        return mass + values.float().clamp(min=LEAST).log()
    return mass / exposure.clamp(min=1) if score == "mean" else mass


def heaviest(worth: Tensor, count: int, *, sinks: int = 0, recent: int = 0) -> Tensor:
    """The keys to keep: the first `sinks`, the last `recent`, and the worthiest between; ties to the later one.

    Args:
        worth: [..., S], float32.
        count: keys to keep, at least sinks + recent; all of them when it is S or more.

    Returns:
        [..., count], int64, ascending.

    Raises:
        ValueError: `count` is smaller than what is always kept.
    """
    size = worth.shape[-1]
    if count >= size:
        return torch.arange(size, device=worth.device).expand(*worth.shape[:-1], size)
    if count < sinks + recent or count < 1:
        raise ValueError(f"keep {count}: must be positive and hold {sinks} sinks and {recent} recent keys")
    worth = worth.clone()
    worth[..., :sinks] = float("inf")
    worth[..., size - recent :] = float("inf")
    order = worth.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return (size - 1 - order).sort(-1).values


def evict(
    mass: Tensor, exposure: Tensor, budget: int, new: int, options: H2OOptions, values: Tensor | None = None
) -> Tensor:
    """The keys to keep so that `new` more fit the budget; they are evicted in blocks.

    Args:
        mass, exposure: [Hkv, S] of the keys that are held, in text order; `values` the lengths of their values.

    Returns:
        [Hkv, K], int64, ascending; K = S when there is room already.
    """
    size = mass.shape[-1]
    excess = size + new - budget
    if excess <= 0:
        return heaviest(mass, size)
    count = max(size - -(-excess // options.block) * options.block, options.sinks + options.window(budget))
    worth = scores(mass, exposure, options.score, values)
    return heaviest(worth, count, sinks=options.sinks, recent=options.window(budget))


def published(mass: Tensor, heavy: int, recent: int) -> Tensor:
    """H2O as published: the last `recent` keys and the `heavy` ones with most mass among the others.

    Args:
        mass: [..., S], accumulated over all rows so far.

    Returns:
        [..., min(S, heavy + recent)], int64, ascending.
    """
    return heaviest(mass, heavy + recent, recent=recent)
