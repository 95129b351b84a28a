"""Tiers: where the keys and values of all memories of one engine lie, and which of them go first.

Hot slots hold a group of tokens in the model's cache dtype, on its device; packed slots hold it as it is stored, on the
host. Below both are the blocks on the disk, and below those the token ids.
"""

import mmap
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

MAPPED_BYTES = 1 << 20  # a larger part has a mapping of its own, of which a process may have some 65,000
INDEX_SHARE = 4  # of the device's budget one part in so many is for this, the rest for keys and values


class Layout(Protocol):
    """What pools have to know of the memories whose keys and values they hold (`MemoryShape`)."""

    layers: int
    kv_heads: int
    head_dim: int
    attention: Any
    dtype: torch.dtype
    device: torch.device
    codec: str

    @property
    def bundles(self) -> list[range]: ...

    @property
    def packed_layer_bytes(self) -> int: ...


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


class Lane(Protocol):
    """A queue of copies beside the model's own work."""

    def run(self, work: Callable[[], None], uses: Sequence[Tensor] = ()) -> Any:
        """Do `work` after all that the model has queued so far, and after all work before; returns the mark of its end.

        Args:
            uses: the model's tensors that `work` reads and nobody else keeps.
        """

    def wait(self, mark: Any) -> None:
        """What the model queues from now on comes after the mark."""

    def finish(self, mark: Any) -> None:
        """Return when the mark has passed."""


class CudaLane:
    """A CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def run(self, work: Callable[[], None], uses: Sequence[Tensor] = ()) -> torch.cuda.Event:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for tensor in uses:
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            work()
            return self._stream.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()


@dataclass(eq=False)
class Flight:
    """Groups on their way from packed slots to hot ones, or to packed ones. Until it is over neither are for others.

    Attributes:
        owner: table of the memory whose groups these are.
        slots: [n] where they go to; the tensor must live until the copy is over.
    """

    lane: Lane
    mark: Any
    owner: Any
    slots: Tensor

    def land(self) -> None:
        """Let the model's work wait for the copy."""
        self.lane.wait(self.mark)

    def finish(self) -> None:
        """Wait until the packed slots have been read or written."""
        self.lane.finish(self.mark)


class Selected:
    """Which groups each layer of one memory took last, and whether one of them may have gone since."""

    def __init__(self) -> None:
        self._groups: dict[int, tuple[Tensor, int]] = {}

    def note(self, layer: int, groups: Tensor, evictions: int) -> None:
        """Layer `layer` took these groups [n] after its pool had evicted so often."""
        self._groups[layer] = groups, evictions

    def wanted(self, layer: int, evictions: int) -> Tensor | None:
        """The groups that `layer` took last, ascending; None when they must all be hot still."""
        groups, before = self._groups.get(layer, (None, evictions))
        return None if groups is None or before == evictions else groups.unique()


SPARE = 64  # one in so many slots is freed at a time, so that ordering them costs little
BEYOND = 8  # a pool that must exceed its limit grows by one part in so many at least
HOT_SHARE = 4  # where device and host are one and memories are quantised, one part in so many is for hot slots


@dataclass(eq=False)
class PageTable:
    """Where one memory's groups lie in one pool: slots [groups] int64, -1 for those that are not there."""

    slots: Tensor

    def held(self) -> Tensor:
        """Groups that have a slot, ascending."""
        return (self.slots >= 0).nonzero()[:, 0]

    def reserve(self, groups: int) -> None:
        """Make room for `groups` groups."""
        more = torch.full((max(0, groups - len(self.slots)),), -1, device=self.slots.device)
        self.slots = torch.cat([self.slots, more])


