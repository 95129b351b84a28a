"""Which regions each query group attends to (MSA-1 steps 1 to 4), and their keys and values."""

import torch
from torch import Tensor

from app.kernels.regions import best_regions, group_votes, region_scores, sub_means
from app.runtime.cache import RegionCache
from app.runtime.config import AttentionConfig
from app.runtime.spec import AttentionSpec


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
    a = spec.attention
    groups, kv_heads, heads = q.shape[:3]
    local = torch.arange(-a.local_regions, own, device=q.device) + firsts[:, None]  # [G, own + local]
    forced = torch.cat([torch.zeros_like(firsts)[:, None], local.clamp(min=0)], dim=1)
    count = a.budget_regions - forced.shape[1]
    total = int(firsts[-1]) - a.local_regions  # regions that any group may choose from
    index = torch.arange(total, device=q.device)
    eligible = (index >= 1) & (index < firsts[:, None] - a.local_regions) & (lengths[:total] > 0)  # [G, R]
    if spec.policy == "streaming":
        votes = torch.where(eligible, index.float(), float("-inf"))[:, None].expand(-1, kv_heads, -1)
        picked = best_regions(votes, min(count, total))
    else:
        picked = _best_scored(a, cache, layer, q, eligible, min(count, total))
    fixed = forced[:, None].expand(-1, kv_heads, -1)
    return torch.cat([picked, fixed], dim=-1).sort(-1).values


def _best_scored(a: AttentionConfig, cache: RegionCache, layer: int, q: Tensor, eligible: Tensor, count: int) -> Tensor:
    """The `count` best regions [G, Hkv, count]: a coarse cut in the cache's dtype, then fine scores in fp32."""
    groups, kv_heads, heads, rows, dim = q.shape
    total, query_sub = eligible.shape[-1], min(a.query_sub, rows)
    means = sub_means(q, query_sub) * dim**-0.5  # [G, Hkv, heads, Q, D]
    per_region = a.region_tokens // a.query_sub
    candidates = None
    if total > a.candidates:
        # A single query can afford the fine means at once; groups cut with the coarse ones.
        name = "fine" if rows == 1 else "coarse"
        folded = means.permute(1, 0, 2, 3, 4).reshape(kv_heads, -1, dim).to(cache.shape.dtype)
        parts = _summaries(cache, layer, name, total)
        scores = torch.cat([region_scores(folded, part) for part in parts], dim=-1)  # [Hkv, G * heads * Q, R]
        scores = scores.view(kv_heads, groups, -1, total).transpose(0, 1)
        votes = group_votes(scores, eligible, heads, per_region)
        candidates = best_regions(votes, max(a.candidates, count))  # [G, Hkv, C]
    if candidates is None:
        fine = torch.cat(_summaries(cache, layer, "fine", total), dim=1).expand(groups, -1, -1, -1, -1)
    else:
        fine = _gather_fine(cache, layer, candidates)
    queries = means.flatten(2, 3)  # [G, Hkv, heads * Q, D]
    scores = region_scores(queries, fine.float())  # [G, Hkv, heads * Q, C]
    if candidates is None:
        votes = group_votes(scores, eligible, heads, per_region)
        return best_regions(votes, count)
    allowed = eligible[:, None].expand(-1, kv_heads, -1).gather(-1, candidates)
    votes = _votes_per_head(scores, allowed, heads, per_region)
    return candidates.gather(-1, best_regions(votes, count))


def _votes_per_head(scores: Tensor, eligible: Tensor, heads: int, per_region: int) -> Tensor:
    """group_votes when each KV head has candidates of its own. eligible: [G, Hkv, C]."""
    folded = scores.flatten(0, 1)[:, None]  # [G * Hkv, 1, heads * Q, C]
    return group_votes(folded, eligible.flatten(0, 1), heads, per_region).view(eligible.shape)


def _summaries(cache: RegionCache, layer: int, name: str, total: int) -> list[Tensor]:
    """[Hkv, R, F, D] key means of the first `total` regions, memory by memory; spare room is left out."""
    return [
        memory.index.summaries(layer, name, min(end, total) - offset)
        for offset, end, memory in cache.stores()
        if offset < total
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


def _gather_fine(cache: RegionCache, layer: int, regions: Tensor) -> Tensor:
    """Fine key means of candidate regions [G, Hkv, C] -> [G, Hkv, C, F, D]."""
    stores = cache.stores()
    heads = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None].expand_as(regions)
    if len(stores) == 1:
        means = stores[0][2].index.take(layer, "fine", heads.flatten(), regions.flatten())
        return means.view(*regions.shape, *means.shape[1:])
    a = cache.shape.attention
    size = (*regions.shape, a.region_tokens // a.key_sub, cache.shape.head_dim)
    out = torch.empty(size, dtype=cache.shape.dtype, device=regions.device)
    for offset, end, memory in stores:
        here = ((regions >= offset) & (regions < end)).nonzero(as_tuple=True)
        if len(here[0]):
            out[here] = memory.index.take(layer, "fine", here[1], regions[here] - offset)
    return out
