"""Placement: what finds regions again lies on the device while its share of the budget lasts, else on the host.

There it is pinned, and the device reads it where it lies: the same numbers, so the same choices, only slower.
"""

import mmap
from collections.abc import Mapping
from math import prod
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

MAPPED_BYTES = 1 << 20  # a larger part has a mapping of its own, of which a process may have some 65,000
INDEX_SHARE = 4  # of the device's budget one part in so many is for this, the rest for keys and values


class Share:
    """What the parts of all memories of one engine may take on the device together.

    Attributes:
        limit: bytes; None means as many as are asked for.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._taken: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    @property
    def taken(self) -> int:
        """Bytes on the device now."""
        return sum(list(self._taken.values()))

    def settle(self, owner: object, sizes: Mapping[str, int]) -> frozenset[str]:
        """Place the parts of one memory anew, now that they have these sizes.

        Args:
            sizes: bytes by name, what is read most often first.

        Returns:
            Names of those that go to the host: the first that there is no room for, and all after it.
        """
        self._taken.pop(owner, None)
        room, here = self.limit, 0
        for number, size in enumerate(sizes.values()):
            if room is not None and self.taken + here + size > room:
                self._taken[owner] = here
                return frozenset(list(sizes)[number:])
            here += size
        self._taken[owner] = here
        return frozenset()


def zeros(*size: int, dtype: torch.dtype, device: torch.device, host: bool = False) -> Tensor:
    """Zeros that `device` computes with; `host`: in the host's memory. On a CPU, large ones take it when used."""
    if device.type == "cpu" and (count := prod(size) * dtype.itemsize) >= MAPPED_BYTES:
        return _shaped(_untouched(count), size, dtype)
    if device.type != "cuda" or not host or 0 in size:
        return torch.zeros(*size, dtype=dtype, device=device)
    pinned = torch.zeros(*size, dtype=dtype, pin_memory=True)
    seen = torch.as_tensor(_Mapped(pinned), device=device)
    assert seen.data_ptr() == pinned.data_ptr(), "pinned memory has one address for host and device"
    return _shaped(seen, size, dtype)


def _untouched(size: int) -> Tensor:
    """Bytes that the system sets to zero when they are touched, page by page: torch would write its zeros.

    Numpy asks for huge pages, so that each of some hundred parts would take up to 2 MiB more than it holds.
    """
    private = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # Windows knows no other
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=torch.uint8)


def _shaped(data: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The same bytes, and no view of them: a view that was made without gradients may not be written to with them."""
    strides = [prod(size[i + 1 :]) for i in range(len(size))]
    return torch.empty(0, dtype=dtype, device=data.device).set_(data.untyped_storage(), 0, size, strides)


class _Mapped:
    """Pinned memory as the device sees it; lives as long as the tensor made of it."""

    def __init__(self, pinned: Tensor) -> None:
        self.pinned = pinned
        self.__cuda_array_interface__ = {
            "shape": (pinned.numel() * pinned.itemsize,),
            "typestr": "|u1",
            "data": (pinned.data_ptr(), False),
            "version": 3,
        }
