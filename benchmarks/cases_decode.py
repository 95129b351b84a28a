"""Cases of decode: one query over pages, H2O's column sums, packing, and rough scores of all regions."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.codes import TextCodes, encode_queries
from app.kernels.decode import decode_attention, decode_reference
from app.kernels.h2o import causal_mass, causal_mass_reference
from app.kernels.layout import BLOCK, Pages, Places, packed_bytes
from app.kernels.quant import dequantize, dequantize_reference, quantize, quantize_reference
from app.kernels.rope import rope_table
from benchmarks.cases import Case, Operation, Outputs, Shape, Way, randn

REGION, PAGE = 64, 128
ROWS = 64  # last queries whose mass is summed
AXES, FINE = 64, 16  # of a sketch: axes that are left, means of a region
LENGTHS = (8192, 131072, 1048576)


def _keys_and_values(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Tensor:
    """[pages, 2, Hkv, PAGE, D]."""
    return randn(-(-tokens // PAGE), 2, shape.kv_heads, PAGE, shape.dim, dtype=dtype, device=device, seed=0)


def _pages(shape: Shape, kv: Tensor, regions: Tensor, codec: str) -> Pages:
    """Where regions [Hkv, K] lie in pages, raw or packed."""
    kv_heads, dim = shape.kv_heads, shape.dim
    heads, page, inside = torch.arange(kv_heads, device=kv.device)[:, None], regions // 2, regions % 2 * REGION
    if codec == "raw":
        keys = ((page * 2 * kv_heads + heads) * PAGE + inside) * dim
        return Pages(kv, keys, keys + kv_heads * PAGE * dim, REGION)
    data, size = quantize(kv.flatten(0, 2), codec).view(len(kv), -1), packed_bytes(codec, PAGE, dim)
    keys = page * data.shape[1] + heads * size
    values = keys + kv_heads * size
    return Pages(data, keys, values, REGION, codec, PAGE, inside)


def _decode(codec: str, everything: bool, shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """One query over the whole text or over a budget of it, its own last region begun."""
    kv = _keys_and_values(shape, tokens, dtype, device)
    held = tokens // REGION
    count = held if everything else min(held, shape.budget // REGION)
    generator = torch.Generator(device).manual_seed(1)
    noise = torch.rand(shape.kv_heads, held, generator=generator, device=device)
    noise[:, -1] = 2.0
    regions = noise.topk(count, dim=-1).indices.sort(-1).values
    lengths = torch.full_like(regions, REGION)
    lengths[:, -1] = REGION // 2 + 1
    places = Places(lengths, lengths.cumsum(-1) - lengths, lengths.sum(-1) - 1)
    inv_freq = 1e4 ** -(torch.arange(0, shape.dim, 2, device=device) / shape.dim)
    rope = rope_table(inv_freq, count * REGION, 1.0, dtype)
    q = randn(shape.kv_heads, shape.heads // shape.kv_heads, shape.dim, dtype=dtype, device=device, seed=2)
    pages = _pages(shape, kv, regions, codec)

    def exact() -> Outputs:
        wide = replace(pages, data=pages.data.double()) if codec == "raw" else pages
        return decode_reference(q.double(), wide, places, tuple(x.double() for x in rope), scale=shape.scale)

    read = pages.data.numel() * pages.data.itemsize / (len(kv) * 2) * count
    return Case(
        kernel=lambda: decode_attention(q, pages, places, rope, scale=shape.scale),
        exact=exact,
        flops=4.0 * shape.heads * count * REGION * shape.dim,
        bytes=read,
        peers=_dense(shape, q, kv) if device == "cuda" and everything and codec == "raw" else {},
    )


def _dense(shape: Shape, q: Tensor, kv: Tensor) -> dict[str, Way]:
    """SDPA over keys that are rotated already: less work than ours, and no mass."""
    k, v = (kv[:, i].transpose(0, 1).flatten(1, 2)[None].contiguous() for i in range(2))
    asked = q.reshape(1, -1, 1, shape.dim)
    run = partial(F.scaled_dot_product_attention, asked, k, v, scale=shape.scale, enable_gqa=len(q[0]) > 1)
    return {"dense SDPA": Way(run, bytes=2.0 * k.numel() * k.itemsize)}


def _sums(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """Mass that the last rows of a text give, all query heads of a KV head together."""
    rows = shape.heads // shape.kv_heads * ROWS
    q = randn(shape.kv_heads, rows, shape.dim, dtype=dtype, device=device, seed=0)
    k = randn(shape.kv_heads, tokens, shape.dim, dtype=dtype, device=device, seed=1)
    ends = torch.arange(tokens - ROWS + 1, tokens + 1, device=device).repeat(rows // ROWS)
    return Case(
        kernel=lambda: (causal_mass(q, k, ends, shape.scale),),
        exact=lambda: (causal_mass_reference(q.double(), k.double(), ends, shape.scale),),
        flops=4.0 * shape.kv_heads * rows * tokens * shape.dim,
        bytes=2.0 * k.numel() * k.itemsize,
        peers={"PyTorch": Way(lambda: causal_mass_reference(q, k, ends, shape.scale))} if device == "cuda" else {},
    )


def _pack(codec: str, shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """Keys and values of whole pages to bytes."""
    kv = _keys_and_values(shape, tokens, dtype, device).flatten(0, 2)
    return Case(
        kernel=lambda: (quantize(kv, codec),),
        exact=lambda: (quantize_reference(kv, codec).double(),),
        bytes=float(kv.numel() * kv.itemsize + packed_bytes(codec, PAGE, shape.dim) * len(kv)),
        peers={"PyTorch": Way(lambda: quantize_reference(kv, codec))} if device == "cuda" else {},
    )


def _unpack(codec: str, shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """Bytes of whole pages to keys and values in float32."""
    kv = _keys_and_values(shape, tokens, dtype, device).flatten(0, 2)
    packed = quantize(kv, codec)

    def run(function: Callable) -> Tensor:
        return function(packed, codec, PAGE, shape.dim)

    return Case(
        kernel=lambda: (run(dequantize),),
        exact=lambda: (run(dequantize_reference).double(),),
        bytes=packed.numel() + 4.0 * kv.numel(),
        peers={"PyTorch": Way(lambda: run(dequantize_reference))} if device == "cuda" else {},
    )


def _scan(shape: Shape, tokens: int, dtype: torch.dtype, device: str) -> Case:
    """Rough scores of all regions for one query, by int8 codes; the peer scores by the means themselves."""
    regions, per_head = tokens // REGION, shape.heads // shape.kv_heads
    codes = TextCodes.room(regions, shape.kv_heads, FINE, AXES, torch.device(device))
    for first in range(0, regions, BLOCK):
        count = min(BLOCK, regions - first)
        codes.put(first, randn(shape.kv_heads, count, FINE, AXES, dtype=torch.float32, device=device, seed=first))
    query = randn(shape.kv_heads, per_head, AXES, dtype=torch.float32, device=device, seed=1)
    return Case(
        kernel=lambda: (codes.scan(query, regions),),
        exact=lambda: (codes.scan_reference(*encode_queries(query), regions).double(),),
        bytes=float(shape.kv_heads * regions * FINE * AXES),
    )


OPERATIONS = (
    *(
        Operation(f"decode {what}, {codec}", partial(_decode, codec, what == "all"), "bytes", LENGTHS)
        for what in ("all", "budget")
        for codec in ("raw", "int8", "int4")
    ),
    Operation("H2O sums", _sums, "bytes", LENGTHS),
    *(
        Operation(f"{name} {codec}", partial(make, codec), "bytes", LENGTHS[:2])
        for name, make in (("pack", _pack), ("unpack", _unpack))
        for codec in ("int8", "int4")
    ),
    Operation("region scores, int8", _scan, "bytes", LENGTHS, dtypes=(torch.float32,)),
)
