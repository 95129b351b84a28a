"""Triton kernels of `decode_attention`: regions are split over programs, whose results are merged by log-sum-exp.

It has run in Triton's interpreter and been compiled for Ampere and Hopper; it was never timed on a GPU.

The first kernel reads every key and value once, dequantizes and rotates them in registers, and leaves the logits behind
(4 bytes per query head and token, where a key and a value take 512 bytes in bfloat16). From those the second one makes
the mass, once it knows the log-sum-exp. The query heads of a KV head are the rows of one product, so a key is read once
for all of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.layout import GROUP, Pages, Places

PROGRAMS = 256  # about two for each processor of a large GPU
LEAST = 16  # rows and columns of a product
CODECS = {"raw": 0, "int8": 1, "int4": 2}


def decode(
    q: Tensor, pages: Pages, places: Places, rope: tuple[Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, mass) of `decode_attention`."""
    (kv_heads, heads, dim), (regions, length) = q.shape, (pages.keys.shape[1], pages.region_tokens)
    per = max(1, -(-regions * kv_heads // PROGRAMS))
    splits = -(-regions // per)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(kv_heads, heads, dtype=torch.float32)
    mass = q.new_empty(kv_heads, regions, length, dtype=torch.float32)
    parts = q.new_empty(kv_heads, splits, heads, dim, dtype=torch.float32)
    sums = q.new_empty(kv_heads, splits, heads, dtype=torch.float32)
    logits = q.new_empty(kv_heads, heads, regions, length, dtype=torch.float32)
    data, halves = pages.data, pages.data
    if pages.codec != "raw":
        halves = data.view(-1)[: data.numel() // 2 * 2].view(torch.float16)
        data = data.view(torch.int8) if pages.codec == "int8" else data
    firsts = pages.keys if pages.firsts is None else pages.firsts  # not read of raw ones
    lists = (pages.keys, pages.values, firsts, places.lengths, places.starts, places.query)
    block_m = max(LEAST, triton.next_power_of_2(heads))
    _regions_kernel[(kv_heads, splits)](
        q.contiguous(),
        data,
        halves,
        *(x.contiguous() for x in lists),
        *(x.contiguous() for x in rope),
        parts,
        sums,
        logits,
        regions,
        per,
        scale,
        HEADS=heads,
        DIM=dim,
        PAGE=pages.page_tokens,
        REGION=length,
        CODEC=CODECS[pages.codec],
        GROUP=GROUP,
        BLOCK_M=block_m,
        BLOCK_H=max(LEAST, triton.next_power_of_2(dim // 2)),
        BLOCK_D=max(LEAST, triton.next_power_of_2(dim)),
        BLOCK_L=max(LEAST, min(64, triton.next_power_of_2(length))),
        num_warps=4,
    )
    _merge_kernel[(kv_heads, max(regions, heads))](
        parts,
        sums,
        logits,
        out,
        lse,
        mass,
        regions,
        splits,
        HEADS=heads,
        DIM=dim,
        REGION=length,
        BLOCK_M=triton.next_power_of_2(heads),
        BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_L=triton.next_power_of_2(length),
        BLOCK_S=triton.next_power_of_2(splits),
        num_warps=2,
    )
    return out, lse, mass


@triton.jit
def _rows(
    data, halves, at, token, channel, mask, DIM: tl.constexpr, PAGE: tl.constexpr, CODEC: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Keys or values [L, C] float32 of a page that begins at `at`, packed or raw; tokens [L, 1], channels [1, C]."""
    if CODEC == 0:
        return tl.load(data + at + token * DIM + channel, mask=mask, other=0.0).to(tl.float32)
    if CODEC == 1:
        codes = tl.load(data + at + channel * PAGE + token, mask=mask, other=0).to(tl.float32)
        return codes * tl.load(halves + (at + DIM * PAGE) // 2 + channel, mask=mask, other=0.0).to(tl.float32)
    GROUPS: tl.constexpr = (PAGE + GROUP - 1) // GROUP
    pair = tl.load(data + at + channel * (GROUPS * GROUP // 2) + token // 2, mask=mask, other=0)
    codes = ((pair.to(tl.int32) >> (token % 2 * 4).to(tl.int32)) & 15).to(tl.float32)
    scales = (at + DIM * GROUPS * GROUP // 2) // 2 + channel * GROUPS + token // GROUP
    scale = tl.load(halves + scales, mask=mask, other=0.0).to(tl.float32)
    return codes * scale + tl.load(halves + scales + DIM * GROUPS, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _regions_kernel(
    q, data, halves, key_at, value_at, first_at, length_at, start_at, query_at, cos, sin, parts, sums, logits,
    regions, per, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, REGION: tl.constexpr, CODEC: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Regions [split * per, (split + 1) * per) of one KV head: their logits, softmax sum and weighted values."""
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    HALF: tl.constexpr = DIM // 2
    TILES: tl.constexpr = (REGION + BLOCK_L - 1) // BLOCK_L
    dtype = q.dtype.element_ty
    m, h, d, t = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_L)
    rows = head * HEADS + m
    in_q = (m < HEADS)[:, None] & (h < HALF)[None]
    q1 = tl.load(q + rows[:, None] * DIM + h[None], mask=in_q, other=0.0).to(tl.float32)  # [M, H]
    q2 = tl.load(q + rows[:, None] * DIM + HALF + h[None], mask=in_q, other=0.0).to(tl.float32)
    place = tl.load(query_at + head) * DIM + h
    q_cos = tl.load(cos + place, mask=h < HALF, other=0.0).to(tl.float32)[None]
    q_sin = tl.load(sin + place, mask=h < HALF, other=0.0).to(tl.float32)[None]
    a1, a2 = (q1 * q_cos - q2 * q_sin).to(dtype), (q2 * q_cos + q1 * q_sin).to(dtype)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = tl.minimum((split + 1) * per, regions)
    for i in range(split * per * TILES, last * TILES):
        r = i // TILES
        at = head * regions + r
        token = (i % TILES) * BLOCK_L + t  # in the region
        seen = token < tl.load(length_at + at)
        inside = token[:, None]  # in the page
        if CODEC != 0:
            inside += tl.load(first_at + at)
        in_k = seen[:, None] & (h < HALF)[None]
        key = tl.load(key_at + at)
        k1 = _rows(data, halves, key, inside, h[None], in_k, DIM, PAGE, CODEC, GROUP)  # [L, H]
        k2 = _rows(data, halves, key, inside, HALF + h[None], in_k, DIM, PAGE, CODEC, GROUP)
        start = tl.load(start_at + at)
        turned = start >= 0
        position = tl.where(turned, start + token, 0)[:, None] * DIM + h[None]
        c = tl.where(turned, tl.load(cos + position, mask=in_k, other=0.0).to(tl.float32), 1.0)
        s = tl.where(turned, tl.load(sin + position, mask=in_k, other=0.0).to(tl.float32), 0.0)
        b1, b2 = (k1 * c - k2 * s).to(dtype), (k2 * c + k1 * s).to(dtype)
        x = tl.dot(a1, tl.trans(b1), input_precision="ieee")
        x = tl.dot(a2, tl.trans(b2), x, input_precision="ieee") * scale
        x = tl.where(seen[None], x, float("-inf"))  # [M, L]
        out = ((rows[:, None] * regions + r) * REGION) + token[None]
        tl.store(logits + out, x, mask=(m < HEADS)[:, None] & (token < REGION)[None])
        new = tl.maximum(top, tl.max(x, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        p, fade = tl.exp(x - base[:, None]), tl.exp(top - base)
        in_v = seen[:, None] & (d < DIM)[None]
        v = _rows(data, halves, tl.load(value_at + at), inside, d[None], in_v, DIM, PAGE, CODEC, GROUP)
        acc = acc * fade[:, None] + tl.dot(p.to(dtype), v.to(dtype), input_precision="ieee")  # [M, D]
        total, top = total * fade + tl.sum(p, 1), new
    some = total > 0
    rows = (head * tl.num_programs(1) + split) * HEADS + m
    tl.store(sums + rows, tl.where(some, top + tl.log(tl.where(some, total, 1.0)), float("-inf")), mask=m < HEADS)
    acc = acc / tl.where(some, total, 1.0)[:, None]
    tl.store(parts + rows[:, None] * DIM + d[None], acc, mask=(m < HEADS)[:, None] & (d < DIM)[None])


@triton.jit
def _merge_kernel(
    parts, sums, logits, out, lse, mass, regions, splits,
    HEADS: tl.constexpr, DIM: tl.constexpr, REGION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Program n of a KV head: the output of its query head n, and the mass of its region n."""
    head, n = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    m, d, t, s = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_S)
    x = tl.load(
        sums + (head * splits + s)[None] * HEADS + m[:, None],
        mask=(s < splits)[None] & (m < HEADS)[:, None],
        other=float("-inf"),
    )  # [M, S]
    top = tl.max(x, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp(x - top[:, None]), 1)
    whole = top + tl.log(tl.where(total > 0, total, 1.0))  # [M]
    if n < HEADS:
        tl.store(lse + head * HEADS + m, whole, mask=m == n)
        own = tl.sum(tl.where(m == n, whole, 0.0))
        rows = (head * splits + s) * HEADS + n
        share = tl.exp(tl.load(sums + rows, mask=s < splits, other=float("-inf")) - own)  # [S]
        inside = (s < splits)[:, None] & (d < DIM)[None]
        part = tl.load(parts + rows[:, None] * DIM + d[None], mask=inside, other=0.0)
        result = tl.sum(part * share[:, None], 0)
        tl.store(out + (head * HEADS + n) * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)
    if n < regions:
        at = ((head * HEADS + m)[:, None] * regions + n) * REGION + t[None]
        there = (m < HEADS)[:, None] & (t < REGION)[None]
        logit = tl.load(logits + at, mask=there, other=float("-inf"))  # [M, L]
        weight = tl.exp(logit - tl.where(m < HEADS, whole, 0.0)[:, None])
        tl.store(mass + (head * regions + n) * REGION + t, tl.sum(weight, 0), mask=t < REGION)
