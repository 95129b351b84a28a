"""Joins the kernels to the model: one attention function behind transformers' seam, over a RegionCache.

Reading takes whole query groups, a chat's turn takes what there is, decode takes one query; all follow MSA-1
(app/kernels/ms_attn.py is the oracle).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.h2o import attention_mass
from app.kernels.ms_attn import ms_attention
from app.kernels.regions import best_regions, group_votes, region_scores, sub_means
from app.kernels.rope import rope_table, rotate
from app.runtime.cache import RegionCache, RegionLayer
from app.runtime.config import AttentionConfig

NAME = "lectern"
H2O_ROWS = 8  # last queries of each group whose attention is counted


@dataclass
class AttentionSpec:
    """What every attention layer of one engine shares.

    Attributes:
        inv_freq: [D/2] of the model's own rotary embedding; `rope_scaling` its attention scaling.
        policy: `keep-all` scores regions, `streaming` takes the latest, `full` sees everything.
    """

    attention: AttentionConfig
    inv_freq: Tensor
    rope_scaling: float
    policy: str = "keep-all"
    _table: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def budget_tokens(self) -> int:
        return (1 << 62) if self.policy == "full" else self.attention.budget_tokens

    def rope(self, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of at least `positions` positions, [P, D], cached."""
        if self._table is None or len(self._table[0]) < positions or self._table[0].dtype != like.dtype:
            size = max(positions, 2048 if self._table is None else 2 * len(self._table[0]))
            self._table = rope_table(self.inv_freq.to(like.device), size, self.rope_scaling, like.dtype)
        return self._table


def lectern_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """The registered attention function: [B, Hq, T, D] in, ([B, T, Hq, D], None) out.

    `key` is a cache handle, or, without a cache, the raw keys of a whole text.
    """
    spec: AttentionSpec = module.lectern
    if isinstance(key, RegionLayer):
        return attend(spec, key.cache, key.number, query[0], scaling).transpose(0, 1)[None], None
    if attention_mask is not None:
        raise ValueError("a padded batch needs a cache-free mask, which region attention does not take; unpad it")
    a = spec.attention
    cos, sin = spec.rope(min(query.shape[2], spec.budget_tokens) + a.region_tokens, query)
    texts = [
        ms_attention(
            q, k, v, cos, sin,
            scale=scaling, region_tokens=a.region_tokens, merge=a.merge, budget_tokens=spec.budget_tokens,
            local_regions=a.local_regions, query_sub=a.query_sub, key_sub=a.key_sub,
        )
        for q, k, v in zip(query, key, value, strict=True)
    ]  # fmt: skip
    return torch.stack(texts).transpose(1, 2), None


