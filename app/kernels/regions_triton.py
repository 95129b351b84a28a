"""Triton kernels of app/kernels/regions.py: means of neighbouring keys, and the best product of each region.

It has run in Triton's interpreter and been compiled for Ampere and Hopper; it was never timed on a GPU.

The products of queries with all key means are never in memory: a tile of them is reduced to one number for each region
as soon as it is made. The choice of the best regions stays with torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_Q, COLUMNS, BLOCK_D = 64, 128, 64  # queries, key means and channels at once
ROWS = 32  # means at once


@triton.jit
def _scores(
    q_ptr, k_ptr, out_ptr, k_heads, queries, regions, means, dim,
    BLOCK_Q: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (tile of queries x tile of regions, head): the largest product with any of a region's means."""
    tiles = tl.cdiv(regions, BLOCK_R)
    head = tl.program_id(1).to(tl.int64)
    q = tl.program_id(0) // tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)  # [Q]
    column = tl.arange(0, BLOCK_R * BLOCK_F)
    region, mean = tl.program_id(0) % tiles * BLOCK_R + column // BLOCK_F, column % BLOCK_F  # [R * F] each
    cols = tl.arange(0, BLOCK_D)
    q_at = (head * queries + q) * dim
    best = tl.full([BLOCK_Q, BLOCK_R], float("-inf"), tl.float32)
    for first in range(0, means, BLOCK_F):
        there = (region < regions) & (first + mean < means)
        k_at = ((head % k_heads * regions + region) * means + first + mean) * dim
        products = tl.zeros([BLOCK_Q, BLOCK_R * BLOCK_F], tl.float32)
        for d in range(0, dim, BLOCK_D):
            ok = (d + cols < dim)[None, :]
            a = tl.load(q_ptr + q_at[:, None] + (d + cols)[None, :], mask=(q < queries)[:, None] & ok, other=0.0)
            b = tl.load(k_ptr + k_at[:, None] + (d + cols)[None, :], mask=there[:, None] & ok, other=0.0)
            products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)  # [Q, R * F]
        products = tl.where(there[None, :], products, float("-inf"))
        best = tl.maximum(best, tl.max(tl.reshape(products, [BLOCK_Q, BLOCK_R, BLOCK_F]), axis=2))  # [Q, R]
    own = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)  # [R]
    spots = out_ptr + ((head * queries + q) * regions)[:, None] + own[None, :]
    tl.store(spots, best, mask=(q < queries)[:, None] & (own < regions)[None, :])


@triton.jit
def _means(x_ptr, out_ptr, tokens, count, sub, dim, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Program (tile of means x tile of channels, head)."""
    tiles = tl.cdiv(dim, BLOCK_D)
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)  # [N]
    cols = tl.program_id(0) % tiles * BLOCK_D + tl.arange(0, BLOCK_D)  # [D]
    total = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for i in range(0, sub):
        token = row * sub + i
        ok = (token < tokens)[:, None] & (cols < dim)[None, :]
        spots = x_ptr + ((head * tokens + token) * dim)[:, None] + cols[None, :]
        total += tl.load(spots, mask=ok, other=0.0).to(tl.float32)
    held = tl.maximum(tl.minimum(tokens - row * sub, sub), 1).to(tl.float32)
    spots = out_ptr + ((head * count + row) * dim)[:, None] + cols[None, :]
    tl.store(spots, total / held[:, None], mask=(row < count)[:, None] & (cols < dim)[None, :])


def scores(queries: Tensor, fine: Tensor) -> Tensor:
    """See `region_scores`."""
    *heads, count, dim = queries.shape
    regions, means = fine.shape[-3:-1]
    out = torch.empty(*heads, count, regions, dtype=torch.float32, device=queries.device)
    if out.numel() == 0:
        return out
    if tuple(heads[len(heads) - fine.dim() + 3 :]) != fine.shape[:-3]:  # else the same for each of the other axes
        fine = fine.expand(*heads, *fine.shape[-3:])
    block_f = min(COLUMNS, triton.next_power_of_2(means))
    block_r = COLUMNS // block_f
    grid = triton.cdiv(count, BLOCK_Q) * triton.cdiv(regions, block_r), out.numel() // (count * regions)
    with torch.cuda.device_of(queries):
        _scores[grid](
            queries.contiguous(), fine.contiguous(), out, fine.shape[:-3].numel(), count, regions, means, dim,
            BLOCK_Q, block_r, block_f, BLOCK_D, "tf32x3" if queries.dtype == torch.float32 else "ieee",
            num_warps=8, num_stages=2,
        )  # fmt: skip
    return out


def means(x: Tensor, sub: int) -> Tensor:
    """See `sub_means`."""
    *heads, tokens, dim = x.shape
    count = triton.cdiv(tokens, sub)
    out = torch.empty(*heads, count, dim, dtype=torch.float32, device=x.device)
    if out.numel() == 0:
        return out
    block_d = min(128, triton.next_power_of_2(dim))
    grid = triton.cdiv(count, ROWS) * triton.cdiv(dim, block_d), out.numel() // (count * dim)
    with torch.cuda.device_of(x):
        _means[grid](x.contiguous(), out, tokens, count, sub, dim, ROWS, block_d)
    return out
