"""KVPages: raw (un-rotated) keys and values of one text, by token and by region."""

import torch
from torch import Tensor

from app.memory.groups import GroupSlots
from app.memory.pools import Selected
from app.memory.shape import MAX_ROW_BYTES, MemoryShape, from_bytes, to_bytes


class KVPages(GroupSlots):
    """K and V of one text: appended by segment, taken by region, stored by group."""

    def __init__(self, shape: MemoryShape) -> None:
        super().__init__(shape)
        self._selected = Selected()

    def append(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Put one segment, [Hkv, T, D] each, behind the first `start` tokens; groups that it fills are sealed."""
        size, end = self.group_tokens, start + keys.shape[1]
        if start == end:
            return
        bundle, place = divmod(layer, self.shape.bundle_layers)
        row = self._open_row(bundle, start, end)
        if row is not None:  # a token of an answer: most calls, and the rest below costs as much as its attention
            begin = start % size
            row[place, 0, :, begin : begin + end - start] = keys
            row[place, 1, :, begin : begin + end - start] = values
            return
        groups = torch.arange(start // size, (end - 1) // size + 1)
        full = (groups + 1) * size <= end
        slots = self._writable(bundle, groups, start % size > 0)
        self._unpacked(bundle, groups[~full])
        data = self._hot_pools[bundle].data
        first, last = -(-start // size) * size, end // size * size  # whole groups
        for begin, stop in ((start, min(first, end)), (max(last, first), end)):
            if begin < stop:
                row, offset = data[slots[(begin - start // size * size) // size], place], begin % size
                row[0, :, offset : offset + stop - begin] = keys[:, begin - start : stop - start]
                row[1, :, offset : offset + stop - begin] = values[:, begin - start : stop - start]
        if first < last:
            whole = slots[(first // size - start // size) : (last // size - start // size)]
            for i, x in enumerate((keys, values)):
                parts = x[:, first - start : last - start].unflatten(1, (-1, size)).transpose(0, 1)
                data[whole, place, i] = parts.to(data.dtype)
        if full.any():
            self._seal(bundle, place, groups[full])

    def _open_row(self, bundle: int, start: int, end: int) -> Tensor | None:
        """The hot slot of the group that is begun and that [start, end) does not fill; None when it is not that simple.

        Returns:
            [layers of the bundle, 2, Hkv, group, D], to be written to.
        """
        size, pool, table = self.group_tokens, self._hot_pools[bundle], self._hot[bundle]
        group = start // size
        if start % size == 0 or end >= (group + 1) * size or self._packed or pool.arrivals:
            return None
        slot = int(table.slots[group])
        if slot < 0:
            return None
        pool.tick()
        pool.used[slot], pool.loose[slot] = pool.clock, False
        return pool.data[slot]

    def newest_keys(self, layer: int, start: int, end: int) -> Tensor:
        """Keys [Hkv, end - start, D] that were just appended; not a copy where they lie in one group."""
        size, (bundle, place) = self.group_tokens, divmod(layer, self.shape.bundle_layers)
        group = start // size
        slot = int(self._hot[bundle].slots[group]) if group == (end - 1) // size else -1
        if slot < 0:
            return self.rows(layer, start, end)[0]
        return self._hot_pools[bundle].data[slot, place, 0, :, start - group * size : end - group * size]

    def rows(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """(k, v) of consecutive tokens, [Hkv, end - start, D] each."""
        size = self.group_tokens
        bundle, place = divmod(layer, self.shape.bundle_layers)
        groups, parts = torch.arange(start // size, -(-end // size)), []
        for some in groups.split(self._most(bundle)):
            slots = self._present(bundle, some)
            parts.append(self._hot_pools[bundle].data[slots, place].permute(1, 2, 0, 3, 4).flatten(2, 3))
        if not parts:
            empty = torch.zeros(self.shape.kv_heads, 0, self.shape.head_dim).to(self.shape.device, self.shape.dtype)
            return empty, empty
        both = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        begin = start - start // size * size
        return both[0, :, begin : begin + end - start], both[1, :, begin : begin + end - start]

    def take(self, layer: int, heads: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(k, v) of n regions, each of one KV head: [n, L, D] each; beyond the text's end they hold anything finite.

        Where there is a lane, what the next layer took last is brought to the device meanwhile.

        Args:
            heads, regions: [n], int64.
        """
        bundle = layer // self.shape.bundle_layers
        pool = self._hot_pools[bundle]
        pool.land(self._hot[bundle])
        self._note(layer, regions)
        pair = self._take(layer, heads, regions)
        self.prefetch_after(layer)
        return pair

    def bring(self, layer: int, regions: Tensor) -> None:
        """Bring regions [n] into hot slots, if all fit together; `find` tells which did, as long as nothing else comes.

        Where there is a lane, call `prefetch_after` when the regions have been used.
        """
        bundle, groups = layer // self.shape.bundle_layers, regions // self._per_group
        pool, table = self._hot_pools[bundle], self._hot[bundle]
        pool.land(table)
        self._note(layer, regions)
        slots = table.slots[groups]
        if (slots < 0).any():
            wanted = groups.unique().cpu()
            if len(wanted) <= self._most(bundle):
                self._present(bundle, wanted)
        elif pool.limit is not None:
            pool.tick()
            pool.touch(slots)

    def find(self, layer: int, heads: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Where regions begin in the layer's `store`, in elements: (keys, values), [n] each; keys < 0 are not hot."""
        s, (bundle, place) = self.shape, divmod(layer, self.shape.bundle_layers)
        head, per_group = self.group_tokens * s.head_dim, self._per_group
        half = s.kv_heads * head
        slots = self._hot[bundle].slots[regions // per_group] * (2 * half * len(s.bundles[bundle]))
        keys = (
            slots + (heads * head + 2 * half * place) + regions % per_group * (s.attention.region_tokens * s.head_dim)
        )
        return keys, keys + half

    def touch(self, layer: int, keys: Tensor) -> None:
        """Say that regions are used which `find` told to begin at `keys`, none of them below 0."""
        bundle = layer // self.shape.bundle_layers
        pool = self._hot_pools[bundle]
        if pool.limit is not None:
            pool.tick()
            pool.touch(keys // pool.data[0].numel())

    def store(self, layer: int) -> Tensor:
        """The hot slots of all memories of the engine, which `find` tells places in."""
        return self._hot_pools[layer // self.shape.bundle_layers].data

    def prefetch_after(self, layer: int) -> None:
        """What the next layer took last comes to the device beside the work that is queued, where there is a lane."""
        if self.shape.tiers.lane is not None:
            self._prefetch((layer + 1) % self.shape.layers)

    @property
    def _per_group(self) -> int:
        return self.group_tokens // self.shape.attention.region_tokens

    def _note(self, layer: int, regions: Tensor) -> None:
        if self.shape.tiers.lane is not None:
            evictions = self._hot_pools[layer // self.shape.bundle_layers].evictions
            self._selected.note(layer, regions // self._per_group, evictions)

    def _prefetch(self, layer: int) -> None:
        """Start to copy groups that a layer took last from packed slots to hot ones, as far as there is room."""
        bundle = layer // self.shape.bundle_layers
        pool, table, below = self._hot_pools[bundle], self._hot[bundle], self._packed_pools[bundle]
        groups = self._selected.wanted(layer, pool.evictions)
        if groups is None:
            return
        slots = table.slots[groups]
        pool.tick()
        pool.touch(slots[slots >= 0])  # they are wanted as well
        missing = groups[slots < 0].cpu()
        missing = missing[self._packed[bundle].slots[missing] >= 0]
        missing = missing[: min(pool.spare(), self._most(bundle))]
        if not len(missing):
            return
        source = self._packed[bundle].slots[missing]
        below.tick()
        below.touch(source)
        self._fly(bundle, missing, source)

    def _take(self, layer: int, heads: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        s, length = self.shape, self.shape.attention.region_tokens
        per_group = self._per_group
        bundle, place = divmod(layer, s.bundle_layers)
        pool, table = self._hot_pools[bundle], self._hot[bundle]
        groups, inside = regions // per_group, regions % per_group
        slots = table.slots[groups]
        count = len(regions)

        def pick(slots: Tensor, which: Tensor | slice) -> Tensor:
            rows = (slots * len(s.bundles[bundle]) + place) * 2 * s.kv_heads + heads[which]
            rows = torch.cat([rows, rows + s.kv_heads]) * per_group + inside[which].repeat(2)
            return pool.data.view(-1, length * s.head_dim).index_select(0, rows).view(2, -1, length, s.head_dim)

        if not (slots < 0).any():
            if pool.limit is not None:
                pool.tick()
                pool.touch(slots)
            k, v = pick(slots, slice(None))
            return k, v
        out = torch.empty(2, count, length, s.head_dim, dtype=s.dtype, device=s.device)
        for some in groups.unique().cpu().split(self._most(bundle)):
            self._present(bundle, some)
            here = torch.isin(groups, some.to(groups.device)).nonzero()[:, 0]
            out[:, here] = pick(table.slots[groups[here]], here)
        return out[0], out[1]

    def keep(self, layer: int, slots: Tensor, first: int) -> None:
        """Keep only the given slots of each KV head, [Hkv, S], moved to the front in this order.

        Args:
            first: multiple of `group_tokens`; the slots before it stay where they are.
        """
        bundle, place = divmod(layer, self.shape.bundle_layers)
        size, count, pool, table = self.group_tokens, slots.shape[1], self._hot_pools[bundle], self._hot[bundle]
        pool.land(table)
        held = table.held().cpu()
        held = held[held >= first // size]
        pool.loose[table.slots[held]] = False
        self._unpacked(bundle, held)
        index = (slots[:, first:] - first)[..., None].expand(-1, -1, self.shape.head_dim)
        pair = self.rows(layer, first, (int(held[-1]) + 1) * size if len(held) else first)
        for i, x in enumerate(pair):
            kept = torch.nn.functional.pad(x.gather(1, index), (0, 0, 0, -count % size)).unflatten(1, (-1, size))
            pool.data[table.slots[first // size :][: kept.shape[1]], place, i] = kept.transpose(0, 1)

    def export_rows(self, start: int, end: int) -> list[bytes]:
        """Stored rows of at most 1 MiB: each holds K, then V, of a bundle of layers, or a piece of one larger layer.

        A whole group is stored by the codec, a shorter one as it is.
        """
        group, tokens = torch.tensor([start // self.group_tokens]), end - start
        rows = []
        for bundle, pool in enumerate(self._hot_pools):
            if self._packed and self.shape.codec != "raw" and tokens == self.group_tokens:
                slots = self._from_below(bundle, group)
                self._packed_pools[bundle].finish()
                data = to_bytes(self._packed_pools[bundle].data[slots])
            else:
                data = to_bytes(pool.data[self._present(bundle, group)][0, :, :, :, :tokens])
            rows += [data[i : i + MAX_ROW_BYTES] for i in range(0, len(data), MAX_ROW_BYTES)]
        return rows

    def import_rows(self, start: int, tokens: int, kv: list[bytes]) -> None:
        """Put back what `export_rows` gave.

        Raises:
            ValueError: the bytes do not have the size that the tokens and this memory's shape ask for.
        """
        s, data = self.shape, b"".join(kv)
        whole, group = tokens == self.group_tokens, torch.tensor([start // self.group_tokens])
        layer = s.packed_layer_bytes if whole else s.token_bytes // s.layers * tokens
        if len(data) != layer * s.layers:
            raise ValueError(f"{len(data)} bytes, expected {layer * s.layers}")
        for bundle, layers in enumerate(s.bundles):
            part = data[layer * layers.start : layer * layers.stop]
            if whole:
                self._fill(bundle, group, [part])
                continue
            slots = self._writable(bundle, group, False)
            row = from_bytes(part, s.dtype, (len(layers), 2, s.kv_heads, tokens, s.head_dim))
            self._hot_pools[bundle].data[slots[0], :, :, :, :tokens] = row.to(s.device)