def attend(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, scale: float) -> Tensor:
    """Attention of the tail's newest tokens, whose keys are already appended.

    Args:
        q: [Hq, T, D] raw queries of the last T tokens of the tail.

    Returns:
        [Hq, T, D].
    """
    end = cache.tail.filled[layer]
    start = end - q.shape[1]
    if q.shape[1] == 1:
        return _decode(spec, cache, layer, q, scale)
    group = spec.attention.group_tokens
    dense_end = min(max(start, spec.budget_tokens - cache.base_tokens), end)
    pieces = [_dense(spec, cache, layer, q[:, : dense_end - start], start, scale)] if dense_end > start else []
    place = dense_end
    while place < end:
        boundary = (place // group + 1) * group
        if place % group == 0 and end - place >= group:  # as many whole groups as there are, together
            boundary = place + (end - place) // group * group
        stop = min(boundary, end)
        pieces.append(_groups(spec, cache, layer, q[:, place - start : stop - start], place, scale))
        place = stop
    return torch.cat(pieces, dim=1)


def _dense(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, start: int, scale: float) -> Tensor:
    """Queries that see their whole past. Muted regions of the memories leave no gap in the positions."""
    kv_heads, heads = cache.shape.kv_heads, q.shape[0] // cache.shape.kv_heads
    end, region = start + q.shape[1], cache.shape.attention.region_tokens
    tail = cache.tail.layers[layer]
    keys = [memory.layers[layer].k[:, : memory.tokens] for memory in cache.memories] + [tail.k[:, :end]]
    values = [memory.layers[layer].v[:, : memory.tokens] for memory in cache.memories] + [tail.v[:, :end]]
    k, v = (torch.cat(x, dim=1) if len(x) > 1 else x[0] for x in (keys, values))
    if cache.allowed is not None:
        starts, lengths = cache.table(end)
        kept = (torch.arange(region, device=q.device) < lengths[:, None]).nonzero()
        seen = starts[kept[:, 0]] + kept[:, 1]
        k, v = k[:, seen], v[:, seen]
    size = k.shape[1]
    cos, sin = spec.rope(size, q)
    k = rotate(k.to(q.dtype), cos[:size], sin[:size])
    q = rotate(q, cos[size - q.shape[1] : size], sin[size - q.shape[1] : size])
    mask = torch.ones(q.shape[1], size, dtype=torch.bool, device=q.device).tril(size - q.shape[1])
    out = F.scaled_dot_product_attention(
        q.view(kv_heads, heads, -1, q.shape[-1]),
        k[:, None].expand(-1, heads, -1, -1),
        v.to(q.dtype)[:, None].expand(-1, heads, -1, -1),
        attn_mask=None if q.shape[1] == size else mask,
        is_causal=q.shape[1] == size,
        scale=scale,
    )
    if not cache.memories:
        _count_dense(spec, cache, layer, q.view(kv_heads, heads, -1, q.shape[-1]), k, start, scale)
    return out.reshape(q.shape)


def _count_dense(
    spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, k: Tensor, start: int, scale: float
) -> None:
    """H2O mass of the last rows of each whole group among dense queries [Hkv, heads, T, D] of the tail."""
    group, region, memory = spec.attention.group_tokens, spec.attention.region_tokens, cache.tail.layers[layer]
    first = -(-start // group) * group
    for end in range(first + group, start + q.shape[2] + 1, group):
        counted = min(H2O_ROWS, group)
        rows = q[:, :, end - start - counted : end - start].flatten(1, 2)
        ends = torch.arange(end - counted, end, device=q.device).repeat(q.shape[1])
        mask = torch.arange(end, device=q.device) <= ends[:, None]
        memory.mass[:, :end] += attention_mass(rows, k[:, :end], mask, scale)
        memory.exposure[:, : end // region] += rows.shape[1]


def _groups(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, start: int, scale: float) -> Tensor:
    """Merged query groups that select: one piece of a group, or any number of whole ones. q: [Hq, T, D]."""
    a, kv_heads, dim = spec.attention, cache.shape.kv_heads, q.shape[-1]
    heads, count = q.shape[0] // kv_heads, max(1, q.shape[1] // a.group_tokens)
    rows = q.shape[1] // count
    q = q.view(kv_heads, heads, count, rows, dim).permute(2, 0, 1, 3, 4)  # [G, Hkv, heads, Tg, D]
    firsts = (start + torch.arange(count, device=q.device) * rows) // a.region_tokens + cache.base_regions
    starts, lengths = cache.table(start + count * rows)
    own = (start + rows - 1) // a.region_tokens - start // a.region_tokens + 1
    regions = select(spec, cache, layer, q, firsts, own, lengths)  # [G, Hkv, K]
    k, v = gather(cache, layer, regions)
    begin = cache.base_tokens + start + torch.arange(count, device=q.device) * rows  # [G]
    if cache.memories:
        places, valid = _places(starts, lengths, regions, a.region_tokens)
        positions = (valid.cumsum(-1) - 1).clamp(min=0)
        before = (valid & (places < begin[:, None, None])).sum(-1)  # [G, Hkv]
        q_positions = before[..., None] + torch.arange(rows, device=q.device)
        cos, sin = spec.rope(a.budget_tokens + a.region_tokens, q)
        k = rotate(k.to(q.dtype), cos[positions], sin[positions])
        q = rotate(q, cos[q_positions][:, :, None], sin[q_positions][:, :, None])
        seen = begin[:, None] + torch.arange(rows, device=q.device)  # [G, Tg]
        mask = valid[:, :, None] & (places[:, :, None] <= seen[:, None, :, None])  # [G, Hkv, Tg, S]
    else:  # every selected region is whole, the group's own stand last
        size = k.shape[-2] - (-(start + rows) % a.region_tokens)
        k, v = k[..., :size, :].to(q.dtype), v[..., :size, :]
        cos, sin = spec.rope(size, q)
        k = rotate(k, cos[:size], sin[:size])
        q = rotate(q, cos[size - rows : size], sin[size - rows : size])
        mask = torch.ones(rows, size, dtype=torch.bool, device=q.device).tril(size - rows)[None, None]
    # The small mask becomes a bias before it is spread over groups: SDPA would convert every copy of it.
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
    out = F.scaled_dot_product_attention(
        q.flatten(0, 1).flatten(1, 2)[:, None],  # [G * Hkv, 1, heads * Tg, D]
        k.flatten(0, 1)[:, None],
        v.flatten(0, 1)[:, None].to(q.dtype),
        attn_mask=bias.repeat(1, 1, heads, 1).flatten(0, 1)[:, None].expand(count * kv_heads, -1, -1, -1),
        scale=scale,
    ).view(count, kv_heads, heads, rows, dim)
    if not cache.memories and rows == a.group_tokens:
        last = q[..., -H2O_ROWS:, :].flatten(2, 3)  # [G, Hkv, heads * rows, D]
        mass = attention_mass(last, k, mask[..., -H2O_ROWS:, :].repeat(1, 1, heads, 1), scale)
        for g in range(count):
            cache.observe(layer, regions[g], mass[g].unflatten(-1, (-1, a.region_tokens)), last.shape[2])
    return out.permute(1, 2, 0, 3, 4).reshape(kv_heads * heads, count * rows, dim)


def _decode(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, scale: float) -> Tensor:
    """One query: every region while the whole past fits, else the best. Records where it looked. q: [Hq, 1, D]."""
    a, kv_heads = spec.attention, cache.shape.kv_heads
    end = cache.tail.filled[layer]
    heads = q.shape[0] // kv_heads
    starts, lengths = cache.table(end)
    q = q.view(1, kv_heads, heads, 1, -1)
    if cache.base_tokens + end <= spec.budget_tokens:
        regions = torch.arange(len(starts), device=q.device).expand(1, kv_heads, -1)
    else:
        first = torch.tensor([(end - 1) // a.region_tokens + cache.base_regions], device=q.device)
        regions = select(spec, cache, layer, q, first, 1, lengths)
    k, v = gather(cache, layer, regions)
    _, valid = _places(starts, lengths, regions, a.region_tokens)
    positions = (valid.cumsum(-1) - 1).clamp(min=0)
    cos, sin = spec.rope(k.shape[-2], q)
    k = rotate(k.to(q.dtype), cos[positions], sin[positions])[0]
    last = positions[0, :, -1]
    q = rotate(q[0, :, :, 0], cos[last][:, None], sin[last][:, None])  # [Hkv, heads, D]
    logits = (q @ k.transpose(-1, -2)).float() * scale
    weights = torch.softmax(logits.masked_fill(~valid[0][:, None], float("-inf")), dim=-1)  # [Hkv, heads, S]
    cache.observe(layer, regions[0], weights.sum(1).unflatten(-1, (-1, a.region_tokens)), heads)
    return (weights.to(q.dtype) @ v[0].to(q.dtype)).view(kv_heads * heads, 1, -1)


def _places(starts: Tensor, lengths: Tensor, regions: Tensor, region_tokens: int) -> tuple[Tensor, Tensor]:
    """Absolute token and validity of every slot of the gathered regions, [..., K * L] each.

    When much is muted, fewer regions may be eligible than the budget holds and one can be gathered twice: the second
    time it does not count.
    """
    slots = torch.arange(region_tokens, device=regions.device)
    places = (starts[regions][..., None] + slots).flatten(-2)
    held = lengths[regions]
    held[..., 1:] *= regions[..., 1:] != regions[..., :-1]
    return places, (slots < held[..., None]).flatten(-2)


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
        name, sub = ("fine", a.key_sub) if rows == 1 else ("coarse", a.coarse_sub)
        folded = means.permute(1, 0, 2, 3, 4).reshape(kv_heads, -1, dim).to(cache.shape.dtype)
        means_by_store = _summaries(cache, layer, name, a.region_tokens // sub, total)
        scores = torch.cat([region_scores(folded, part) for part in means_by_store], dim=-1)  # [Hkv, G * heads * Q, R]
        scores = scores.view(kv_heads, groups, -1, total).transpose(0, 1)
        votes = group_votes(scores, eligible, heads, per_region)
        candidates = best_regions(votes, max(a.candidates, count))  # [G, Hkv, C]
    fine = _gather_rows(cache, layer, "fine", a.region_tokens // a.key_sub, candidates, groups, total)
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


def _summaries(cache: RegionCache, layer: int, name: str, per_region: int, total: int) -> list[Tensor]:
    """[Hkv, R, F, D] key means of the first `total` regions, memory by memory; spare room is left out."""
    stores = cache.stores(layer)
    ends = [offset for offset, _ in stores[1:]] + [total]
    return [
        getattr(store, name).unflatten(1, (-1, per_region))[:, : min(end, total) - offset]
        for (offset, store), end in zip(stores, ends, strict=True)
        if offset < total
    ]


def gather(cache: RegionCache, layer: int, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Raw keys and values of the chosen regions.

    Args:
        regions: [G, Hkv, K].

    Returns:
        (k, v), each [G, Hkv, K * L, D], in the cache's dtype.
    """
    size = cache.shape.attention.region_tokens
    k = _gather_rows(cache, layer, "k", size, regions).flatten(2, 3)
    v = _gather_rows(cache, layer, "v", size, regions).flatten(2, 3)
    return k, v


def _gather_rows(
    cache: RegionCache,
    layer: int,
    name: str,
    per_region: int,
    regions: Tensor | None,
    groups: int = 1,
    total: int = 0,
) -> Tensor:
    """Rows of one tensor of the layer by region, [G, Hkv, K, per_region, D]; regions None means the first `total`."""
    if regions is None:
        parts = _summaries(cache, layer, name, per_region, total)
        return torch.cat(parts, dim=1).expand(groups, -1, -1, -1, -1)
    stores = cache.stores(layer)
    dim = cache.shape.head_dim
    head = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None]
    if len(stores) == 1:
        tensor = getattr(stores[0][1], name)
        rows = (head * (tensor.shape[1] // per_region) + regions).flatten()
        return tensor.view(-1, per_region * dim).index_select(0, rows).view(*regions.shape, per_region, dim)
    out = torch.empty(*regions.shape, per_region * dim, dtype=cache.shape.dtype, device=regions.device)
    ends = [offset for offset, _ in stores[1:]] + [1 << 62]
    for (offset, store), end in zip(stores, ends, strict=True):
        tensor = getattr(store, name)
        here = ((regions >= offset) & (regions < end)).nonzero(as_tuple=True)
        rows = here[1] * (tensor.shape[1] // per_region) + regions[here] - offset
        out[here] = tensor.view(-1, per_region * dim).index_select(0, rows)
    return out.unflatten(-1, (per_region, dim))
