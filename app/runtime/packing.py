"""Packing: groups of tokens as the shape's codec stores them."""

import torch
from torch import Tensor

from app.kernels.quant import dequantize, packed_bytes, quantize
from app.runtime.shape import MemoryShape


def pack(shape: MemoryShape, kv: Tensor) -> Tensor:
    """[n, 2, Hkv, T, D] -> [n, packed_layer_bytes] uint8."""
    if shape.codec == "raw":
        return kv.contiguous().view(len(kv), -1).view(torch.uint8)
    k, v = (kv[:, i].flatten(0, 1) for i in range(2))
    packed = quantize(k, shape.codec, "channel"), quantize(v, shape.codec, "token")
    return torch.cat([x.view(len(kv), -1) for x in packed], dim=1)


def unpack(shape: MemoryShape, data: Tensor) -> Tensor:
    """[n, packed_layer_bytes] uint8 -> [n, 2, Hkv, T, D]."""
    s, size = shape, shape.attention.group_tokens
    if s.codec == "raw":
        return data.contiguous().view(s.dtype).view(len(data), 2, s.kv_heads, size, s.head_dim)
    keys = s.kv_heads * packed_bytes(s.codec, "channel", size, s.head_dim)
    parts = ((data[:, :keys], "channel"), (data[:, keys:], "token"))
    pair = [dequantize(x.reshape(len(data) * s.kv_heads, -1), s.codec, axis, size, s.head_dim) for x, axis in parts]
    return torch.stack([x.unflatten(0, (len(data), s.kv_heads)) for x in pair], dim=1).to(s.dtype)
