"""Packing: groups of tokens as the shape's codec stores them."""

import torch
from torch import Tensor

from app.kernels.quant import dequantize, quantize
from app.memory.shape import MemoryShape

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
