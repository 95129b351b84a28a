"""What the tensors of a memory look like, and their bytes."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from app.runtime.config import AttentionConfig

MAX_ROW_BYTES = 1 << 20  # of one stored row


@dataclass(frozen=True)
class MemoryShape:
    """What the tensors of a memory look like; equal for all memories of one engine."""

    layers: int
    kv_heads: int
    head_dim: int
    attention: AttentionConfig
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values per token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def bundle_layers(self) -> int:
        """Layers whose K and V of one group share a stored row of at most 1 MiB."""
        layer = self.token_bytes // self.layers * self.attention.group_tokens
        return max(1, min(self.layers, MAX_ROW_BYTES // layer))


def to_bytes(tensor: Tensor) -> bytes:
    """The tensor's elements in order, in its own dtype."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor that `to_bytes` took apart.

    Raises:
        ValueError: `data` has another size than `shape` asks for.
    """
    if len(data) != prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes, expected {prod(shape) * dtype.itemsize}")
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
