"""Rotary embedding at given positions. Keys are stored un-rotated and turned only after selection."""

import torch
from torch import Tensor


def rope_table(inv_freq: Tensor, positions: int, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to `positions` - 1.

    Args:
        inv_freq: [D/2], float.
        scaling: the model's attention scaling (yarn, longrope), folded in.

    Returns:
        (cos, sin), each [positions, D] of `dtype`; angles are taken in float64, since float32 is off by 0.03 near
        position one million.
    """
    angles = torch.arange(positions, dtype=torch.float64, device=inv_freq.device)[:, None] * inv_freq.double()
    angles = torch.cat([angles, angles], dim=-1)  # [positions, D]
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head, as the Llama family does.

    Args:
        x: [..., T, D].
        cos, sin: broadcastable to x.
    """
    half = x.shape[-1] // 2
    turned = x * cos  # as wide as both; the halves change places without a copy of them
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
