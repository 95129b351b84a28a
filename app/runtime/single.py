"""Which regions a single query attends to, in decode: MSA-1 with one query, at a cost that grows slowly with the text.

Many regions are scored roughly first, all of them from the int8 sketch of the index or those that a tree finds; the
best are scored again with their means. The softmax of the votes runs over all that was scored, not over those alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from app.kernels.codes import uses_integers
from app.kernels.regions import best_regions, region_scores
from app.kernels.tree import candidate_regions, search
from app.memory.config import AttentionConfig
from app.memory.memory import RegionMemory
from app.runtime.cache import RegionCache
from app.runtime.selection import FOUND_PER_CANDIDATE, query_means, searched_by_tree, select
from app.runtime.spec import AttentionSpec

SPARE = 2  # times as many regions are scored again as are chosen, at least
NOT_SEEN = -1e30  # below every score, and no trouble in a softmax
LEAST = 1e-7  # share of the softmax that the regions left out have at least: float32 does not tell it from none

Scored = tuple[Tensor, Tensor, Tensor]  # regions [Hkv, C], their scores and the log of all regions' sum [Hkv, heads]


class SharedChoices:
    """Choices of one answer that several of its tokens share, in each layer as many as it can afford.

    In some models few layers find what is asked for and the others go on with what was found: there, choosing for each
    token in those alone loses next to nothing (docs/experiments.md).
    """

    def __init__(self, every: Sequence[int]) -> None:
        """
        Args:
            every: by layer, tokens that share a choice; it ends with the region that grows, too.
        """
        self.every = every
        self._kept: dict[int, tuple[int, int, Tensor]] = {}  # by layer: the region that grew, tokens left, the choice

    def of(self, layer: int, first: int, choose: Callable[[], Tensor]) -> Tensor:
        """The regions [1, Hkv, K] of a query that stands in region `first`, kept or as `choose` finds them."""
        grew, left, regions = self._kept.get(layer, (first, 0, None))
        if regions is None or grew != first or not left:
            left, regions = self.every[layer], choose()
        self._kept[layer] = first, left - 1, regions
        return regions

    def forget(self) -> None:
        """Let every layer choose next."""
        self._kept.clear()


def select_one(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, first: int, lengths: Tensor) -> Tensor:
    """Choose the regions of a single query.

    Args:
        q: [1, Hkv, heads, 1, D] raw query, which stands in region `first`.
        lengths: [R] tokens of every region, 0 for muted ones.

    Returns:
        [1, Hkv, K] regions in text order.
    """
    a, kv_heads = spec.attention, q.shape[1]
    if not (a.votes_by_means and spec.policy.scores):
        return select(spec, cache, layer, q, torch.tensor([first], device=q.device), 1, lengths)
    near = spec.first_near(first)
    sinks = a.sink_regions if a.forced == "all" else 0
    forced = [*range(sinks), *(max(0, region) for region in range(near, first + 1))]
    count = min(max(0, a.budget_regions - len(forced)), near)
    query = query_means(spec, q)[0, :, :, 0]  # [Hkv, heads, D]
    far = (near - cache.base_regions) * a.region_tokens >= a.decode_tree_from_tokens
    searched = searched_by_tree(cache, far, a.decode_tree_from_tokens)
    parts: list[Scored] = []
    for tree, (offset, end, memory) in zip(searched, cache.stores(), strict=True):
        start, stop = max(sinks - offset, 0), min(end, near) - offset
        if start >= stop:
            continue
        seen = None if cache.allowed is None else lengths[offset + start : offset + stop] > 0
        if seen is not None and not seen.any():
            continue
        regions, scores, total = _scored(a, memory, layer, query, range(start, stop), seen, count, tree)
        parts.append((regions + offset, scores, total))
    fixed = torch.tensor(forced, device=q.device).expand(kv_heads, -1)
    if not parts:  # all but what is near is muted
        return fixed.sort(-1).values[None]
    regions, scores, total = parts[0]
    if len(parts) > 1:
        regions, scores = (torch.cat(x, dim=-1) for x in list(zip(*parts, strict=True))[:2])
        total = torch.stack([part[2] for part in parts]).logsumexp(0)
    votes = (scores - total[..., None]).logsumexp(-2)
    picked = regions.gather(-1, best_regions(votes, count))
    return torch.cat([picked, fixed], dim=-1).sort(-1).values[None]


def _scored(
    a: AttentionConfig,
    memory: RegionMemory,
    layer: int,
    query: Tensor,
    among: range,
    seen: Tensor | None,
    count: int,
    tree: bool,
) -> Scored:
    """The best of the regions `among` those of a memory, or all when they are few; `seen` leaves some of them out."""
    if seen is not None and int(seen.sum()) <= max(a.candidates, count):
        few = seen.nonzero()[:, 0] + among.start
        return _exactly(memory, layer, query, few.expand(len(query), -1))
    if len(among) <= max(a.candidates, count):
        fine = memory.index.summaries(layer, "fine", among.stop)[:, among.start :]
        scores = region_scores(query, fine.float())
        few = torch.arange(among.start, among.stop, device=query.device)
        return few.expand(len(query), -1), scores, scores.logsumexp(-1)
    if tree:
        return _by_tree(a, memory, layer, query, among, count)
    rough, shift = _roughly(memory, layer, query, among.stop)
    rough = rough[..., among.start :]
    if seen is not None:
        rough = rough.masked_fill(~seen, float("-inf"))
    return _again(memory, layer, query, rough, shift, max(a.candidates // 2, SPARE * count), among.start)


def _roughly(memory: RegionMemory, layer: int, query: Tensor, stop: int) -> tuple[Tensor, Tensor]:
    """Scores [Hkv, heads, R] of the first `stop` regions, as exact as codes or the cache's data type allow.

    What is the same for all regions is told apart, [Hkv, heads].
    """
    if uses_integers(query):
        return memory.index.sketch.scores(layer, query, stop)
    fine = memory.index.summaries(layer, "fine", stop)
    return region_scores(query.to(fine.dtype), fine), query.new_zeros(query.shape[:2])


def _by_tree(a: AttentionConfig, memory: RegionMemory, layer: int, query: Tensor, among: range, count: int) -> Scored:
    """The best of the regions that a tree finds, at least `count`; nothing here has the size of the text."""
    per_region, kept = a.region_tokens // a.key_sub, SPARE * count
    fine, levels = memory.index.tree(layer)
    end, beam = among.stop * per_region, max(a.tree_beam, a.candidates, count)
    numbers, scores = search(fine, levels, query, end, end, beam=beam)
    if among.start:
        scores = scores.masked_fill((numbers < among.start * per_region)[:, None], NOT_SEEN)
    shares = scores.log_softmax(-1)
    found = min(max(FOUND_PER_CANDIDATE * kept, per_region * count), scores.shape[-1])
    best = shares.amax(-2).topk(found, dim=-1)
    regions, valid = candidate_regions(numbers.gather(-1, best.indices), best.values, per_region, kept)
    valid &= regions >= among.start
    rest = 1 - shares.gather(-1, best.indices[:, None].expand(-1, shares.shape[1], -1)).exp().sum(-1)
    rest = (scores - shares)[..., 0] + rest.clamp(min=LEAST).log()  # the difference is the same everywhere
    regions, scores, _ = _exactly(memory, layer, query, regions)
    scores = scores.masked_fill(~valid[:, None], NOT_SEEN)
    return regions, scores, torch.logaddexp(rest, scores.logsumexp(-1))


def _again(
    memory: RegionMemory, layer: int, query: Tensor, rough: Tensor, shift: Tensor, kept: int, start: int
) -> Scored:
    """Score the best `kept` regions again, exactly, by rough scores [Hkv, heads, R] of the regions from `start` on."""
    shares = rough.log_softmax(-1)
    best = shares.amax(-2).topk(min(kept, rough.shape[-1]), sorted=False).indices.sort(-1).values
    index = best[:, None].expand(-1, rough.shape[1], -1)
    shares, rough = shares.gather(-1, index), rough.gather(-1, index)
    total = shift + (rough - shares).amax(-1)  # the difference is the same everywhere
    rest = total + (1 - shares.exp().sum(-1)).clamp(min=LEAST).log()
    regions, scores, exact = _exactly(memory, layer, query, best + start)
    return regions, scores, torch.logaddexp(rest, exact)


def _exactly(memory: RegionMemory, layer: int, query: Tensor, regions: Tensor) -> Scored:
    """Scores of regions [Hkv, C] by their means."""
    heads = torch.arange(len(query), device=query.device)[:, None].expand_as(regions)
    fine = memory.index.take(layer, "fine", heads.flatten(), regions.flatten())
    scores = region_scores(query, fine.view(*regions.shape, *fine.shape[1:]).float())
    return regions, scores, scores.logsumexp(-1)
