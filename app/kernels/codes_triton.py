"""Triton kernel of `TextCodes.scan`: every code is read once, for all query heads of its KV head.

It has run in Triton's interpreter and been compiled for Ampere and Hopper; it was never timed on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.layout import BLOCK

REGIONS = 64  # of one program
LEAST_ROWS, LEAST_AXES = 16, 32  # of a product of int8


def scan(asked: Tensor, units: Tensor, codes: Tensor, scales: Tensor, stop: int) -> Tensor:
    """[Hkv, Q, stop] float32: the best product of each region, times its scale and the query's.

    Args:
        asked: [Hkv, Q, A] int8, of which `units` [Hkv, Q, 1] are the scales.
        codes: [Hkv, blocks, F, BLOCK, A] int8, of which `scales` [Hkv, blocks * BLOCK] are the regions' scales.
    """
    (kv_heads, queries, axes), per_region = asked.shape, codes.shape[2]
    out = torch.empty(kv_heads, queries, stop, dtype=torch.float32, device=asked.device)
    _scan_kernel[(kv_heads, triton.cdiv(stop, REGIONS))](
        asked.contiguous(),
        units.contiguous(),
        codes,
        scales,
        out,
        codes.stride(0),
        scales.stride(0),
        queries,
        stop,
        AXES=axes,
        PER_REGION=per_region,
        BLOCK=BLOCK,
        BLOCK_Q=max(LEAST_ROWS, triton.next_power_of_2(queries)),
        BLOCK_R=REGIONS,
        BLOCK_A=max(LEAST_AXES, triton.next_power_of_2(axes)),
        num_warps=4,
    )
    return out


@triton.jit
def _scan_kernel(
    asked, units, codes, scales, out, codes_head, scales_head, queries, stop,
    AXES: tl.constexpr, PER_REGION: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_A: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    q, a = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_A)
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    at = asked + (head * queries + q)[:, None] * AXES + a[None]
    x = tl.load(at, mask=(q < queries)[:, None] & (a < AXES)[None], other=0)  # [Q, A]
    best = tl.full([BLOCK_Q, BLOCK_R], -2147483648, tl.int32)
    at = codes + head * codes_head + (r // BLOCK * PER_REGION * BLOCK + r % BLOCK)[:, None] * AXES + a[None]
    for f in range(PER_REGION):
        y = tl.load(at + f * BLOCK * AXES, mask=(r < stop)[:, None] & (a < AXES)[None], other=0)  # [R, A]
        best = tl.maximum(best, tl.dot(x, tl.trans(y), out_dtype=tl.int32))
    scale = tl.load(scales + head * scales_head + r, mask=r < stop, other=0.0)
    unit = tl.load(units + head * queries + q, mask=q < queries, other=0.0)
    values = best.to(tl.float32) * (scale[None] * unit[:, None])
    tl.store(
        out + (head * queries + q)[:, None] * stop + r[None], values, mask=(q < queries)[:, None] & (r < stop)[None]
    )
