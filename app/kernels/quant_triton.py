"""Triton kernels of `quantize` and `dequantize`: the same bytes and numbers as the reference, bit for bit.

It has run in Triton's interpreter and been compiled for Ampere and Hopper; it was never timed on a GPU.

Hence true divisions, no fused multiply-add, and rounding half to even by adding and taking away 1.5 x 2^23. Scales and
offsets pass through small tensors of their own: their place behind the codes may be odd.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.layout import GROUP, packed_bytes

ROWS = 32  # of one program
LARGEST = torch.finfo(torch.float32).max
HALF_LARGEST = torch.finfo(torch.float16).max
HALF_EVEN = 12582912.0


def pack(x: Tensor, codec: str) -> Tensor:
    """`quantize` without its checks."""
    x = x.float() if x.dtype == torch.float64 else x
    count, tokens, dim = x.shape
    codes = _code_bytes(codec, tokens, dim)
    out = torch.empty(count, packed_bytes(codec, tokens, dim), dtype=torch.uint8, device=x.device)
    halves = torch.empty(count, (out.shape[1] - codes) // 2, dtype=torch.float16, device=x.device)
    (_pack_int8 if codec == "int8" else _pack_int4)[(count, triton.cdiv(dim, ROWS))](
        x,
        out.view(torch.int8) if codec == "int8" else out,
        halves,
        x.stride(0),
        x.stride(2),
        x.stride(1),
        out.stride(0),
        halves.stride(0),
        dim,
        tokens,
        LARGEST=LARGEST,
        HALF_LARGEST=HALF_LARGEST,
        HALF_EVEN=HALF_EVEN,
        BLOCK_R=ROWS,
        BLOCK_C=triton.next_power_of_2(tokens) if codec == "int8" else GROUP // 2,
        num_warps=4,
        enable_fp_fusion=False,
    )
    out[:, codes:] = halves.view(torch.uint8)
    return out


def unpack(data: Tensor, codec: str, tokens: int, dim: int) -> Tensor:
    """`dequantize` without its checks."""
    data = data if data.stride(1) == 1 else data.contiguous()
    codes = _code_bytes(codec, tokens, dim)
    halves = data[:, codes:].contiguous().view(torch.float16)
    out = torch.empty(len(data), tokens, dim, dtype=torch.float32, device=data.device)
    _unpack[(len(data), triton.cdiv(dim, ROWS), triton.cdiv(tokens, GROUP))](
        data.view(torch.int8) if codec == "int8" else data,
        halves,
        out,
        data.stride(0),
        halves.stride(0),
        1,
        dim,
        tokens * dim,
        dim,
        tokens,
        INT4=codec == "int4",
        BLOCK_R=ROWS,
        BLOCK_C=GROUP,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


def _code_bytes(codec: str, tokens: int, dim: int) -> int:
    return dim * tokens if codec == "int8" else dim * -(-tokens // GROUP) * GROUP // 2


@triton.jit
def _numbers(x, LARGEST: tl.constexpr):
    """float32, NaN as 0 and infinities as the largest number."""
    x = x.to(tl.float32)
    return tl.minimum(tl.maximum(tl.where(x == x, x, 0.0), -LARGEST), LARGEST)


@triton.jit
def _codes(x, scale, most, least, HALF_EVEN: tl.constexpr):
    """x / scale, bounded and rounded; 0 where the scale is 0."""
    x = tl.where(scale == 0, 0.0, tl.div_rn(x, tl.where(scale == 0, 1.0, scale)))
    return (tl.minimum(tl.maximum(x, least), most) + HALF_EVEN) - HALF_EVEN


@triton.jit
def _pack_int8(
    x, out, halves, item, row, column, out_item, halves_item, rows, length,
    LARGEST: tl.constexpr, HALF_LARGEST: tl.constexpr, HALF_EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    r, c = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    inside = (r < rows)[:, None] & (c < length)[None]
    values = _numbers(tl.load(x + n * item + r[:, None] * row + c[None] * column, mask=inside, other=0.0), LARGEST)
    most = tl.div_rn(tl.max(tl.abs(values), 1), 127.0)
    scale = tl.minimum(most, HALF_LARGEST).to(tl.float16)  # [R]
    codes = _codes(values, scale.to(tl.float32)[:, None], 127.0, -127.0, HALF_EVEN)
    tl.store(out + n * out_item + r[:, None] * length + c[None], codes.to(tl.int8), mask=inside)
    tl.store(halves + n * halves_item + r, scale, mask=r < rows)


@triton.jit
def _pack_int4(
    x, out, halves, item, row, column, out_item, halves_item, rows, length,
    LARGEST: tl.constexpr, HALF_LARGEST: tl.constexpr, HALF_EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_C bytes, of two values each, share a scale and an offset; behind a row's end its last value is repeated."""
    n = tl.program_id(0).to(tl.int64)
    r, c = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    inside = (r < rows)[:, None]
    groups = (length + 2 * BLOCK_C - 1) // (2 * BLOCK_C)
    for g in range(groups):
        even = tl.minimum(g * 2 * BLOCK_C + 2 * c, length - 1)[None]
        odd = tl.minimum(g * 2 * BLOCK_C + 2 * c + 1, length - 1)[None]
        at = x + n * item + r[:, None] * row
        first = _numbers(tl.load(at + even * column, mask=inside, other=0.0), LARGEST)  # [R, C]
        second = _numbers(tl.load(at + odd * column, mask=inside, other=0.0), LARGEST)
        least = tl.minimum(tl.min(first, 1), tl.min(second, 1))
        low = tl.minimum(tl.maximum(least + 0.0, -HALF_LARGEST), HALF_LARGEST).to(tl.float16)  # [R]
        zero = low.to(tl.float32)
        reach = tl.div_rn(tl.maximum(tl.max(first, 1), tl.max(second, 1)) - zero, 15.0)
        scale = tl.minimum(tl.maximum(reach + 0.0, -HALF_LARGEST), HALF_LARGEST).to(tl.float16)
        unit = scale.to(tl.float32)[:, None]
        first = _codes(first - zero[:, None], unit, 15.0, 0.0, HALF_EVEN).to(tl.int32)
        second = _codes(second - zero[:, None], unit, 15.0, 0.0, HALF_EVEN).to(tl.int32)
        to = out + n * out_item + (r[:, None] * groups + g) * BLOCK_C + c[None]
        tl.store(to, (first | second << 4).to(tl.uint8), mask=inside & (c >= 0)[None])
        to = halves + n * halves_item + r * groups + g
        tl.store(to, scale, mask=r < rows)
        tl.store(to + rows * groups, low, mask=r < rows)


