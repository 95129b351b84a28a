"""Attention of one query over chosen regions of each KV head, read where they lie: decode (MSA-1 step 5 with one row).

Sinks, window and selected regions are all regions of one list. Keys are stored un-rotated and turned to the position
that the recipe gives them while they are read; the mass that each token received comes out of the same pass, for H2O
and for evidence.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.layout import UNTURNED, Pages, Places, packed_bytes
from app.kernels.quant import dequantize
from app.kernels.rope import rotate


class Decoded(NamedTuple):
    """Output [Hkv, heads, D] of the query's dtype, log-sum-exp [Hkv, heads], mass [Hkv, K, L], both float32.

    The mass of a token is its attention weight, summed over the query heads of its KV head; 0 where nothing is valid.
    """

    out: Tensor
    lse: Tensor
    mass: Tensor


def decode_attention(q: Tensor, pages: Pages, places: Places, rope: tuple[Tensor, Tensor], *, scale: float) -> Decoded:
    """Attend with one query per query head.

    Args:
        q: [Hkv, heads, D] raw, the query heads of a KV head together; D even.
        rope: (cos, sin), [P, D] each, of all positions that occur; their halves are alike (`rope_table`).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    shapes = {tuple(x.shape) for x in (pages.keys, pages.values, places.lengths, places.starts)}
    if q.shape[-1] % 2 or len(shapes) > 1 or len(pages.keys) != len(q):
        raise ValueError(f"need an even D and lists of one shape for each KV head, got q {tuple(q.shape)} and {shapes}")
    if (pages.codec == "raw") != (pages.firsts is None):
        raise ValueError(f"codec {pages.codec!r}: `firsts` are for packed pages, and they need them")
    if use_triton(q):
        from app.kernels.decode_triton import decode

        return Decoded(*decode(q, pages, places, rope, scale))
    return decode_reference(q, pages, places, rope, scale=scale)


def decode_reference(q: Tensor, pages: Pages, places: Places, rope: tuple[Tensor, Tensor], *, scale: float) -> Decoded:
    """The same in plain PyTorch, in the query's dtype; logits, softmax and mass in float32, or float64 for such q."""
    length = pages.region_tokens
    k, v = _gathered(pages, q.shape[-1], q.dtype)  # [Hkv, K, L, D]
    slots = torch.arange(length, device=q.device)
    valid = slots < places.lengths[..., None]  # [Hkv, K, L]
    short = (places.lengths < length).nonzero(as_tuple=True)  # few: what lies behind their ends may be anything
    v[short] = v[short].masked_fill(~valid[short][..., None], 0)
    logits = _products(q, k, places, rope).transpose(1, 2).flatten(2)  # [Hkv, heads, K * L]
    logits = logits.to(torch.promote_types(q.dtype, torch.float32)) * scale
    logits = logits.masked_fill(~valid.flatten(1)[:, None], float("-inf"))
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp()
    out = weights.to(q.dtype) @ v.flatten(1, 2)
    return Decoded(out, lse, weights.sum(1).unflatten(-1, (-1, length)))


def _products(q: Tensor, k: Tensor, places: Places, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotated queries times rotated keys, [Hkv, K, heads, L]. `k` [Hkv, K, L, D] is turned in place.

    Only differences of positions count. So keys are turned by their place in the region, which takes a table that fits
    the caches, and the query by the distance from each region's start.
    """
    (cos, sin), half, still = rope, q.shape[-1] // 2, places.starts == UNTURNED
    slots = torch.arange(k.shape[2], device=q.device).clamp(max=len(cos) - 1)
    c, s = cos[slots], torch.cat([-sin[slots, :half], sin[slots, half:]], dim=-1)
    if still.any():
        still = still[..., None, None]
        c, s = torch.where(still, torch.ones_like(c), c), torch.where(still, torch.zeros_like(s), s)
    swapped = k.roll(half, -1)
    k.mul_(c).addcmul_(swapped, s)
    distance = (places.query[:, None] - places.starts.clamp(min=0)).clamp(0, len(cos) - 1)
    asked = rotate(q[:, None], cos[distance][:, :, None], sin[distance][:, :, None])  # [Hkv, K, heads, D]
    return asked @ k.transpose(-1, -2)


def _gathered(pages: Pages, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of the regions, [Hkv, K, L, D] each, copied."""
    length, shape = pages.region_tokens, (*pages.keys.shape, pages.region_tokens, dim)
    if pages.firsts is None:
        rows = pages.data.view(-1, length * dim)
        pair = [rows.index_select(0, at.flatten() // (length * dim)) for at in (pages.keys, pages.values)]
        return tuple(x.view(shape).to(dtype) for x in pair)
    pair, size = [], pages.page_tokens
    inside = pages.firsts.flatten()[:, None] + torch.arange(length, device=pages.data.device)
    packed = pages.data.view(-1).unfold(0, packed_bytes(pages.codec, size, dim), 1)
    for offsets in (pages.keys, pages.values):
        whole = dequantize(packed[offsets.flatten()], pages.codec, size, dim)
        pair.append(whole.gather(1, inside[..., None].expand(-1, -1, dim)).view(shape).to(dtype))
    return pair[0], pair[1]
