"""GroupSlots: in which slots of the engine's tiers the groups of one text are, and how they come and go."""

import weakref
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from app.memory.pools import Flight, PageTable, SlotPool
from app.memory.shape import MAX_ROW_BYTES, MemoryShape, from_bytes, pack, unpack

FLIGHT_GROUPS = 64  # unpacked together on the device


class PageSource(Protocol):
    """Where whole groups are kept that are in no slot."""

    def fetch(self, groups: Sequence[int], rows: range) -> list[bytes | None]:
        """Some stored rows of groups, those of one group joined; None for a group that is gone or damaged."""


class PagesLost(Exception):
    """Groups that are in no slot and cannot be fetched: they have to be read again. Never reaches a user."""

    def __init__(self, pages: "GroupSlots", groups: list[int]) -> None:
        super().__init__(f"groups {groups} are lost")
        self.pages, self.groups = pages, groups


class GroupSlots:
    """Keys and values of one text, group by group.

    A group of tokens that is whole is packed once by the shape's codec; from then on everybody sees what the packed
    copy says, whether it comes from memory or from the disk. The end of the text that fills no group stays as it is.

    Attributes:
        source: where groups come from that are in no slot; None when there are none.
        scores: [groups] float32, attention mass of each group, which decides between equally old ones.
        left_out: groups that are lost for good: zeros stand in their place, and nobody may attend to them.
        reread: groups that were lost and read again.
    """

    def __init__(self, shape: MemoryShape) -> None:
        shape.tiers.open(shape)
        self.shape, self.groups = shape, 0
        self.source: PageSource | None = None
        self.scores: Tensor | None = None
        self.left_out: set[int] = set()
        self.reread: set[int] = set()
        self.group_tokens = shape.attention.group_tokens
        self._hot_pools, self._packed_pools = shape.tiers.hot, shape.tiers.packed
        self._hot = [_table(self, pool) for pool in self._hot_pools]
        self._packed = [_table(self, pool) for pool in self._packed_pools]

    @property
    def size_bytes(self) -> int:
        """Bytes held in slots."""
        return self.packed_bytes + _held_bytes(self._hot, self._hot_pools)

    @property
    def packed_bytes(self) -> int:
        """Bytes held in packed slots, which are on the host."""
        return _held_bytes(self._packed, self._packed_pools)

    def held_groups(self) -> tuple[int, int]:
        """Groups of which all layers are (hot, in slots but not hot)."""
        hot, held = self._held()
        return int(hot.sum()), int((held & ~hot).sum())

    def _held(self) -> tuple[Tensor, Tensor]:
        """[groups] bool, on the CPU: whether all layers are hot, and whether they are in slots of any kind."""
        hot = held = torch.stack([table.slots >= 0 for table in self._hot]).cpu()
        if self._packed:
            held = hot | torch.stack([table.slots >= 0 for table in self._packed])
        return hot.all(0), held.all(0)

    def places(self, tokens: int) -> dict[str, int]:
        """Where the keys and values of the first `tokens` tokens are, by the names of AnswerStats."""
        size, counts = self.group_tokens, torch.zeros(self.groups, dtype=torch.int64)
        counts[: tokens // size] = size
        counts[tokens // size : -(-tokens // size)] = tokens % size
        hot, held = self._held()
        gone = torch.zeros_like(hot)
        gone[list(self.left_out)] = True
        device = hot & (self.shape.device.type != "cpu")
        where = {"device": device, "host": held & ~device, "disk": ~held}
        return {
            **{f"tokens_{name}": int(counts[mask & ~gone].sum()) for name, mask in where.items()},
            "tokens_ids": int(counts[gone].sum()),
            "tokens_reread": int(counts[sorted(self.reread - self.left_out)].sum()),
        }

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens."""
        groups = -(-tokens // self.group_tokens)
        for tables, pools in ((self._hot, self._hot_pools), (self._packed, self._packed_pools)):
            for table, pool in zip(tables, pools, strict=True):
                table.reserve(groups)
                pool.expect(groups - len(table.held()))
        self.groups = max(self.groups, groups)

    def settle(self, groups: Sequence[int]) -> None:
        """Say that whole groups can be fetched from `source` now, so that their slots may be used for others."""
        for tables, pools in ((self._packed, self._packed_pools) if self._packed else (self._hot, self._hot_pools),):
            for table, pool in zip(tables, pools, strict=True):
                slots = table.slots[list(groups)]
                pool.loose[slots[slots >= 0]] = True

    def warm(self, groups: Sequence[int]) -> None:
        """Bring groups in at once, as far as there is room; what is lost is left for whoever needs it."""
        for bundle in range(len(self._hot_pools)):
            some = torch.tensor(list(groups)[: self._most(bundle)], dtype=torch.int64)
            try:
                self._present(bundle, some)
            except PagesLost:
                return

    def has(self, group: int) -> bool:
        """Whether all layers of a group are in slots or can be fetched, as far as its first rows tell."""
        some = torch.tensor([group])
        try:
            self._present(0, some)
        except PagesLost:
            return False
        return True

    def leave_out(self, groups: Sequence[int]) -> None:
        """Give groups up that can neither be fetched nor read again."""
        self.left_out |= set(groups)
        for bundle, pool in enumerate(self._hot_pools):
            slots = self._writable(bundle, torch.tensor(sorted(groups)), False)
            pool.data[slots] = 0

    def copy_from(self, other: "GroupSlots") -> None:
        """Take over what another holds; both have the same room."""
        self.source, self.scores = other.source, other.scores
        self.left_out, self.reread = set(other.left_out), set(other.reread)
        for mine, theirs, pools in (
            (self._hot, other._hot, self._hot_pools),
            (self._packed, other._packed, self._packed_pools),
        ):
            for table, source, pool in zip(mine, theirs, pools, strict=True):
                pool.land(source)
                pool.finish()
                groups = source.held()
                pool.tick()
                pool.touch(source.slots[groups])  # they stay while room is made for the copy
                slots, old = pool.claim(table, groups), source.slots[groups]
                pool.data[slots], pool.loose[slots] = pool.data[old], pool.loose[old]

    def _most(self, bundle: int) -> int:
        """Groups that are surely brought in together."""
        limit = self._hot_pools[bundle].limit
        return max(1, len(self._hot[bundle].slots)) if limit is None else max(1, limit // 2)

    def _writable(self, bundle: int, groups: Tensor, begun: bool) -> Tensor:
        """Hot slots of groups that are about to be written; `begun`: the first holds tokens already."""
        pool, table = self._hot_pools[bundle], self._hot[bundle]
        pool.land(table)
        pool.tick()
        groups = groups.to(table.slots.device)
        if begun:
            self._present(bundle, groups[:1].cpu())
        pool.touch(table.slots[groups][table.slots[groups] >= 0])
        missing = groups[table.slots[groups] < 0]
        if len(missing):
            fresh = pool.claim(table, missing)  # may move the data
            pool.data[fresh] = 0
        pool.loose[table.slots[groups]] = False
        if self._packed:  # a packed copy is written over, layer by layer
            below = self._packed[bundle].slots[groups.cpu()]
            self._packed_pools[bundle].loose[below[below >= 0]] = False
        return table.slots[groups]

    def _present(self, bundle: int, groups: Tensor) -> Tensor:
        """Hot slots of groups [n], fetched where they are missing."""
        pool, table = self._hot_pools[bundle], self._hot[bundle]
        pool.land(table)
        groups = groups.to(table.slots.device)
        slots = table.slots[groups]
        pool.tick()
        pool.touch(slots[slots >= 0])
        missing = groups[slots < 0].cpu()
        if len(missing):
            if self._packed:
                self._unpack(bundle, missing, self._from_below(bundle, missing))
            else:
                self._fill(bundle, missing, self._fetch(bundle, missing))
        return table.slots[groups]

    def _from_below(self, bundle: int, groups: Tensor) -> Tensor:
        """Packed slots of groups [n], fetched where they are missing."""
        pool, table = self._packed_pools[bundle], self._packed[bundle]
        pool.tick()
        slots = table.slots[groups]
        pool.touch(slots[slots >= 0])
        missing = groups[slots < 0]
        if len(missing):
            rows = self._fetch(bundle, missing)
            self._put_packed(bundle, missing, rows)
        return table.slots[groups]

    def _fetch(self, bundle: int, groups: Tensor) -> list[bytes]:
        s, first = self.shape, 0
        pieces = [-(-s.packed_layer_bytes * len(layers) // MAX_ROW_BYTES) for layers in s.bundles]
        first = sum(pieces[:bundle])
        wanted = groups.tolist()
        rows = self.source.fetch(wanted, range(first, first + pieces[bundle])) if self.source else [None] * len(wanted)
        size = s.packed_layer_bytes * len(s.bundles[bundle])
        lost = [group for group, row in zip(wanted, rows, strict=True) if row is None or len(row) != size]
        if lost:
            raise PagesLost(self, lost)
        return [row for row in rows if row is not None]

    def _fill(self, bundle: int, groups: Tensor, rows: list[bytes]) -> None:
        """Put stored rows of whole groups into slots."""
        if self._packed:
            self._put_packed(bundle, groups, rows)
            self._unpack(bundle, groups, self._packed[bundle].slots[groups])
            return
        pool, s = self._hot_pools[bundle], self.shape
        slots = self._claim(self._hot_pools[bundle], self._hot[bundle], groups)
        pool.data[slots] = from_bytes(b"".join(rows), s.dtype, (len(rows), *pool.row)).to(s.device)
        pool.loose[slots] = self.source is not None

    def _put_packed(self, bundle: int, groups: Tensor, rows: list[bytes]) -> None:
        pool = self._packed_pools[bundle]
        slots = self._claim(pool, self._packed[bundle], groups)
        pool.finish()
        pool.data[slots] = from_bytes(b"".join(rows), torch.uint8, (len(rows), *pool.row))
        pool.loose[slots] = self.source is not None

    def _unpack(self, bundle: int, groups: Tensor, packed: Tensor) -> None:
        """Make groups hot from their packed slots."""
        pool = self._hot_pools[bundle]
        if self.shape.tiers.lane is not None:
            self._fly(bundle, groups, packed)
            pool.land(self._hot[bundle])
            return
        data = self._packed_pools[bundle].data[packed]
        slots = self._claim(pool, self._hot[bundle], groups)
        pool.data[slots] = unpack(self.shape, data.flatten(0, 1)).unflatten(0, data.shape[:2])
        pool.loose[slots] = True

    def _claim(self, pool: SlotPool, table: PageTable, groups: Tensor) -> Tensor:
        """Slots of groups that may have some already."""
        scores = None if self.scores is None else self.scores.to(pool.device)
        groups = groups.to(pool.device)
        missing = groups[table.slots[groups] < 0]
        if len(missing):
            pool.claim(table, missing, None if scores is None else scores[missing])
        return table.slots[groups]

    def _seal(self, bundle: int, place: int, groups: Tensor) -> None:
        """Pack one layer of groups that are whole now, and go on with what the packed copy says."""
        if not self._packed:
            return
        pool, hot, s = self._packed_pools[bundle], self._hot_pools[bundle], self.shape
        pool.tick()
        slots = self._hot[bundle].slots[groups.to(hot.device)]
        packed = self._claim(pool, self._packed[bundle], groups)
        data = pack(s, hot.data[slots, place])
        self._go(bundle, place, data, packed)
        if s.codec != "raw":
            hot.data[slots, place] = unpack(self.shape, data)
        if place == len(s.bundles[bundle]) - 1:
            hot.loose[slots] = True

    def _fly(self, bundle: int, groups: Tensor, source: Tensor) -> None:
        """Copy groups [n] from packed slots to hot ones beside the model; they `land` before they are used.

        Each goes from its own pinned row: gathering them first would be work for the CPU. A few at a time, since
        unpacking takes room on the device.
        """
        pool, below, lane = self._hot_pools[bundle], self._packed_pools[bundle], self.shape.tiers.lane
        slots = self._claim(pool, self._hot[bundle], groups)

        def copy() -> None:
            for few, to in zip(source.split(FLIGHT_GROUPS), slots.split(FLIGHT_GROUPS), strict=True):
                staged = torch.empty(len(few), *below.row, dtype=torch.uint8, device=self.shape.device)
                for row, slot in zip(staged, few.tolist(), strict=True):
                    row.copy_(below.data[slot], non_blocking=True)
                pool.data[to] = unpack(self.shape, staged.flatten(0, 1)).unflatten(0, staged.shape[:2])

        flight = Flight(lane, lane.run(copy), self._hot[bundle], slots)
        pool.arrivals.append(flight)
        below.departure = flight

    def _go(self, bundle: int, place: int, data: Tensor, packed: Tensor) -> None:
        """Bring one layer of sealed groups, [n, packed_layer_bytes], to packed slots; where there is a lane, by it."""
        pool, lane = self._packed_pools[bundle], self.shape.tiers.lane
        if lane is None:
            pool.data[packed, place] = data.to(pool.device)
            return

        def copy() -> None:
            for row, slot in zip(data, packed.tolist(), strict=True):
                pool.data[slot, place].copy_(row, non_blocking=True)

        pool.departure = Flight(lane, lane.run(copy, (data,)), self._packed[bundle], packed)

    def _unpacked(self, bundle: int, groups: Tensor) -> None:
        """Groups have no packed copy any more: they are not whole, or were changed."""
        if self._packed:
            self._packed_pools[bundle].release(self._packed[bundle], groups)


def _held_bytes(tables: Sequence[PageTable], pools: Sequence[SlotPool]) -> int:
    return sum(len(table.held()) * pool.slot_bytes for table, pool in zip(tables, pools, strict=True))


def _table(pages: GroupSlots, pool: SlotPool) -> PageTable:
    """A table of a pool whose slots are given back when the pages are gone."""
    table = pool.table()
    weakref.finalize(pages, pool.drop, table)
    return table
