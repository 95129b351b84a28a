"""Triton kernels of app/kernels/selected.py: attention and mass; what their gradients need stands beside it.

It has run in Triton's interpreter and been compiled for Ampere and Hopper; it was never timed on a GPU.

A program holds queries of one group and one KV head, its query heads side by side, and walks the group's list. Softmax
runs in base 2; sums are float32.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from app.kernels.layout import BlockLists


LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class Tiles:
    """Block sizes of one launch: query rows and keys held at once, both powers of two from 16 on."""

    rows: int
    keys: int
    warps: int
    stages: int = 2


# What fits the registers with heads of 128: from Hopper on, and before.
TILES = {
    "forward": (Tiles(128, 64, 8), Tiles(128, 32, 8)),
    "queries": (Tiles(128, 64, 8), Tiles(64, 32, 4)),
    "keys": (Tiles(64, 64, 8), Tiles(32, 32, 4)),
    "mass": (Tiles(32, 64, 4), Tiles(32, 64, 4)),
}


@triton.jit
def halves(ptr, at, cols, ok, HALF: tl.constexpr, EVEN: tl.constexpr):
    """Rows [N, D] as their two halves [N, H]; at: [N] where each begins."""
    spots = ptr + at[:, None] + cols[None, :]  # [N, H]
    if EVEN:
        first = tl.load(spots)
        second = tl.load(spots + HALF)
    else:
        first = tl.load(spots, mask=ok, other=0.0)
        second = tl.load(spots + HALF, mask=ok, other=0.0)
    return first, second


@triton.jit
def angles(cos_ptr, sin_ptr, at, positions, cols, ok, HALF: tl.constexpr, EVEN: tl.constexpr):
    """Cosines and sines [N, H] of the positions `at` [N], float32."""
    spots = tl.minimum(at, positions - 1)[:, None] * (2 * HALF) + cols[None, :]
    if EVEN:
        cos = tl.load(cos_ptr + spots)
        sin = tl.load(sin_ptr + spots)
    else:
        cos = tl.load(cos_ptr + spots, mask=ok, other=0.0)
        sin = tl.load(sin_ptr + spots, mask=ok, other=0.0)
    return cos.to(tl.float32), sin.to(tl.float32)


@triton.jit
def turned(first, second, cos, sin):
    """The two halves rotated, in their dtype."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cos - b * sin).to(first.dtype), (b * cos + a * sin).to(first.dtype)


@triton.jit
def dot_halves(a1, a2, b1, b2):
    """[M, H] x [N, H] twice -> [M, N] float32."""
    product = tl.dot(a1, tl.trans(b1), input_precision="ieee")
    return tl.dot(a2, tl.trans(b2), product, input_precision="ieee")


