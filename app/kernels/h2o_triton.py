"""Triton kernels of `attention_mass` and `causal_mass`: q k^T twice, never kept, and no atomics.

It has run in Triton's interpreter and been compiled for Ampere and Hopper; it was never timed on a GPU.

The first kernel finds each row's log-sum-exp, unless the attention itself has told it; the second adds up columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_Q, BLOCK_S = 64, 64
LEAST = 16  # rows, columns and channels of a product


def column_sums(
    queries: Tensor,
    keys: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    ends: Tensor | None = None,
    weights: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """[..., S] float32: sum over rows of weight x exp(scale q k - lse), where a row sees the key.

    Args:
        queries: [..., Q, D]. keys: [..., S, D].
        mask: broadcastable to [..., Q, S]. ends: [Q]: a row sees the first keys. Neither: it sees all.
        weights: [Q] float32. lse: [..., Q] float32.
    """
    batch, rows, size, dim = queries.shape[:-2], queries.shape[-2], keys.shape[-2], queries.shape[-1]
    q, k = queries.reshape(-1, rows, dim), keys.expand(*batch, size, dim).reshape(-1, size, dim)
    out = torch.empty(len(q), size, dtype=torch.float32, device=q.device)
    seen, seen_strides = q, (0, 0, 0)  # a pointer that is not read
    if mask is not None:
        seen = _merged(mask, (*batch, rows, size))
        seen_strides = seen.stride()
    shape = {
        "DIM": dim,
        "BLOCK_Q": max(LEAST, min(BLOCK_Q, triton.next_power_of_2(rows))),
        "BLOCK_S": BLOCK_S,
        "BLOCK_D": max(LEAST, triton.next_power_of_2(dim)),
        "MASK": 2 if mask is not None else int(ends is not None),
        "num_warps": 4,
    }
    inputs = (q, k, seen, out if ends is None else ends.contiguous())
    strides = (*q.stride(), *k.stride(), *seen_strides)
    if lse is None:
        lse = torch.empty(len(q), rows, dtype=torch.float32, device=q.device)
        _rows_kernel[(len(q), triton.cdiv(rows, shape["BLOCK_Q"]))](*inputs, lse, *strides, rows, size, scale, **shape)
    lse = lse.reshape(-1, rows).contiguous()
    counted = out if weights is None else weights.contiguous()
    _columns_kernel[(len(q), triton.cdiv(size, BLOCK_S))](
        *inputs, lse, counted, out, *strides, rows, size, scale, WEIGHTS=weights is not None, **shape
    )
    return out.view(*batch, size)


def _merged(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask as bytes [B, Q, S], not copied for a batch that shares it."""
    count = torch.Size(shape[:-2]).numel()
    mask = mask.expand(torch.broadcast_shapes(mask.shape, (1,) * (len(shape) - 2) + shape[-2:]))
    if mask.shape[:-2].numel() == 1:
        mask = mask.reshape(1, *shape[-2:]).expand(count, -1, -1)
    else:
        mask = mask.expand(shape).reshape(count, *shape[-2:])
    return mask.view(torch.uint8)


@triton.jit
def _logits(
    q, k, seen, ends, b, i, j, q_item, q_row, q_channel, k_item, k_row, k_channel, m_item, m_row, m_column,
    rows, size, scale, DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Logits of rows i [Q] and columns j [S], -inf where the row does not see the key or there is no such pair."""
    d = tl.arange(0, BLOCK_D)
    at = q + b * q_item + i[:, None] * q_row + d[None] * q_channel
    x = tl.load(at, mask=(i < rows)[:, None] & (d < DIM)[None], other=0.0)  # [Q, D]
    at = k + b * k_item + j[:, None] * k_row + d[None] * k_channel
    y = tl.load(at, mask=(j < size)[:, None] & (d < DIM)[None], other=0.0)  # [S, D]
    s = tl.dot(x, tl.trans(y), input_precision="ieee") * scale
    sees = (i < rows)[:, None] & (j < size)[None]
    if MASK == 1:
        end = tl.load(ends + i, mask=i < rows, other=0)
        sees = sees & (j[None] < end[:, None])
    if MASK == 2:
        at = seen + b * m_item + i[:, None] * m_row + j[None] * m_column
        sees = sees & (tl.load(at, mask=sees, other=0) != 0)
    return tl.where(sees, s, float("-inf"))


@triton.jit
def _rows_kernel(
    q, k, seen, ends, lse, q_item, q_row, q_channel, k_item, k_row, k_channel, m_item, m_row, m_column,
    rows, size, scale,
    DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    b, i = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    last = size
    if MASK == 1:
        last = tl.max(tl.load(ends + i, mask=i < rows, other=0))
    for first in range(0, last, BLOCK_S):
        s = _logits(
            q, k, seen, ends, b, i, first + tl.arange(0, BLOCK_S).to(tl.int64), q_item, q_row, q_channel,
            k_item, k_row, k_channel, m_item, m_row, m_column, rows, size, scale, DIM, BLOCK_D, MASK,
        )  # fmt: skip
        new = tl.maximum(top, tl.max(s, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(s - base[:, None]), 1)
        top = new
    tl.store(lse + b * rows + i, top + tl.log(tl.where(total > 0, total, 1.0)), mask=i < rows)


@triton.jit
def _columns_kernel(
    q, k, seen, ends, lse, weights, out, q_item, q_row, q_channel, k_item, k_row, k_channel, m_item, m_row, m_column,
    rows, size, scale, WEIGHTS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    b, j = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    total = tl.zeros([BLOCK_S], tl.float32)
    for first in range(0, rows, BLOCK_Q):
        i = first + tl.arange(0, BLOCK_Q).to(tl.int64)
        s = _logits(
            q, k, seen, ends, b, i, j, q_item, q_row, q_channel, k_item, k_row, k_channel, m_item, m_row, m_column,
            rows, size, scale, DIM, BLOCK_D, MASK,
        )  # fmt: skip
        x = tl.exp(s - tl.load(lse + b * rows + i, mask=i < rows, other=0.0)[:, None])
        if WEIGHTS:
            x = x * tl.load(weights + i, mask=i < rows, other=0.0)[:, None]
        total += tl.sum(x, 0)
    tl.store(out + b * size + j, total, mask=j < size)
