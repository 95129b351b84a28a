"""Merged query groups whose regions are read where they lie in the cache, by the kernels that walk lists.

What is gathered: nothing, as long as all regions that a segment's groups chose fit into hot slots together. Where they
do not, they are copied as the reference does it.
"""

import torch
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.rope import rotate
from app.kernels.selected import BlockLists, selected_attention, selected_mass
from app.runtime.cache import RegionCache
from app.runtime.selection import held_tokens, located, release
from app.runtime.spec import AttentionSpec


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
    """Attend to chosen regions. Of whole groups, record where the `last` queries looked.

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
