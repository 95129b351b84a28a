"""Token ids as bytes: little-endian int32, the same on every machine."""

import sys
from array import array
from collections.abc import Sequence


def pack(token_ids: Sequence[int]) -> bytes:
    """Four bytes per token id."""
    ids = array("i", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpack(data: bytes) -> list[int]:
    """The token ids that `pack` was given."""
    ids = array("i")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()