@triton.jit
def keys_at(
    k_ptr, cos_ptr, sin_ptr, block, offset, inside, cols, positions, L: tl.constexpr, HALF: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Tokens `inside` [N] of a block, rotated to positions from `offset` on: two halves [N, H]."""
    ok = (inside < L)[:, None] & (cols < HALF)[None, :]
    first, second = halves(k_ptr, (block * L + inside) * (2 * HALF), cols, ok, HALF, EVEN)
    cos, sin = angles(cos_ptr, sin_ptr, offset + inside, positions, cols, ok, HALF, EVEN)
    return turned(first, second, cos, sin)


@triton.jit
def wide_rows(ptr, at, dims, real, DIM: tl.constexpr, EVEN: tl.constexpr):
    """Rows [N, D] in one piece; at: [N] where each begins, real: [N] which there are."""
    spots = ptr + at[:, None] + dims[None, :]
    if EVEN:
        rows = tl.load(spots)
    else:
        rows = tl.load(spots, mask=real[:, None] & (dims < DIM)[None, :], other=0.0)
    return rows


@triton.jit
def _forward_tile(
    q1, q2, best, total, acc, seen,
    k_ptr, v_ptr, cos_ptr, sin_ptr, block, place, length, offset, inside, cols, dims, scale, positions,
    L: tl.constexpr, HALF: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys under the running softmax of rows [M]."""
    k1, k2 = keys_at(k_ptr, cos_ptr, sin_ptr, block, offset, inside, cols, positions, L, HALF, EVEN)
    logits = dot_halves(q1, q2, k1, k2) * scale  # [M, N]
    if MASKED:
        ok = (inside < length)[None, :] & ((place + inside)[None, :] <= seen[:, None])
        logits = tl.where(ok, logits, float("-inf"))
    new = tl.maximum(best, tl.max(logits, axis=1))  # [M]
    base = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
    weights = tl.exp2(logits - base[:, None])
    fade = tl.exp2(best - base)
    v = wide_rows(v_ptr, (block * L + inside) * (2 * HALF), dims, inside < L, 2 * HALF, EVEN)  # [N, D]
    acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    return new, total * fade + tl.sum(weights, axis=1), acc


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cos_ptr, sin_ptr,
    blocks_ptr, places_ptr, lengths_ptr, offsets_ptr, begins_ptr,
    q_batch, q_head, q_row, out_batch, out_head, out_row,
    scale, positions, groups, listed, past, rows,
    HEADS: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr, TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, EVEN: tl.constexpr,
    ROWS_EVEN: tl.constexpr,
):  # fmt: skip
    """Program (row tile of a group, KV head). scale: with log2(e) in it."""
    row_tiles = tl.cdiv(HEADS * rows, BLOCK_M)
    number, kv_head = tl.program_id(0) // row_tiles, tl.program_id(1)  # of the group among those of all texts
    batch, group = (number // groups).to(tl.int64), number % groups
    m = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    head, row = (kv_head * HEADS + m // rows).to(tl.int64), m % rows
    real = m < HEADS * rows
    cols, dims = tl.arange(0, BLOCK_H), tl.arange(0, 2 * BLOCK_H)
    token = (group * rows + row).to(tl.int64)
    at = batch * q_batch + head * q_head + token * q_row
    q1, q2 = halves(q_ptr, at, cols, real[:, None] & (cols < HALF)[None, :], HALF, ROWS_EVEN)
    seen = tl.load(begins_ptr + group) + row
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, 2 * BLOCK_H], tl.float32)
    entries = (number.to(tl.int64) * tl.num_programs(1) + kv_head) * listed
    for tile in range(0, past * TILES):
        entry = entries + tile // TILES
        inside = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
        block, offset = tl.load(blocks_ptr + entry), tl.load(offsets_ptr + entry)
        best, total, acc = _forward_tile(
            q1, q2, best, total, acc, seen, k_ptr, v_ptr, cos_ptr, sin_ptr, block, 0, L, offset, inside, cols, dims,
            scale, positions, L, HALF, EVEN, L % BLOCK_N != 0,
        )  # fmt: skip
    for tile in range(past * TILES, listed * TILES):
        entry = entries + tile // TILES
        inside = tile % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
        block, offset = tl.load(blocks_ptr + entry), tl.load(offsets_ptr + entry)
        place, length = tl.load(places_ptr + entry), tl.load(lengths_ptr + entry)
        best, total, acc = _forward_tile(
            q1, q2, best, total, acc, seen, k_ptr, v_ptr, cos_ptr, sin_ptr, block, place, length, offset, inside, cols,
            dims, scale, positions, L, HALF, EVEN, True,
        )  # fmt: skip
    at = batch * out_batch + head * out_head + token * out_row
    spots = out_ptr + at[:, None] + dims[None, :]
    tl.store(
        spots, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=real[:, None] & (dims < 2 * HALF)[None, :]
    )
    queries = (batch * tl.num_programs(1) * HEADS + head) * (groups * rows) + token
    tl.store(lse_ptr + queries, (best + tl.log2(total)) * LN_2, mask=real)


