"""Attention of query groups over listed blocks of keys: step 5 of MSA-1, for prefill and training.

Keys lie raw in blocks of one region and one KV head, wherever those are: in a text of training or in the slots of a
cache. Each group of queries has a list of blocks; the kernels walk it, rotate each block where the list says, and
gather nothing. The references gather.
"""

import torch
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.layout import BlockLists
from app.kernels.rope import rotate


def lists_of_texts(
    regions: Tensor, held: int, region_tokens: int, begins: Tensor, *, own: int, compact: bool
) -> BlockLists:
    """Lists over keys [B, Hkv, held * L, D] that lie whole in storage.

    Args:
        regions: [B, G, Hkv, K] in text order: the group's `own` regions stand last, all others before the group.
        begins: [G] place of each group's first query.
        compact: rotate keys to their ranks among the selected ones, else to their places.
    """
    batch, _, kv_heads, listed = regions.shape
    device = regions.device
    first = torch.arange(batch * kv_heads, device=device).view(batch, 1, kv_heads, 1) * held
    places = (regions * region_tokens).int()
    ranks = torch.arange(0, listed * region_tokens, region_tokens, dtype=torch.int32, device=device)
    offsets = ranks.expand_as(places).contiguous() if compact else places
    lengths = torch.full_like(places, region_tokens)
    return BlockLists(regions + first, places, lengths, offsets, begins.int(), listed - own)


def selected_attention(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, cos: Tensor, sin: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to listed blocks; a key counts for queries at or after its place only.

    Args:
        q: [B, Hq, G * rows, D], rotated. All of one dtype: q, k, v.
        k, v: [blocks, L, D], k raw; what is beyond a block's length is anything finite.
        cos, sin: [P, D], both halves alike, as `rope_table` makes them. Beyond P stand only tokens that nobody sees.

    Returns:
        (out like q, log-sum-exp of the scaled logits [B, Hq, G * rows] float32). Only the first has a gradient.
    """
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"queries, keys and values differ: {q.dtype}, {k.dtype}, {v.dtype}")
    if q.shape[2] % len(lists.begins):
        raise ValueError(f"{q.shape[2]} queries do not fill {len(lists.begins)} groups alike")
    if use_triton(q):
        from app.kernels.selected_grad_triton import SelectedAttention

        return SelectedAttention.apply(q, k, v, lists, cos, sin, scale)
    return selected_reference(q, k, v, lists, cos, sin, scale=scale)


def selected_mass(
    q: Tensor, k: Tensor, lists: BlockLists, cos: Tensor, sin: Tensor, lse: Tensor, *, scale: float, last: int
) -> Tensor:
    """Attention mass that each listed key receives from the `last` queries of each group; see `selected_attention`.

    Args:
        lse: [B, Hq, G * rows] as `selected_attention` returned it.

    Returns:
        [B, G, Hkv, K, L] float32, summed over those queries and the query heads of a KV head.
    """
    if use_triton(q):
        from app.kernels.selected_triton import mass

        return mass(q, k, lists, cos, sin, lse, scale, last)
    return selected_mass_reference(q, k, lists, cos, sin, lse, scale=scale, last=last)


def selected_reference(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, cos: Tensor, sin: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """`selected_attention` in plain PyTorch: gather, rotate, mask, softmax."""
    logits = _logits(_by_group(q, lists), k, lists, cos, sin, scale)  # [B, G, Hkv, heads, rows, S]
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp()
    out = weights.to(v.dtype) @ v[lists.blocks].flatten(3, 4)[:, :, :, None]
    out = out.permute(0, 2, 3, 1, 4, 5).reshape(q.shape)
    return out, lse.detach().permute(0, 2, 3, 1, 4).reshape(q.shape[:3])


def selected_mass_reference(
    q: Tensor, k: Tensor, lists: BlockLists, cos: Tensor, sin: Tensor, lse: Tensor, *, scale: float, last: int
) -> Tensor:
    """`selected_mass` in plain PyTorch."""
    logits = _logits(_by_group(q, lists), k, lists, cos, sin, scale)
    weights = (logits - _by_group(lse[..., None], lists)).exp()
    return weights[..., -last:, :].sum((3, 4)).unflatten(-1, (-1, k.shape[1]))


def _by_group(x: Tensor, lists: BlockLists) -> Tensor:
    """[B, Hq, G * rows, D] -> [B, G, Hkv, heads, rows, D]."""
    x = x.unflatten(1, (lists.blocks.shape[2], -1)).unflatten(3, (len(lists.begins), -1))
    return x.permute(0, 3, 1, 2, 4, 5)


def _logits(q: Tensor, k: Tensor, lists: BlockLists, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
    """Scaled logits of queries [B, G, Hkv, heads, rows, D], -inf where masked: [B, G, Hkv, heads, rows, S]."""
    inside = torch.arange(k.shape[1], device=k.device)
    positions = (lists.offsets[..., None] + inside).clamp(max=len(cos) - 1)
    keys = rotate(k[lists.blocks], cos[positions], sin[positions]).flatten(3, 4)  # [B, G, Hkv, S, D]
    places = (lists.places[..., None] + inside).flatten(3)
    counts = (inside < lists.lengths[..., None]).flatten(3)
    seen = lists.begins[:, None] + torch.arange(q.shape[4], device=q.device)  # [G, rows]
    mask = counts[..., None, :] & (places[..., None, :] <= seen[:, None, :, None])  # [B, G, Hkv, rows, S]
    logits = (q @ keys[:, :, :, None].transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    return logits.masked_fill(~mask[:, :, :, None], float("-inf"))
