"""Joins the kernels to the model: one attention function behind transformers' seam, over a RegionCache.

Reading takes whole query groups, a chat's turn takes what there is, decode takes one query; all follow MSA-1
(app/kernels/ms_attn.py is the oracle).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.stock import transformers
from app.kernels.backend import use_triton
from app.kernels.decode import decode_attention
from app.kernels.h2o import attention_mass, causal_mass
from app.kernels.layout import UNTURNED, BlockLists, Places
from app.kernels.ms_attn import ms_attention
from app.kernels.regions import local_representatives
from app.kernels.rope import rotate
from app.kernels.selected import selected_attention, selected_mass
from app.runtime.cache import RegionCache, RegionLayer, gather, held_tokens, located, release
from app.runtime.policies import AttentionSpec
from app.runtime.selection import select, select_one

NAME = "lectern"
H2O_ROWS = 8  # last queries of each group whose attention is counted
MOST_PRODUCTS = 1 << 24  # of them with keys that are made at once


def lectern_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """The registered attention function: [B, Hq, T, D] in, ([B, T, Hq, D], None) out.

    `key` is a cache handle, or, without a cache, the raw keys of a whole text.
    """
    spec: AttentionSpec = module.lectern
    if attention_mask is not None:
        raise ValueError("an attention mask of one's own is not supported: region attention masks by position alone")
    if isinstance(key, RegionLayer):
        return attend(spec, key.cache, key.number, query[0], scaling).transpose(0, 1)[None], None
    options = spec.options(module.layer_idx)
    tokens = query.shape[2]
    longest = tokens if options.positions == "original" else min(tokens, options.budget_tokens)
    cos, sin = spec.rope(longest + spec.attention.group_tokens, query)
    return ms_attention(query, key, value, cos, sin, scale=scaling, options=options).transpose(1, 2), None


def refuse_padding(*args, attention_mask: Tensor | None = None, **kwargs) -> None:
    """The registered mask function: makes no mask. Without one transformers would drop a padding mask unsaid.

    Args:
        attention_mask: [B, tokens seen] bool, False for padding.

    Raises:
        ValueError: something is padding.
    """
    if attention_mask is not None and not attention_mask.all():
        padding = int((~attention_mask.bool()).sum())
        raise ValueError(
            f"padding is not supported: attention_mask leaves out {padding} of {attention_mask.numel()} tokens; "
            "run each text by itself, without padding (a pad token inside a text: pass an attention_mask of ones)"
        )


def attend(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, scale: float) -> Tensor:
    """Attention of the tail's newest tokens, whose keys are already appended.

    Args:
        q: [Hq, T, D] raw queries of the last T tokens of the tail.

    Returns:
        [Hq, T, D].
    """
    if cache.held is not None:
        return cache.held.attend(layer, q, scale)
    end = cache.tail.filled[layer]
    start = end - q.shape[1]
    if q.shape[1] == 1:
        return _decode(spec, cache, layer, q, scale)
    if spec.policy.local_keys:
        _find_by_local_keys(spec, cache, layer, q, start, scale)
    group = spec.attention.group_tokens
    dense_end = min(max(start, spec.budget_for(layer) - cache.base_tokens), end)
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


class Choosing:
    """Attention of a cache's newest tokens, for what runs layers without transformers."""

    def __init__(self, spec: AttentionSpec, cache: RegionCache) -> None:
        self.spec, self.cache = spec, cache

    def append(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Take raw keys and values [Hkv, T, D]."""
        self.cache.append(number, keys, values)

    def attend(self, number: int, q: Tensor, scale: float) -> Tensor:
        """Attention of the newest tokens, [Hq, T, D] like q."""
        return attend(self.spec, self.cache, number, q, scale)


def _find_by_local_keys(
    spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, start: int, scale: float
) -> None:
    """Summarise regions of whole groups among the newest tokens by the keys that local attention favours (InfLLM).

    Args:
        q: [Hq, T, D] raw queries of the tail's tokens from `start` on.
    """
    size, region, tail = spec.attention.group_tokens, spec.attention.region_tokens, cache.tail
    first, end = -(-start // size) * size, (start + q.shape[1]) // size * size
    if first < end:
        keys = tail.pages.rows(layer, first, end)[0].to(q.dtype)
        cos, sin = spec.rope(size, q)
        means = local_representatives(q[:, first - start : end - start], keys, cos, sin, scale, spec.options(layer))
        fine = tail.index.means["fine"][layer]
        fine[:, first // region : end // region] = means[:, :, 0].to(fine.dtype)


def _dense(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, start: int, scale: float) -> Tensor:
    """Queries that see their whole past. Muted regions of the memories leave no gap in the positions."""
    kv_heads, heads = cache.shape.kv_heads, q.shape[0] // cache.shape.kv_heads
    end, region = start + q.shape[1], cache.shape.attention.region_tokens
    pairs = [memory.pages.rows(layer, 0, memory.slots) for memory in cache.memories]
    pairs.append(cache.tail.pages.rows(layer, 0, end))
    k, v = (torch.cat(x, dim=1) if len(x) > 1 else x[0] for x in zip(*pairs, strict=True))
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
    _count_dense(spec, cache, layer, q.view(kv_heads, heads, -1, q.shape[-1]), k, start, scale)
    return out.reshape(q.shape)


def _count_dense(
    spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, k: Tensor, start: int, scale: float
) -> None:
    """H2O mass of the tail: of the last rows of each whole group among dense queries [Hkv, heads, T, D], or of all.

    Args:
        k: [Hkv, S, D] rotated keys; those of the tail, the queries' own included, stand last.
    """
    group, tail, rule = spec.attention.group_tokens, cache.tail, cache.shape.compaction
    base, stop = k.shape[1] - start - q.shape[2], start + q.shape[2]
    if rule and rule.options.rows == "all":
        counted = [(start, stop)]
    else:
        ends = range(-(-start // group) * group + group, stop + 1, group)
        counted = [(end - min(H2O_ROWS, group), end) for end in ends]
        if rule is None and counted:
            rows = torch.cat([torch.arange(first, end, device=q.device) for first, end in counted])
            if len(rows) * q.shape[0] * q.shape[1] * k.shape[1] <= MOST_PRODUCTS:
                _count_rows(cache, layer, q[:, :, rows - start], k, rows, base, scale)
                return
    for first, end in counted:
        rows = q[:, :, first - start : end - start].flatten(1, 2)
        seen = (base + torch.arange(first + 1, end + 1, device=q.device)).repeat(q.shape[1])
        mass = causal_mass(rows, k[:, : base + end], seen, scale)
        places = torch.arange(end, device=q.device)
        cache.remember(layer)
        tail.fade(layer, end - first)
        tail.count_first(layer, mass[:, base:], end - first)
        tail.exposure[layer][:, :end] += q.shape[1] * (end - places.clamp(min=first))


def _count_rows(cache: RegionCache, layer: int, q: Tensor, k: Tensor, rows: Tensor, base: int, scale: float) -> None:
    """The same at once where no token is ever dropped.

    Args:
        q: [Hkv, heads, N, D] queries at the places `rows` of the tail, before which `k` holds `base` keys.
    """
    tail, heads, end = cache.tail, q.shape[1], int(rows[-1]) + 1
    seen = torch.arange(base + end, device=q.device) <= base + rows[:, None]  # [N, S]
    mass = attention_mass(q.flatten(1, 2), k[:, : base + end], seen.repeat(heads, 1), scale)
    cache.remember(layer)
    tail.count_first(layer, mass[:, base:], len(rows))
    tail.exposure[layer][:, :end] += heads * seen[:, base:].sum(0)


def _groups(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, start: int, scale: float) -> Tensor:
    """Merged query groups that select: one piece of a group, or any number of whole ones. q: [Hq, T, D]."""
    a, kv_heads, dim = spec.attention, cache.shape.kv_heads, q.shape[-1]
    heads, count = q.shape[0] // kv_heads, max(1, q.shape[1] // a.group_tokens)
    rows = q.shape[1] // count
    flat, q = q, q.view(kv_heads, heads, count, rows, dim).permute(2, 0, 1, 3, 4)  # [G, Hkv, heads, Tg, D]
    firsts = (start + torch.arange(count, device=q.device) * rows) // a.region_tokens + cache.base_regions
    starts, lengths = cache.table(start + count * rows)
    own = (start + rows - 1) // a.region_tokens - start // a.region_tokens + 1
    regions = select(spec, cache, layer, q, firsts, own, lengths)  # [G, Hkv, K]
    if walks_lists(spec, cache, flat):
        return attend_listed(spec, cache, layer, flat, regions, start, scale, own=own, last=H2O_ROWS)
    k, v = gather(cache, layer, regions)
    begin = cache.base_tokens + start + torch.arange(count, device=q.device) * rows  # [G]
    if cache.memories or a.positions != "compact":
        places, valid = _places(starts, lengths, regions, a.region_tokens)
        before = (valid & (places < begin[:, None, None])).sum(-1)  # [G, Hkv]
        q_compact = before[..., None] + torch.arange(rows, device=q.device)
        seen = begin[:, None] + torch.arange(rows, device=q.device)  # [G, Tg]
        near = regions >= spec.attention.first_near(firsts)[:, None, None]
        q, k = _turned(spec, q, k, q_compact, seen, places, valid, near)
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
    if rows == a.group_tokens:
        last = q[..., -H2O_ROWS:, :].flatten(2, 3)  # [G, Hkv, heads * rows, D]
        mass = attention_mass(last, k, mask[..., -H2O_ROWS:, :].repeat(1, 1, heads, 1), scale)
        counted = last.shape[2]
        cache.observe(layer, regions, mass.unflatten(-1, (-1, a.region_tokens)), counted, counted // heads)
    return out.permute(1, 2, 0, 3, 4).reshape(kv_heads * heads, count * rows, dim)


def _decode(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, scale: float) -> Tensor:
    """One query: every region while the whole past fits, else the best. Records where it looked. q: [Hq, 1, D]."""
    a, kv_heads = spec.attention, cache.shape.kv_heads
    heads = q.shape[0] // kv_heads
    q = q.view(1, kv_heads, heads, 1, -1)
    regions, places = look_from(spec, cache, layer, q)
    end = cache.tail.filled[layer]
    longest = cache.base_tokens + end if a.positions == "original" else regions.shape[-1] * a.region_tokens
    rope = spec.rope(longest, q)
    decoded = decode_attention(q[0, :, :, 0], located(cache, layer, regions[0]), places, rope, scale=scale)
    release(cache, layer)
    cache.chosen[layer] = regions[0], places
    cache.observe(layer, regions, decoded.mass[None], heads, 1)
    return decoded.out.view(kv_heads * heads, 1, -1)


def look_from(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor) -> tuple[Tensor, Places]:
    """What a query at the end of the tail attends to: every region while the whole past fits, else the best.

    Args:
        q: [1, Hkv, heads, 1, D] raw.

    Returns:
        regions [1, Hkv, K] in text order, the growing one last, and what is valid of them where.
    """
    a, end = spec.attention, cache.tail.filled[layer]
    starts, lengths = cache.table(end)
    fits = cache.base_tokens + end <= spec.budget_for(layer)
    if fits:
        regions = torch.arange(len(starts), device=q.device).expand(1, q.shape[1], -1)
    else:
        first = (end - 1) // a.region_tokens + cache.base_regions
        choose = partial(select_one, spec, cache, layer, q, first, lengths)
        regions = choose() if cache.choices is None else cache.choices.of(layer, first, choose)
    first_near = None if fits else spec.attention.first_near(first)
    return regions, _decode_places(a.positions, starts, lengths, regions[0], cache.base_tokens + end - 1, first_near)


def _decode_places(
    kind: str, starts: Tensor, lengths: Tensor, regions: Tensor, seen: int, first_near: int | None
) -> Places:
    """What is valid of the regions [Hkv, K] of one query, and the positions that the recipe gives them.

    Args:
        seen: the query's place in the whole text.
        first_near: first of the regions that are own or local; None when everything fits, at true distances.
    """
    held = held_tokens(lengths, regions)
    begin, query = held.cumsum(-1) - held, held.sum(-1) - 1
    if first_near is None or kind == "compact":
        return Places(held, begin, query)
    if kind == "original":
        return Places(held, starts[regions], torch.full_like(query, seen))
    far = regions < first_near
    distant = (held * far).sum(-1)  # keys that all lie at one distance
    return Places(held, (begin - distant[:, None]).masked_fill(far, UNTURNED), query - distant)


def _turned(
    spec: AttentionSpec,
    q: Tensor,
    k: Tensor,
    q_compact: Tensor,
    seen: Tensor,
    places: Tensor,
    valid: Tensor,
    near: Tensor,
) -> tuple[Tensor, Tensor]:
    """Queries and keys at the positions that the recipe gives them.

    Args:
        q: [G, Hkv, heads, Tg, D] raw; `q_compact` [G, Hkv, Tg] their places among the valid keys, `seen` [G, Tg] in the
            whole text.
        k: [G, Hkv, S, D] raw, in text order; `places` and `valid` [G, Hkv, S].
        near: [G, Hkv, K] which regions are own or local.

    Returns:
        (q, k), twice as wide with `one_distance`: near keys meet the first half of a query, far keys the second.
    """
    kind, k = spec.attention.positions, k.to(q.dtype)
    positions = (valid.cumsum(-1) - 1).clamp(min=0)
    if kind == "original":
        positions, q_compact = places.clamp(min=0), seen[:, None].expand_as(q_compact)
    cos, sin = spec.rope(int(max(positions.max(), q_compact.max())) + 1, q)
    if kind != "one_distance":
        turned = rotate(q, cos[q_compact][:, :, None], sin[q_compact][:, :, None])
        return turned, rotate(k, cos[positions], sin[positions])
    close = near.repeat_interleave(k.shape[2] // near.shape[2], dim=-1)  # [G, Hkv, S]
    first = (valid & ~close).sum(-1, keepdim=True)
    offsets, q_offsets = (positions - first).clamp(min=0), q_compact - first
    reach = q_offsets[..., -1:]
    queries = [rotate(q, cos[x][:, :, None], sin[x][:, :, None]) for x in (q_offsets, reach)]
    close = close[..., None]
    return torch.cat(queries, dim=-1), torch.cat([rotate(k, cos[offsets], sin[offsets]) * close, k * ~close], dim=-1)


def _places(starts: Tensor, lengths: Tensor, regions: Tensor, region_tokens: int) -> tuple[Tensor, Tensor]:
    """Absolute token and validity of every slot of the gathered regions, [..., K * L] each."""
    slots = torch.arange(region_tokens, device=regions.device)
    places = (starts[regions][..., None] + slots).flatten(-2)
    return places, (slots < held_tokens(lengths, regions)[..., None]).flatten(-2)


class IdentityRotary(nn.Module):
    """Stands in for the model's rotary embedding and leaves queries and keys un-rotated."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones((*position_ids.shape, 1), dtype=x.dtype, device=x.device)
        return one, torch.zeros_like(one)


def install(model, spec: AttentionSpec) -> None:
    """Put region attention into a model through its public seams: attention and mask by name, and rotary module."""
    transformers.AttentionInterface.register(NAME, lectern_attention)
    transformers.AttentionMaskInterface.register(NAME, refuse_padding)
    model.set_attn_implementation(NAME)
    model.model.rotary_emb = IdentityRotary()
    for layer in model.model.layers:
        layer.self_attn.lectern = spec


def walks_lists(spec: AttentionSpec, cache: RegionCache, q: Tensor) -> bool:
    """Whether groups of such queries are attended to here."""
    return use_triton(q) and q.dtype == cache.shape.dtype and spec.attention.positions != "one_distance"


def attend_listed(
    spec: AttentionSpec,
    cache: RegionCache,
    layer: int,
    q: Tensor,
    regions: Tensor,
    start: int,
    scale: float,
    *,
    own: int,
    last: int,
) -> Tensor:
    """Attend to chosen regions by the kernels that walk lists. Of whole groups, record where the `last` queries looked.

    Nothing is gathered as long as all regions that a segment's groups chose fit into hot slots together.

    Args:
        q: [Hq, G * rows, D] raw queries of the tail's tokens from `start` on.
        regions: [G, Hkv, K] in text order, the `own` ones of a group last.

    Returns:
        Like q.
    """
    a, device = spec.attention, q.device
    groups, rows = len(regions), q.shape[1] // len(regions)
    starts, lengths = cache.table(start + q.shape[1])
    places, held = starts[regions], held_tokens(lengths, regions)
    begins = cache.base_tokens + start + torch.arange(groups, device=device) * rows
    if a.positions == "original":
        offsets, first, longest = places, begins[:, None].expand(places.shape[:2]), cache.base_tokens + start
    else:
        offsets, longest = held.cumsum(-1) - held, regions.shape[-1] * a.region_tokens
        first = (begins[:, None, None] - places).clamp(min=0).minimum(held).sum(-1)  # [G, Hkv] tokens before the group
    cos, sin = spec.rope(longest + q.shape[1], q)
    at = (first[..., None] + torch.arange(rows, device=device)).transpose(0, 1)[:, None]  # [Hkv, 1, G, rows]
    queries = q.unflatten(0, (cache.shape.kv_heads, -1)).unflatten(2, (groups, rows))
    queries = rotate(queries, cos[at], sin[at]).flatten(2, 3).flatten(0, 1)[None]  # [1, Hq, G * rows, D]
    pages = located(cache, layer, regions)
    size = a.region_tokens * cache.shape.head_dim
    k = pages.data.view(-1, a.region_tokens, cache.shape.head_dim)
    v = k[int(pages.values.flatten()[0] - pages.keys.flatten()[0]) // size :]  # values lie equally far from all keys
    plain = not cache.memories and cache.allowed is None  # all regions before the own ones are whole
    lists = BlockLists(
        pages.keys[None] // size,
        places.int()[None],
        held.int()[None],
        offsets.int()[None],
        begins.int(),
        past=regions.shape[-1] - own if plain else 0,
    )
    out, lse = selected_attention(queries, k, v, lists, cos, sin, scale=scale)
    if rows == a.group_tokens:
        last = min(last, rows)
        mass = selected_mass(queries, k, lists, cos, sin, lse, scale=scale, last=last)[0]  # [G, Hkv, K, L]
        counted = last * q.shape[0] // cache.shape.kv_heads
        cache.observe(layer, regions, mass, counted, last)
    release(cache, layer)
    return out[0]
