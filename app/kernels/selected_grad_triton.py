"""Gradients of attention over listed blocks: of the queries by group, of the keys and values by inverted lists.

It has run in Triton's interpreter and been compiled for Ampere and Hopper; it was never timed on a GPU.

A program of the second kind holds one tile of keys and walks the entries that name its block, so nothing is added up
in memory, and the same inputs give the same gradients bit for bit.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.kernels.selected_triton import (
    LN_2,
    LOG2_E,
    angles,
    dot_halves,
    forward,
    halves,
    keys_at,
    launch,
    rows_whole,
    tables,
    wide_rows,
)

if TYPE_CHECKING:
    from app.kernels.layout import BlockLists


@triton.jit
def _backward_queries(
    q_ptr, k_ptr, v_ptr, grad_ptr, dq_ptr, lse_ptr, delta_ptr, cos_ptr, sin_ptr,
    blocks_ptr, places_ptr, lengths_ptr, offsets_ptr, begins_ptr,
    q_batch, q_head, q_row, grad_batch, grad_head, grad_row, dq_batch, dq_head, dq_row,
    scale, positions, groups, listed, rows,
    HEADS: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr, TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, EVEN: tl.constexpr,
    ROWS_EVEN: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries; programs as in `_forward`."""
    row_tiles = tl.cdiv(HEADS * rows, BLOCK_M)
    number, kv_head = tl.program_id(0) // row_tiles, tl.program_id(1)
    batch, group = (number // groups).to(tl.int64), number % groups
    m = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    head, row = (kv_head * HEADS + m // rows).to(tl.int64), m % rows
    real = m < HEADS * rows
    cols, dims = tl.arange(0, BLOCK_H), tl.arange(0, 2 * BLOCK_H)
    token = (group * rows + row).to(tl.int64)
    at = batch * q_batch + head * q_head + token * q_row
    half_ok = real[:, None] & (cols < HALF)[None, :]
    q1, q2 = halves(q_ptr, at, cols, half_ok, HALF, ROWS_EVEN)
    grad_at = batch * grad_batch + head * grad_head + token * grad_row
    grad = wide_rows(grad_ptr, grad_at, dims, real, 2 * HALF, ROWS_EVEN)  # [M, D]
    queries = (batch * tl.num_programs(1) * HEADS + head) * (groups * rows) + token
    lse = tl.load(lse_ptr + queries, mask=real, other=0.0) * LOG2_E
    delta = tl.load(delta_ptr + queries, mask=real, other=0.0)
    seen = tl.load(begins_ptr + group) + row
    d1 = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    d2 = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    entries = (number.to(tl.int64) * tl.num_programs(1) + kv_head) * listed
    for tile in range(0, listed * TILES):
        entry = entries + tile // TILES
        inside = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
        block, offset = tl.load(blocks_ptr + entry), tl.load(offsets_ptr + entry)
        place, length = tl.load(places_ptr + entry), tl.load(lengths_ptr + entry)
        k1, k2 = keys_at(k_ptr, cos_ptr, sin_ptr, block, offset, inside, cols, positions, L, HALF, EVEN)
        v = wide_rows(v_ptr, (block * L + inside) * (2 * HALF), dims, inside < L, 2 * HALF, EVEN)
        ok = (inside < length)[None, :] & ((place + inside)[None, :] <= seen[:, None])
        logits = tl.where(ok, dot_halves(q1, q2, k1, k2) * scale, float("-inf"))  # [M, N]
        weights = tl.exp2(logits - lse[:, None])
        slope = weights * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
        slope = slope.to(k1.dtype)
        d1 = tl.dot(slope, k1, d1, input_precision="ieee")
        d2 = tl.dot(slope, k2, d2, input_precision="ieee")
    spots = dq_ptr + (batch * dq_batch + head * dq_head + token * dq_row)[:, None] + cols[None, :]
    unit = scale * LN_2
    tl.store(spots, (d1 * unit).to(q1.dtype), mask=half_ok)
    tl.store(spots + HALF, (d2 * unit).to(q1.dtype), mask=half_ok)


@triton.jit
def _backward_keys(
    q_ptr, k_ptr, v_ptr, grad_ptr, dk_ptr, dv_ptr, lse_ptr, delta_ptr, cos_ptr, sin_ptr,
    order_ptr, starts_ptr, places_ptr, lengths_ptr, offsets_ptr, begins_ptr,
    q_batch, q_head, q_row, grad_batch, grad_head, grad_row,
    scale, positions, groups, listed, rows, kv_heads,
    HEADS: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr, TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, EVEN: tl.constexpr,
    ROWS_EVEN: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values: a program walks the list entries that name its block.

    order: entries sorted by block; starts: [blocks + 1] where each block's begin.
    """
    block = (tl.program_id(0) // TILES).to(tl.int64)
    inside = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    cols, dims = tl.arange(0, BLOCK_H), tl.arange(0, 2 * BLOCK_H)
    half_ok = (inside < L)[:, None] & (cols < HALF)[None, :]
    at = (block * L + inside) * (2 * HALF)
    v = wide_rows(v_ptr, (block * L + inside) * (2 * HALF), dims, inside < L, 2 * HALF, EVEN)
    dk1 = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    dk2 = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    dv = tl.zeros([BLOCK_N, 2 * BLOCK_H], tl.float32)
    for number in range(tl.load(starts_ptr + block), tl.load(starts_ptr + block + 1)):
        entry = tl.load(order_ptr + number)
        kv_head = entry // listed % kv_heads
        batch, group = entry // (listed * kv_heads) // groups, entry // (listed * kv_heads) % groups
        place, length = tl.load(places_ptr + entry), tl.load(lengths_ptr + entry)
        begin = tl.load(begins_ptr + group)
        offset = tl.load(offsets_ptr + entry)
        k1, k2 = keys_at(k_ptr, cos_ptr, sin_ptr, block, offset, inside, cols, positions, L, HALF, EVEN)
        turned1 = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
        turned2 = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
        for first in range(0, HEADS * rows, BLOCK_M):
            m = first + tl.arange(0, BLOCK_M)  # [M]
            head, row = kv_head * HEADS + m // rows, m % rows
            real = m < HEADS * rows
            token = group * rows + row
            q1, q2 = halves(
                q_ptr, batch * q_batch + head * q_head + token * q_row, cols,
                real[:, None] & (cols < HALF)[None, :], HALF, ROWS_EVEN,
            )  # fmt: skip
            grad_at = batch * grad_batch + head * grad_head + token * grad_row
            grad = wide_rows(grad_ptr, grad_at, dims, real, 2 * HALF, ROWS_EVEN)  # [M, D]
            queries = (batch * kv_heads * HEADS + head) * (groups * rows) + token
            lse = tl.load(lse_ptr + queries, mask=real, other=0.0) * LOG2_E
            delta = tl.load(delta_ptr + queries, mask=real, other=0.0)
            ok = (inside < length)[:, None] & ((place + inside)[:, None] <= (begin + row)[None, :]) & real[None, :]
            logits = tl.where(ok, dot_halves(k1, k2, q1, q2) * scale, float("-inf"))  # [N, M]
            weights = tl.exp2(logits - lse[None, :])
            dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision="ieee")
            slope = weights * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
            slope = slope.to(q1.dtype)
            turned1 = tl.dot(slope, q1, turned1, input_precision="ieee")
            turned2 = tl.dot(slope, q2, turned2, input_precision="ieee")
        # Read again: kept, cosines and sines would not fit the registers.
        cos, sin = angles(cos_ptr, sin_ptr, offset + inside, positions, cols, half_ok, HALF, EVEN)
        dk1 += turned1 * cos + turned2 * sin  # the transposed rotation
        dk2 += turned2 * cos - turned1 * sin
    unit = scale * LN_2
    spots = at[:, None] + cols[None, :]
    tl.store(dk_ptr + spots, (dk1 * unit).to(v.dtype), mask=half_ok)
    tl.store(dk_ptr + spots + HALF, (dk2 * unit).to(v.dtype), mask=half_ok)
    tl.store(
        dv_ptr + at[:, None] + dims[None, :], dv.to(v.dtype), mask=(inside < L)[:, None] & (dims < 2 * HALF)[None, :]
    )


class SelectedAttention(torch.autograd.Function):
    """See `selected_attention`."""

    @staticmethod
    def forward(ctx, q, k, v, lists: "BlockLists", cos, sin, scale: float):
        q = rows_whole(q)
        k, v, cos, sin = (x.contiguous() for x in (k, v, cos, sin))
        out, lse = forward(q, k, v, lists, cos, sin, scale)
        ctx.save_for_backward(q, k, v, out, lse, cos, sin)
        ctx.lists, ctx.scale = lists, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        q, k, v, out, lse, cos, sin = ctx.saved_tensors
        lists: BlockLists = ctx.lists
        grad = rows_whole(grad)
        delta = (grad.float() * out.float()).sum(-1).contiguous()  # [B, Hq, G * rows]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        strides, scale = (*q.stride()[:3], *grad.stride()[:3]), ctx.scale * LOG2_E.value
        listed = tables(lists)
        with torch.cuda.device_of(q):
            grid, sizes = launch("queries", q, k, lists, cos)
            _backward_queries[grid](
                q, k, v, grad, dq, lse, delta, cos, sin, *listed, *strides, *dq.stride()[:3], scale, **sizes
            )
            _, sizes = launch("keys", q, k, lists, cos)
            _backward_keys[(len(k) * sizes["TILES"],)](
                q, k, v, grad, dk, dv, lse, delta, cos, sin, *_inverted(lists.blocks, len(k)), *listed[1:], *strides,
                scale, kv_heads=lists.blocks.shape[2], **sizes,
            )  # fmt: skip
        return dq, dk, dv, None, None, None, None


def _inverted(blocks: Tensor, held: int) -> tuple[Tensor, Tensor]:
    """Who lists each block: entries [N] int64 sorted by block, and [held + 1] where each block's begin."""
    named, order = blocks.flatten().sort(stable=True)
    return order, torch.searchsorted(named, torch.arange(held + 1, device=blocks.device))
