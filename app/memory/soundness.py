"""Whether the bytes of a memory block from elsewhere can be used: sizes of this shape, finite numbers only."""

import torch

from app.kernels.layout import packed_bytes
from app.kernels.quant import dequantize
from app.memory.index import RegionIndex
from app.memory.shape import MemoryShape, from_bytes


def check_block(shape: MemoryShape, tokens: int | None, index: bytes, kv: list[bytes]) -> None:
    """Check what `RegionMemory.export_group` made elsewhere; of other blocks, without K/V, the numbers alone.

    Args:
        tokens: of the group; None when it holds slots, whose number the block does not tell.

    Raises:
        ValueError: another size, or a key, value, mean or score that is no finite number.
    """
    data = b"".join(kv)
    if not data:
        header = 32 + 8 * int(from_bytes(index[24:32], torch.int64, (1,))) if shape.compaction else 0
        _finite(index[max(0, header) :], torch.float32, "scores")
        return
    whole, token = shape.packed_layer_bytes * shape.layers, shape.token_bytes
    expected = [whole] if tokens == shape.attention.group_tokens else [whole, len(data) // token * token]
    if tokens is not None and tokens < shape.attention.group_tokens:
        expected = [tokens * token]
    if len(data) not in expected:
        raise ValueError(f"{len(data)} bytes of keys and values, expected {expected[0]}")
    if len(data) == whole and shape.codec != "raw":
        size = packed_bytes(shape.codec, shape.attention.group_tokens, shape.head_dim)
        packed = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, size)
        values = dequantize(packed, shape.codec, shape.attention.group_tokens, shape.head_dim)
        if not values.isfinite().all():
            raise ValueError("keys and values that are no finite numbers")
    else:
        _finite(data, shape.dtype, "keys and values")
    if tokens is None or len(index) == _means_bytes(shape, tokens):  # else there are nodes of a tree among them
        _finite(index, shape.dtype, "means")


def _means_bytes(shape: MemoryShape, tokens: int) -> int:
    """Bytes of the means of a group, all layers."""
    index = RegionIndex(shape)
    return (
        sum(-(-tokens // sub) for sub in index.subs.values())
        * shape.layers
        * shape.kv_heads
        * index.width
        * (shape.dtype.itemsize)
    )


def _finite(data: bytes, dtype: torch.dtype, what: str) -> None:
    if not data:
        return
    if len(data) % dtype.itemsize:
        raise ValueError(f"{what} of {len(data)} bytes")
    if not from_bytes(data, dtype, (len(data) // dtype.itemsize,)).isfinite().all():
        raise ValueError(f"{what} that are no finite numbers")