class SlotPool:
    """Slots of equal size, each for one group of any memory.

    A slot is *loose* when what it holds can be had from a lower tier; only loose slots are taken from their memory,
    least recently used first, then those with least attention mass (H2O). When there are not enough of them, the pool
    grows beyond its limit: nothing is ever lost.

    Attributes:
        data: [slots, *row].
        limit: slots it may have; None means as many as are asked for.
        evictions: how often slots were taken from a memory.
        arrivals: copies to these hot slots that run beside the model.
        departure: the last copy beside the model from or to these packed slots; copies end as they began. Others of
            that kind may follow at once, but the host has to `finish` before it reads or writes what a slot holds.
    """

    def __init__(
        self, row: tuple[int, ...], dtype: torch.dtype, device: torch.device, limit_bytes: int | None, *, pinned: bool
    ) -> None:
        self.row, self.dtype, self.device, self.pinned = row, dtype, device, pinned
        self.slot_bytes = prod(row) * dtype.itemsize
        self.limit = None if limit_bytes is None else max(1, limit_bytes // self.slot_bytes)
        self.data = torch.empty(0, *row, dtype=dtype, device=device)
        self.tables: list[PageTable | None] = []
        self.groups, self.used, self.score, self.loose = (
            self._facts(0, t) for t in ("int64", "int64", "float32", "bool")
        )
        self.clock = self.evictions = 0
        self.arrivals: list[Flight] = []
        self.departure: Flight | None = None
        self._free: list[int] = []
        self._dropped: deque[PageTable] = deque()

    def _facts(self, slots: int, dtype: str) -> Tensor:
        return torch.zeros(slots, dtype=getattr(torch, dtype), device=self.device)

    def table(self) -> PageTable:
        """A table for a new memory."""
        return PageTable(torch.zeros(0, dtype=torch.int64, device=self.device))

    def tick(self) -> None:
        """Begin a use: what is touched or claimed until the next one stays."""
        self.clock += 1

    def touch(self, slots: Tensor) -> None:
        self.used[slots] = self.clock

    def spare(self) -> int:
        """How many groups can be claimed without growing beyond the limit, and without what is in use now."""
        self._collect()
        if self.limit is None:
            return len(self._free)
        room = max(0, self.limit - len(self.tables))
        return len(self._free) + room + int((self.loose & (self.used < self.clock)).sum())

    def land(self, table: PageTable | None = None) -> None:
        """Let the model wait for what is on its way to the slots of one memory, or of all."""
        for flight in [flight for flight in self.arrivals if table is None or flight.owner is table]:
            flight.land()
            self.loose[flight.slots] = True
            self.arrivals.remove(flight)

    def finish(self) -> None:
        """Wait until nothing is copied from or to these packed slots any more."""
        if self.departure is not None:
            self.departure.finish()
            self.departure = None

    def expect(self, groups: int) -> None:
        """Make room at once for so many more groups, unless there is a limit."""
        self._collect()
        if self.limit is None and groups > len(self._free):
            self._grow(len(self.tables) + groups - len(self._free))

    def claim(self, table: PageTable, groups: Tensor, scores: Tensor | None = None) -> Tensor:
        """Slots for groups [n] that have none; what they hold is left from before."""
        self._collect()
        count = len(groups)
        if count > len(self._free):
            self._make_room(count - len(self._free))
        taken = [self._free.pop() for _ in range(count)]
        slots = torch.tensor(taken, dtype=torch.int64, device=self.device)
        for slot in taken:
            self.tables[slot] = table
        table.slots[groups] = slots
        self.groups[slots], self.used[slots], self.loose[slots] = groups, self.clock, False
        self.score[slots] = 0.0 if scores is None else scores
        return slots

    def release(self, table: PageTable, groups: Tensor) -> None:
        """Give back the slots of groups that have one."""
        self.land(table)
        slots = table.slots[groups]
        table.slots[groups] = -1
        self._give_back(slots[slots >= 0].tolist())

    def drop(self, table: PageTable) -> None:
        """Give back all slots of a memory that is gone; may be called by any thread at any time."""
        self._dropped.append(table)

    def _collect(self) -> None:
        while self._dropped:
            table = self._dropped.popleft()
            self.land(table)
            self._give_back(table.slots[table.slots >= 0].tolist())

    def _give_back(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.tables[slot] = None
        self.loose[list(slots)] = False
        self._free += slots

    def _make_room(self, count: int) -> None:
        have = len(self.tables)
        if self.limit is None:
            self._grow(2 * have + count)
        elif have < self.limit:
            self._grow(min(self.limit, 2 * have + count) if self.pinned else self.limit)
        count -= len(self.tables) - have
        if count <= 0:
            return
        victims = (self.loose & (self.used < self.clock)).nonzero()[:, 0]
        victims = victims[self.score[victims].argsort(stable=True)]
        victims = victims[self.used[victims].argsort(stable=True)]
        victims = victims[: max(count, have // SPARE)].tolist()
        for slot in victims:
            table = self.tables[slot]
            assert table is not None
            table.slots[self.groups[slot]] = -1
        self._give_back(victims)
        self.evictions += bool(victims)
        if count > len(victims):  # beyond the limit; by an eighth at least, since growing copies everything
            self._grow(len(self.tables) + max(count - len(victims), have // BEYOND))

    def _grow(self, slots: int) -> None:
        # Untouched memory costs the CPU nothing, so a limit is taken at once and never copied.
        self.land()
        self.finish()
        old, have = self.data, len(self.tables)
        self.data = torch.empty(slots, *self.row, dtype=self.dtype, device=self.device, pin_memory=self.pinned)
        self.data[:have] = old
        for name in ("groups", "used", "score", "loose"):
            facts = getattr(self, name)
            grown = torch.zeros(slots, dtype=facts.dtype, device=self.device)
            grown[:have] = facts
            setattr(self, name, grown)
        self.tables += [None] * (slots - have)
        self._free += range(slots - 1, have - 1, -1)


@dataclass(eq=False)
class Tiers:
    """Budgets of an engine's memories, and their slots, one pool for each bundle of layers.

    Where the device is the CPU, device and host are one: hot slots alone, or with a codec a quarter of it hot.

    Attributes:
        device_bytes, host_bytes: most that memories may take, None for no limit. Of the device's, a part is for what
            finds regions again; what that does not hold goes to the host, on top of its own.
        share: that part.
        lane: where groups are prefetched; None where device and host are one.
    """

    device_bytes: int | None = None
    host_bytes: int | None = None
    hot: list[SlotPool] = field(default_factory=list)
    packed: list[SlotPool] = field(default_factory=list)
    share: Share = field(default_factory=Share)
    lane: Lane | None = None

    def open(self, shape: Layout) -> None:
        """Set the pools up for memories of this shape; once is enough."""
        if self.hot:
            return
        device, host, cuda = self.device_bytes, self.host_bytes, shape.device.type == "cuda"
        if device is not None:
            self.share.limit = device // INDEX_SHARE
            device -= self.share.limit
        if not cuda:
            given = [x for x in (device, host) if x is not None]
            device = sum(given) if given else None
            if device is not None and shape.codec != "raw":
                device, host = device // HOT_SHARE, device - device // HOT_SHARE
        self.lane = CudaLane(shape.device) if cuda else None
        group, here = shape.attention.group_tokens, torch.device("cpu")
        for layers in shape.bundles:
            share = len(layers) / shape.layers
            row = (len(layers), 2, shape.kv_heads, group, shape.head_dim)
            limit = None if device is None else int(device * share)
            self.hot.append(SlotPool(row, shape.dtype, shape.device, limit, pinned=False))
            if cuda or shape.codec != "raw":
                row = (len(layers), shape.packed_layer_bytes)
                limit = None if host is None else int(host * share)
                self.packed.append(SlotPool(row, torch.uint8, here, limit, pinned=cuda))