@triton.jit
def _unpack(
    data, halves, out, item, halves_item, row, column, out_item, rows, length,
    INT4: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The columns that share a scale in int4; in int8 as many of them, whose scale is the row's."""
    n, g = tl.program_id(0).to(tl.int64), tl.program_id(2)
    r, c = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R), g * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (r < rows)[:, None] & (c < length)[None]
    if INT4:
        groups = tl.num_programs(2)
        at = data + n * item + r[:, None] * (groups * BLOCK_C // 2) + (c // 2)[None]
        pair = tl.load(at, mask=inside, other=0).to(tl.int32)
        codes = ((pair >> (c % 2 * 4)[None]) & 15).to(tl.float32)
        at = halves + n * halves_item + r * groups + g
        scale = tl.load(at, mask=r < rows, other=0.0).to(tl.float32)
        low = tl.load(at + rows * groups, mask=r < rows, other=0.0).to(tl.float32)
        values = codes * scale[:, None] + low[:, None]
    else:
        at = data + n * item + r[:, None] * length + c[None]
        scale = tl.load(halves + n * halves_item + r, mask=r < rows, other=0.0).to(tl.float32)
        values = tl.load(at, mask=inside, other=0).to(tl.float32) * scale[:, None]
    tl.store(out + n * out_item + r[:, None] * row + c[None] * column, values, mask=inside)
