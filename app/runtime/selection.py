"""Which regions each query group attends to (MSA-1 steps 1 to 4), and their keys and values."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.decode import Pages
from app.kernels.regions import best_regions, group_votes, query_representatives, region_scores, sub_means
from app.kernels.rope import rotate
from app.kernels.tree import candidate_regions, search
from app.memory.config import AttentionConfig
from app.memory.memory import RegionMemory
from app.runtime.cache import RegionCache
from app.runtime.spec import AttentionSpec

FOUND_PER_CANDIDATE = 4  # fine means that the tree is asked for: several may lie in one region


@dataclass(frozen=True)
class Eligible:
    """Which regions groups may choose; a table of all is made only where no tree is searched: it grows with the text.

    Attributes:
        first: the regions before it are attended anyway.
        ends: [G], the first region of each group that is attended for being near.
        lengths: [R] tokens of the regions that any group may choose, 0 for muted ones.
    """

    first: int
    ends: Tensor
    lengths: Tensor

    @property
    def regions(self) -> int:
        return len(self.lengths)

    def part(self, groups: slice) -> "Eligible":
        """The same for some of the groups."""
        return replace(self, ends=self.ends[groups])

    def of(self, regions: Tensor) -> Tensor:
        """Which of these regions [N] each group may choose, [G, N]."""
        return (regions >= self.first) & (regions < self.ends[:, None]) & (self.lengths[regions] > 0)

    def table(self) -> Tensor:
        """The same of all regions, [G, R]."""
        return self.of(torch.arange(self.regions, device=self.lengths.device))


def select(
    spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, firsts: Tensor, own: int, lengths: Tensor
) -> Tensor:
    """Choose the regions of each query group (MSA-1 steps 1 to 4).

    Args:
        q: [G, Hkv, heads, Tg, D] raw queries.
        firsts: [G] first own region of each group; `own` regions each.
        lengths: [R] tokens of every region, 0 for muted ones.

    Returns:
        [G, Hkv, K] regions in text order, K at most the budget.
    """
    a, kv_heads = spec.attention, q.shape[1]
    firsts_near, everything = spec.first_near(firsts), a.forced == "all"
    sinks = a.sink_regions if everything else 0
    local = torch.arange(int(firsts_near[0] - firsts[0]), own, device=q.device) + firsts[:, None]  # [G, own + local]
    forced = torch.cat([torch.arange(sinks, device=q.device).expand(len(firsts), -1), local.clamp(min=0)], dim=1)
    total = int(firsts_near[-1])  # regions that any group may choose from
    count = min(max(0, a.budget_regions - forced.shape[1]), total)
    eligible = Eligible(sinks, firsts_near, lengths[:total])
    if not spec.policy.scores:
        picked = best_regions(spec.policy.votes(eligible.table(), kv_heads), count)
    else:
        # Each group by its own place, whatever the others of its segment do.
        far = (firsts_near - cache.base_regions) * a.region_tokens >= _tree_from(a, q)
        near = len(firsts) - int(far.sum())
        picked = torch.cat(
            [
                _best_scored(spec, cache, layer, q[part], eligible.part(part), count, part.start == near)
                for part in (slice(0, near), slice(near, len(firsts)))
                if part.start < part.stop
            ]
        )
    fixed = forced[:, None].expand(-1, kv_heads, -1)
    return torch.cat([picked, fixed], dim=-1).sort(-1).values


def _best_scored(
    spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, eligible: Eligible, count: int, far: bool
) -> Tensor:
    """The `count` best regions [G, Hkv, count]: candidates first, then fine scores of those in float32."""
    a, total = spec.attention, eligible.regions
    means = query_means(spec, q)  # [G, Hkv, heads, Q, D]
    searched = searched_by_tree(cache, far, _tree_from(a, q))
    if total <= a.candidates and not any(searched):
        fine = torch.cat(_summaries(cache, layer, "fine", total, searched), dim=1)
        scores = region_scores(means.flatten(2, 3), fine.float())
        return best_regions(_totals(a, scores, eligible.table()[:, None], means.shape[2:4]), count)
    parts = [] if all(searched) else [_coarse_candidates(cache, layer, means, eligible, count, searched)]
    for tree, store in zip(searched, cache.stores(), strict=True):
        if tree:
            parts.append(_tree_candidates(cache, layer, means, eligible, count, store))
    candidates, valid = (torch.cat(x, dim=-1) for x in zip(*parts, strict=True))
    candidates, order = candidates.sort(dim=-1)  # ties go to the later region
    fine = _gather_fine(cache, layer, candidates)
    scores = region_scores(means.flatten(2, 3), fine.float())  # [G, Hkv, heads * Q, C]
    votes = _totals(a, scores, valid.gather(-1, order), means.shape[2:4])
    return candidates.gather(-1, best_regions(votes, count))


def query_means(spec: AttentionSpec, q: Tensor) -> Tensor:
    """What the queries [G, Hkv, heads, Tg, D] are compared with regions by, [G, Hkv, heads, Q, D'], scaled."""
    a, rows = spec.attention, q.shape[3]
    if a.score_angle:
        cos, sin = spec.rope(a.score_angle + 1, q)
        q = rotate(q, cos[a.score_angle], sin[a.score_angle])
    sub = a.query_sub if a.combine == "votes" else a.query_tokens
    return query_representatives(sub_means(q, min(sub, rows)) * q.shape[-1] ** -0.5, a.score)


def _totals(a: AttentionConfig, scores: Tensor, eligible: Tensor, shape: tuple[int, int]) -> Tensor:
    """What each group gives to each region (MSA-1 step 4), [G, Hkv, C]; -inf where it may not choose it.

    Args:
        scores: [G, Hkv, heads * Q, C]; `shape` is (heads, Q).
        eligible: [G, Hkv or 1, C].
    """
    eligible = eligible.expand(*scores.shape[:2], -1)
    if a.combine == "raw_sum":
        total = scores.sum(-2).masked_fill(~eligible, float("-inf"))
        return total.sum(1, keepdim=True).expand_as(total) if a.heads == "shared" else total
    folded = scores.flatten(0, 1)[:, None]  # [G * Hkv, 1, heads * Q, C]: each KV head has candidates of its own
    votes = group_votes(folded, eligible.flatten(0, 1), shape[0], a.query_tokens // a.query_sub).view(eligible.shape)
    return votes.logsumexp(1, keepdim=True).expand_as(votes) if a.heads == "shared" else votes


def _tree_from(a: AttentionConfig, q: Tensor) -> int:
    """Length from which a memory is searched by tree for queries [G, Hkv, heads, Tg, D]."""
    return a.decode_tree_from_tokens if q.shape[3] == 1 else a.tree_from_tokens


def searched_by_tree(cache: RegionCache, far: bool, tree_from: int) -> list[bool]:
    """Which memories are searched by tree: those that long; the tail when the groups stand `far` enough in it."""
    a = cache.shape.attention
    if not a.searches_tree or cache.allowed is not None:  # a beam would be spent on muted regions
        return [False] * (len(cache.memories) + 1)
    return [*(memory.tokens >= tree_from for memory in cache.memories), far]


def _coarse_candidates(
    cache: RegionCache, layer: int, means: Tensor, eligible: Eligible, count: int, searched: list[bool]
) -> tuple[Tensor, Tensor]:
    """Candidates from the memories without a tree: all regions when they are few, else the best by coarse means.

    Returns:
        (regions [G, Hkv, C], valid [G, Hkv, C]).
    """
    a, total = cache.shape.attention, eligible.regions
    groups, kv_heads = means.shape[:2]
    index = torch.cat(
        [
            torch.arange(offset, max(offset, min(end, total)), device=means.device)
            for tree, (offset, end, _) in zip(searched, cache.stores(), strict=True)
            if not tree
        ]
    )
    allowed = eligible.of(index)
    if len(index) <= a.candidates:
        shape = (groups, kv_heads, len(index))
        return index.expand(shape), allowed[:, None].expand(shape)
    # A single query can afford the fine means at once; groups cut with the coarse ones.
    name = "fine" if means.shape[3] == 1 else "coarse"
    folded = means.permute(1, 0, 2, 3, 4).flatten(1, 3).to(cache.shape.dtype)
    scores = torch.cat(
        [region_scores(folded, part) for part in _summaries(cache, layer, name, total, searched)], dim=-1
    )  # [Hkv, G * heads * Q, R]
    scores = scores.view(kv_heads, groups, -1, len(index)).transpose(0, 1)
    best = best_regions(_totals(a, scores, allowed[:, None], means.shape[2:4]), max(a.candidates, count))
    return index[best], allowed[:, None].expand(-1, kv_heads, -1).gather(-1, best)


def _tree_candidates(
    cache: RegionCache,
    layer: int,
    means: Tensor,
    eligible: Eligible,
    count: int,
    store: tuple[int, int, RegionMemory],
) -> tuple[Tensor, Tensor]:
    """Candidates from one memory by its tree, and its last `count` eligible regions, so that there are always enough.

    Returns:
        (regions [G, Hkv, C], valid [G, Hkv, C]).
    """
    a, (offset, end, memory) = cache.shape.attention, store
    per_region = a.region_tokens // a.key_sub
    last = eligible.ends.clamp(max=end) - offset  # [G]; nothing is muted here
    limits = (last - count).clamp(min=0)
    skip = max(0, a.sink_regions - offset) if a.forced == "all" else 0
    fine, levels = memory.index.tree(layer)
    parts = []
    for query, limit in zip(means.flatten(2, 3), (limits * per_region).tolist(), strict=True):
        numbers, scores = search(fine, levels, query, limit, limit, beam=a.tree_beam)
        votes = scores.log_softmax(-1).amax(-2).masked_fill_(numbers < skip * per_region, float("-inf"))
        best = votes.topk(min(FOUND_PER_CANDIDATE * a.candidates, votes.shape[-1]), dim=-1)
        found = candidate_regions(
            numbers.gather(-1, best.indices), best.values, per_region, max(a.candidates - count, count)
        )
        parts.append(found)
    width = max(regions.shape[-1] for regions, _ in parts)
    regions, valid = (
        torch.stack([F.pad(x, (0, width - x.shape[-1])) for x in part]) for part in zip(*parts, strict=True)
    )
    recent = limits[:, None] + torch.arange(count, device=means.device)  # [G, count]
    recent = recent[:, None].expand(-1, means.shape[1], -1)
    near = (recent < last[:, None, None]) & (recent >= skip)
    return torch.cat([regions, recent], dim=-1) + offset, torch.cat([valid, near], dim=-1)


def _summaries(cache: RegionCache, layer: int, name: str, total: int, searched: list[bool]) -> list[Tensor]:
    """[Hkv, R, F, D] key means of the first `total` regions, memory by memory, but for those `searched` by tree."""
    return [
        memory.index.summaries(layer, name, min(end, total) - offset)
        for tree, (offset, end, memory) in zip(searched, cache.stores(), strict=True)
        if offset < total and not tree
    ]


def gather(cache: RegionCache, layer: int, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Raw keys and values of the chosen regions.

    Args:
        regions: [G, Hkv, K].

    Returns:
        (k, v), each [G, Hkv, K * L, D], in the cache's dtype.
    """
    stores = cache.stores()
    heads = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None].expand_as(regions)
    if len(stores) == 1:
        pair = stores[0][2].pages.take(layer, heads.flatten(), regions.flatten())
        return tuple(x.view(*regions.shape[:-1], -1, cache.shape.head_dim) for x in pair)
    size = (*regions.shape, cache.shape.attention.region_tokens, cache.shape.head_dim)
    k, v = (torch.empty(size, dtype=cache.shape.dtype, device=regions.device) for _ in range(2))
    for offset, end, memory in stores:
        here = ((regions >= offset) & (regions < end)).nonzero(as_tuple=True)
        if len(here[0]):
            k[here], v[here] = memory.pages.take(layer, here[1], regions[here] - offset)
    return k.flatten(2, 3), v.flatten(2, 3)


def held_tokens(lengths: Tensor, regions: Tensor) -> Tensor:
    """Tokens that count of each of the regions [..., K].

    When much is muted, fewer regions may be eligible than the budget holds and one can be gathered twice: the second
    time it does not count.
    """
    held = lengths[regions]
    held[..., 1:] *= regions[..., 1:] != regions[..., :-1]
    return held


def located(cache: RegionCache, layer: int, regions: Tensor) -> Pages:
    """The chosen regions [..., Hkv, K] where they lie; copies of them where not all fit into hot slots.

    When they have been used, `release` lets what the next layer took last come ahead.
    """
    stores, length = cache.stores(), cache.shape.attention.region_tokens
    keys, values = found(cache, layer, regions)
    if cache.shape.tiers.lane is None and not (keys < 0).any():
        cache.tail.pages.touch(layer, keys)
    else:
        for offset, end, memory in stores:
            here = regions if len(stores) == 1 else regions[(regions >= offset) & (regions < end)]
            memory.pages.bring(layer, here.flatten() - offset)
        keys, values = found(cache, layer, regions)
    store = cache.tail.pages.store(layer)  # one for all memories
    if (keys < 0).any():
        store = torch.stack(gather(cache, layer, regions.view(-1, *regions.shape[-2:])))  # [2, G, Hkv, K * L, D]
        size = length * cache.shape.head_dim
        keys = torch.arange(regions.numel(), device=regions.device).view_as(regions) * size
        values = keys + regions.numel() * size
    return Pages(store, keys, values, length)


def found(cache: RegionCache, layer: int, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Where keys and values of regions [..., Hkv, K] begin in the layer's store; keys < 0 are not hot.

    Each memory is asked for all of them, which costs less than to tell first whose they are.
    """
    heads = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None]
    keys, values = cache.tail.pages.find(layer, heads, (regions - cache.base_regions).clamp(min=0))
    for offset, end, memory in reversed(cache.stores()[:-1]):
        theirs = memory.pages.find(layer, heads, (regions - offset).clamp(0, memory.regions - 1))
        keys, values = (torch.where(regions < end, x, y) for x, y in zip(theirs, (keys, values), strict=True))
    return keys, values


def release(cache: RegionCache, layer: int) -> None:
    """What `located` told has been used."""
    for memory in (*cache.memories, cache.tail):
        memory.pages.prefetch_after(layer)


def _gather_fine(cache: RegionCache, layer: int, regions: Tensor) -> Tensor:
    """Fine key means of candidate regions [G, Hkv, C] -> [G, Hkv, C, F, D]."""
    stores = cache.stores()
    heads = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None].expand_as(regions)
    if len(stores) == 1:
        means = stores[0][2].index.take(layer, "fine", heads.flatten(), regions.flatten())
        return means.view(*regions.shape, *means.shape[1:])
    a = cache.shape.attention
    size = (*regions.shape, a.region_tokens // a.key_sub, stores[0][2].index.width)
    out = torch.empty(size, dtype=cache.shape.dtype, device=regions.device)
    for offset, end, memory in stores:
        here = ((regions >= offset) & (regions < end)).nonzero(as_tuple=True)
        if len(here[0]):
            out[here] = memory.index.take(layer, "fine", here[1], regions[here] - offset)
    return out
