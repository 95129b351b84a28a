"""Attention of one query over chosen regions of each KV head, read where they lie: decode (MSA-1 step 5 with one row).

Sinks, window and selected regions are all regions of one list. Keys are stored un-rotated and turned to the position
that the recipe gives them while they are read; the mass that each token received comes out of the same pass, for H2O
and for evidence.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.quant import dequantize, packed_bytes
from app.kernels.rope import rotate

UNTURNED = -1  # position of keys that are not rotated


@dataclass(frozen=True)
class Pages:
    """Where the chosen regions of each KV head lie.

    A page holds `page_tokens` tokens of one KV head, a region is a part of it: raw, [page_tokens, D] in a floating
    dtype, or what `quantize` makes of that, keys by channel and values by token.

    Attributes:
        data: contiguous; floating elements, or bytes (uint8).
        keys, values: [Hkv, K] int64, where a region's page begins in `data`, in elements: a multiple of
            `page_tokens` x D for raw ones, else even.
        firsts: [Hkv, K] int64, the region's first token within its page.
    """

    data: Tensor
    keys: Tensor
    values: Tensor
    firsts: Tensor
    page_tokens: int
    region_tokens: int
    codec: Literal["raw", "int8", "int4"] = "raw"


@dataclass(frozen=True)
class Places:
    """What is valid of each region and at which positions it meets the query; [Hkv, K] int64 each.

    Attributes:
        lengths: valid tokens, the first of the region; 0 leaves it out. At least one token of a KV head is valid.
        starts: position of the region's first key, its others follow; UNTURNED leaves all of them as they are.
        query: position of the query where it meets this region.
    """

    lengths: Tensor
    starts: Tensor
    query: Tensor


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
    kv_heads, _, dim = q.shape
    if dim % 2 or any(x.shape != pages.keys.shape for x in (pages.values, pages.firsts, places.lengths, places.starts)):
        raise ValueError(f"need an even D and lists of one shape, got D = {dim} and {tuple(pages.keys.shape)}")
    if pages.keys.shape[0] != kv_heads or pages.page_tokens < pages.region_tokens:
        raise ValueError(f"{kv_heads} KV heads, lists of {pages.keys.shape[0]}; regions must fit into their pages")
    if use_triton(q):
        from app.kernels.decode_triton import decode

        return Decoded(*decode(q, pages, places, rope, scale))
    return decode_reference(q, pages, places, rope, scale=scale)


def decode_reference(q: Tensor, pages: Pages, places: Places, rope: tuple[Tensor, Tensor], *, scale: float) -> Decoded:
    """The same in plain PyTorch, in the query's dtype; logits, softmax and mass in float32, or float64 for such q."""
    kv_heads, heads, dim = q.shape
    (cos, sin), length = rope, pages.region_tokens
    k, v = _gathered(pages, dim, q.dtype)  # [Hkv, K, L, D]
    slots = torch.arange(length, device=q.device)
    valid = slots < places.lengths[..., None]  # [Hkv, K, L]
    short = (places.lengths < length).nonzero(as_tuple=True)  # few: what lies behind their ends may be anything
    for x in (k, v):
        x[short] = x[short].masked_fill(~valid[short][..., None], 0)
    turned = (places.starts != UNTURNED)[..., None]
    at = (places.starts[..., None] + slots).clamp(0, len(cos) - 1)
    k = torch.where(turned[..., None], rotate(k, cos[at], sin[at]), k)
    asked = rotate(q[:, None], cos[places.query][:, :, None], sin[places.query][:, :, None])  # [Hkv, K, heads, D]
    logits = asked @ k.transpose(-1, -2)  # [Hkv, K, heads, L]
    logits = logits.to(torch.promote_types(q.dtype, torch.float32)).transpose(1, 2).flatten(2) * scale
    logits = logits.masked_fill(~valid.flatten(1)[:, None], float("-inf"))  # [Hkv, heads, K * L]
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp()
    out = weights.to(q.dtype) @ v.flatten(1, 2)
    return Decoded(out, lse, weights.sum(1).unflatten(-1, (-1, length)))


def _gathered(pages: Pages, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of the regions, [Hkv, K, L, D] each, copied."""
    length, size = pages.region_tokens, pages.page_tokens
    pair = []
    for offsets, axis in ((pages.keys, "channel"), (pages.values, "token")):
        if pages.codec == "raw":
            rows = (offsets + pages.firsts * dim) // (length * dim)
            x = pages.data.view(-1, length * dim).index_select(0, rows.flatten()).unflatten(-1, (length, dim))
        else:
            count = packed_bytes(pages.codec, axis, size, dim)
            packed = pages.data.view(-1).unfold(0, count, 1)[offsets.flatten()]
            whole = dequantize(packed, pages.codec, axis, size, dim)
            at = pages.firsts.flatten()[:, None] + torch.arange(length, device=offsets.device)
            x = whole.gather(1, at[..., None].expand(-1, -1, dim))
        pair.append(x.view(*offsets.shape, length, dim).to(dtype))
    return pair[0], pair[1]
