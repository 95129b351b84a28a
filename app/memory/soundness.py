"""Whether the bytes of a memory block from elsewhere can be used: sizes of this shape, finite numbers only."""

from collections.abc import Iterator

import torch

from app.kernels.layout import packed_bytes
from app.kernels.quant import dequantize
from app.kernels.tree import CLUSTER, sealed_nodes
from app.memory.index import RegionIndex
from app.memory.shape import MemoryShape, from_bytes


def check_block(shape: MemoryShape, tokens: int | None, index: bytes, kv: list[bytes], start: int = 0) -> None:
    """Check what `RegionMemory.export_group` made elsewhere; of other blocks, without K/V, the numbers alone.

    Args:
        tokens: of the group; None when it holds slots, whose number the block does not tell.
        start: tokens before it.

    Raises:
        ValueError: another size, a key, value, mean, node or score that is no finite number, a node without children.
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
    if tokens is None:
        _finite(index, shape.dtype, "means")
    else:
        _check_index(shape, start, start + tokens, index)


def _check_index(shape: MemoryShape, start: int, end: int, index: bytes) -> None:
    """Check the means of a group's tokens, and the nodes of the tree that they complete."""
    offset = 0
    for what, dtype, size, below in _index_parts(shape, start, end):
        part = index[offset : offset + size]
        offset += size
        if len(part) < size:
            break
        if below is None:
            _finite(part, dtype, what)
        elif size:
            numbers = from_bytes(part, dtype, (size // dtype.itemsize,))
            if numbers.min() < 0 or numbers.max() >= below:
                raise ValueError(f"{what} that are not below {below}")
    if offset != len(index):
        raise ValueError(f"an index of {len(index)} bytes, expected {offset}")


def _index_parts(shape: MemoryShape, start: int, end: int) -> Iterator[tuple[str, torch.dtype, int, int | None]]:
    """(what, data type, bytes, bound of its numbers) of what `RegionIndex.export_rows` joins."""
    index, heads = RegionIndex(shape), shape.kv_heads
    for _ in range(shape.layers):
        for name, sub in index.subs.items():
            means = -(-end // sub) - start // sub
            yield f"{name} means", shape.dtype, heads * means * index.width * shape.dtype.itemsize, None
        first, last = start // index.subs["fine"], end // index.subs["fine"]
        while shape.attention.searches_tree:
            below, first, last = last, sealed_nodes(first), sealed_nodes(last)
            if first == last:
                break
            nodes = heads * (last - first)
            yield "nodes", shape.dtype, nodes * (index.width + 1) * shape.dtype.itemsize, None
            yield "children", torch.int32, nodes * CLUSTER * torch.int32.itemsize, below


def _finite(data: bytes, dtype: torch.dtype, what: str) -> None:
    if not data:
        return
    if len(data) % dtype.itemsize:
        raise ValueError(f"{what} of {len(data)} bytes")
    if not from_bytes(data, dtype, (len(data) // dtype.itemsize,)).isfinite().all():
        raise ValueError(f"{what} that are no finite numbers")
