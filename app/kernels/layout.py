"""What the kernels share: how codes, packed keys and lists of regions lie in memory, and where a query looks."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

BLOCK = 256  # regions whose codes lie together


UNTURNED = -1  # position of keys that are not rotated


@dataclass(frozen=True)
class Pages:
    """Where the chosen regions of each KV head lie.

    Raw, or parts of pages that `quantize` packed, keys or values of one KV head each.

    Attributes:
        data: contiguous; floating elements, or bytes (uint8).
        keys, values: [Hkv, K] int64, in elements of `data`. Raw: where a region's [L, D] begins, a multiple of L x D.
            Packed: where its page begins, an even number.
        region_tokens: L.
        codec: how pages are packed; page_tokens: tokens of a page.
        firsts: [Hkv, K] int64, the region's first token within its page; None for raw ones.
    """

    data: Tensor
    keys: Tensor
    values: Tensor
    region_tokens: int
    codec: Literal["raw", "int8", "int4"] = "raw"
    page_tokens: int = 0
    firsts: Tensor | None = None


@dataclass(frozen=True)
class Places:
    """What is valid of each region, and the positions of keys and query; int64.

    Attributes:
        lengths: [Hkv, K] valid tokens, the first of the region; 0 leaves it out. Some token of each KV head is valid.
        starts: [Hkv, K] position of the region's first key, its others follow; UNTURNED leaves all as they are.
        query: [Hkv] position of the query.
    """

    lengths: Tensor
    starts: Tensor
    query: Tensor


Codec = Literal["int8", "int4"]


GROUP = 32  # values that share an int4 scale


def packed_bytes(codec: Codec, tokens: int, dim: int) -> int:
    """Bytes that `quantize` makes of [tokens, dim]."""
    return dim * (tokens + 2) if codec == "int8" else dim * -(-tokens // GROUP) * (GROUP // 2 + 4)


@dataclass(frozen=True)
class BlockLists:
    """Which blocks each query group attends to, in text order.

    Attributes:
        blocks: [B, G, Hkv, K] int64, numbers of blocks in the storage.
        places: like blocks, int32: place in the whole text of a block's first token.
        lengths: like blocks, int32: how many of a block's tokens count; 0 leaves it out.
        offsets: like blocks, int32: position that a block's first token is rotated to.
        begins: [G] int32, place in the whole text of each group's first query.
        past: so many blocks at the front of every list are whole and lie before the group: nothing there is masked.
    """

    blocks: Tensor
    places: Tensor
    lengths: Tensor
    offsets: Tensor
    begins: Tensor
    past: int = 0