@triton.jit
def _mass(
    q_ptr, k_ptr, mass_ptr, lse_ptr, cos_ptr, sin_ptr,
    blocks_ptr, places_ptr, lengths_ptr, offsets_ptr, begins_ptr,
    q_batch, q_head, q_row,
    scale, positions, groups, listed, rows, last,
    HEADS: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr, TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, EVEN: tl.constexpr,
    ROWS_EVEN: tl.constexpr,
):  # fmt: skip
    """Program (tile of a listed block, KV head): all its column sums over the last rows of the group."""
    entry = (tl.program_id(0) // TILES).to(tl.int64)  # among [B, G, K]
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    number, rank = entry // listed, entry % listed
    batch, group = number // groups, number % groups
    entry = (number * kv_heads + kv_head) * listed + rank
    inside = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    cols = tl.arange(0, BLOCK_H)
    block, offset = tl.load(blocks_ptr + entry), tl.load(offsets_ptr + entry)
    place, length = tl.load(places_ptr + entry), tl.load(lengths_ptr + entry)
    begin = tl.load(begins_ptr + group)
    k1, k2 = keys_at(k_ptr, cos_ptr, sin_ptr, block, offset, inside, cols, positions, L, HALF, EVEN)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, HEADS * last, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)  # [M]
        head, row = (kv_head * HEADS + m // last).to(tl.int64), rows - last + m % last
        real = m < HEADS * last
        token = group * rows + row
        q1, q2 = halves(
            q_ptr, batch * q_batch + head * q_head + token * q_row, cols, real[:, None] & (cols < HALF)[None, :], HALF,
            False,
        )  # fmt: skip
        queries = (batch * kv_heads * HEADS + head) * (groups * rows) + token
        lse = tl.load(lse_ptr + queries, mask=real, other=0.0) * LOG2_E
        ok = (inside < length)[None, :] & ((place + inside)[None, :] <= (begin + row)[:, None]) & real[:, None]
        weights = tl.exp2(dot_halves(q1, q2, k1, k2) * scale - lse[:, None])  # [M, N]
        sums += tl.sum(tl.where(ok, weights, 0.0), axis=0)
    tl.store(mass_ptr + entry * L + inside, sums, mask=inside < L)


def forward(
    q: Tensor, k: Tensor, v: Tensor, lists: "BlockLists", cos: Tensor, sin: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """See `selected_attention`. Each row of q and all others in one piece."""
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    grid, sizes = launch("forward", q, k, lists, cos)
    with torch.cuda.device_of(q):
        _forward[grid](
            q, k, v, out, lse, cos, sin, *tables(lists), *q.stride()[:3], *out.stride()[:3], scale * LOG2_E.value,
            past=lists.past, **sizes,
        )  # fmt: skip
    return out, lse


def mass(
    q: Tensor, k: Tensor, lists: "BlockLists", cos: Tensor, sin: Tensor, lse: Tensor, scale: float, last: int
) -> Tensor:
    """See `selected_mass`."""
    q = rows_whole(q)
    k, cos, sin, lse = (x.contiguous() for x in (k, cos, sin, lse))
    _, sizes = launch("mass", q, k, lists, cos)
    batch, groups, kv_heads, listed = lists.blocks.shape
    sums = torch.empty(*lists.blocks.shape, k.shape[1], dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _mass[(batch * groups * listed * sizes["TILES"], kv_heads)](
            q, k, sums, lse, cos, sin, *tables(lists), *q.stride()[:3], scale * LOG2_E.value, last=last, **sizes
        )
    return sums


def launch(
    kernel: str, q: Tensor, k: Tensor, lists: "BlockLists", cos: Tensor
) -> tuple[tuple[int, int], dict[str, int | bool]]:
    """(grid by row tiles and KV heads, what every kernel is told by name)."""
    hopper = q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) >= (9, 0)
    tiles = TILES[kernel][0 if hopper else 1]
    batch, groups, kv_heads, listed = lists.blocks.shape
    heads, rows, length, half = q.shape[1] // kv_heads, q.shape[2] // groups, k.shape[1], k.shape[2] // 2
    small = q.dtype == torch.float32
    block_m = max(16, tiles.rows // 2) if small else tiles.rows
    block_n = min(max(16, tiles.keys // 2) if small else tiles.keys, max(16, triton.next_power_of_2(length)))
    block_h = max(16, triton.next_power_of_2(half))
    sizes = {
        "positions": len(cos), "groups": groups, "listed": listed, "rows": rows,
        "HEADS": heads, "L": length, "HALF": half, "TILES": triton.cdiv(length, block_n),
        "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_H": block_h,
        "EVEN": length % block_n == 0 and block_h == half,
        "ROWS_EVEN": heads * rows % block_m == 0 and block_h == half,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    return (batch * groups * triton.cdiv(heads * rows, block_m), kv_heads), sizes


def tables(lists: "BlockLists") -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in (lists.blocks, lists.places, lists.lengths, lists.offsets, lists.begins))


def rows_whole(x: Tensor) -> Tensor:
    """Each row in one piece, whatever the order of the other axes."""
    return x if x.stride(-1) == 1 else x.contiguous()
