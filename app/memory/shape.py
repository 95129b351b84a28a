"""What the tensors of a memory look like, and their bytes."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from app.kernels.layout import packed_bytes
from app.kernels.quant import dequantize, quantize
from app.memory.compaction import Compaction
from app.memory.config import AttentionConfig
from app.memory.pools import Tiers

MAX_ROW_BYTES = 1 << 20  # of one stored row


@dataclass(frozen=True)
class MemoryShape:
    """What the tensors of a memory look like; equal for all memories of one engine.

    Attributes:
        compaction: how a memory stays small; None keeps every token.
        recipe: of the engine; a memory made by another recipe cannot be used, whatever it looks like.
        codec: how whole groups are stored: `raw`, `int8` or `int4`.
        tiers: the slots that hold keys and values.
    """

    layers: int
    kv_heads: int
    head_dim: int
    attention: AttentionConfig
    dtype: torch.dtype
    device: torch.device
    compaction: Compaction | None = None
    recipe: str = ""
    codec: str = "raw"
    tiers: Tiers = field(default_factory=Tiers, compare=False, repr=False)

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values per token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def bundle_layers(self) -> int:
        """Layers whose K and V of one group share a stored row of at most 1 MiB."""
        layer = self.token_bytes // self.layers * self.attention.group_tokens
        return max(1, min(self.layers, MAX_ROW_BYTES // layer))

    @property
    def bundles(self) -> list[range]:
        """The layers of each bundle."""
        size = self.bundle_layers
        return [range(i, min(i + size, self.layers)) for i in range(0, self.layers, size)]

    @property
    def packed_layer_bytes(self) -> int:
        """Bytes of one layer of a whole group, as it is stored."""
        group, dim = self.attention.group_tokens, self.head_dim
        if self.codec == "raw":
            return self.token_bytes // self.layers * group
        head = 2 * packed_bytes(self.codec, group, dim)
        return self.kv_heads * head


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


LAYOUTS = {"raw": "raw", "int8": "int8 by channel", "int4": "int4 by channel"}  # named in recipes, by codec


def pack(shape: MemoryShape, kv: Tensor) -> Tensor:
    """[n, 2, Hkv, T, D] -> [n, packed_layer_bytes] uint8."""
    if shape.codec == "raw":
        return kv.contiguous().view(len(kv), -1).view(torch.uint8)
    return quantize(kv.flatten(0, 2), shape.codec).view(len(kv), -1)


def unpack(shape: MemoryShape, data: Tensor) -> Tensor:
    """[n, packed_layer_bytes] uint8 -> [n, 2, Hkv, T, D]."""
    s, size = shape, shape.attention.group_tokens
    if s.codec == "raw":
        return data.contiguous().view(s.dtype).view(len(data), 2, s.kv_heads, size, s.head_dim)
    whole = dequantize(data.reshape(len(data) * 2 * s.kv_heads, -1), s.codec, size, s.head_dim)
    return whole.unflatten(0, (len(data), 2, s.kv_heads)).to(s.dtype)
