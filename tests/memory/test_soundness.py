"""What a block from elsewhere may hold: finite numbers where its tokens have them, and children that are there."""

import math
import struct

import pytest
import torch

from app.kernels.tree import SPAN
from app.memory.index import RegionIndex
from app.memory.shape import MemoryShape
from app.memory.soundness import check_block
from tests import tiny

FINE = tiny.SMALL.key_sub
END = 2 * SPAN * FINE  # two spans of fine means: nodes of one level
GROUP = tiny.SMALL.group_tokens


@pytest.fixture(scope="module")
def shape() -> MemoryShape:
    return MemoryShape(2, 2, 8, tiny.SMALL, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def index(shape: MemoryShape) -> RegionIndex:
    made, generator = RegionIndex(shape), torch.Generator().manual_seed(0)
    made.reserve(END)
    for layer in range(shape.layers):
        made.update(layer, 0, torch.randn(shape.kv_heads, END, shape.head_dim, generator=generator))
    return made


def group(shape: MemoryShape, index: RegionIndex, start: int) -> tuple[bytes, list[bytes]]:
    """A block as it is stored."""
    return index.export_rows(start, start + GROUP), [bytes(shape.packed_layer_bytes * shape.layers)]


@pytest.mark.parametrize("start", [0, GROUP, SPAN * FINE - GROUP, END - GROUP])
def test_what_we_export_is_sound(shape: MemoryShape, index: RegionIndex, start: int) -> None:
    rows, kv = group(shape, index, start)
    check_block(shape, GROUP, rows, kv, start)
    for wrong in (rows[:-4], rows + bytes(4), b""):
        with pytest.raises(ValueError):
            check_block(shape, GROUP, wrong, kv, start)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_every_number_of_means_and_nodes_is_looked_at(shape: MemoryShape, index: RegionIndex, number: float) -> None:
    start = END - GROUP  # it completes a span
    rows, kv = group(shape, index, start)
    assert len(rows) > len(group(shape, index, GROUP)[0]), "nodes stand behind the means"
    for place in range(0, len(rows), 4 * 61):
        wrong = rows[:place] + struct.pack("<f", number) + rows[place + 4 :]  # in a child it is a number far too large
        with pytest.raises(ValueError, match="no finite numbers|not below"):
            check_block(shape, GROUP, wrong, kv, start)


@pytest.mark.parametrize("child", [-1, 2 * SPAN, 2**31 - 1])
def test_a_child_that_is_not_there_is_refused(shape: MemoryShape, index: RegionIndex, child: int) -> None:
    start = END - GROUP
    rows, kv = group(shape, index, start)
    last = struct.pack("<i", child)
    with pytest.raises(ValueError, match="not below"):
        check_block(shape, GROUP, rows[:-4] + last, kv, start)
    check_block(shape, GROUP, rows[:-4] + struct.pack("<i", 2 * SPAN - 1), kv, start)
