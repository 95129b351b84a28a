"""RegionMemory: what one text left behind: keys, values, what finds them again, and what they were worth."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from app.kernels.h2o import DECAY, peaks
from app.memory.groups import PageSource
from app.memory.index import RegionIndex
from app.memory.pages import KVPages
from app.memory.pools import zeros
from app.memory.shape import MemoryShape, from_bytes, to_bytes


class RegionMemory:
    """Grows while a text is read or a chat goes on; a document's memory is frozen afterwards.

    Regions lie at multiples of `region_tokens` from the memory's own start, so a memory means the same wherever it is
    attached. Where the shape names a compaction, they are regions of slots: the tokens that each KV head still holds.

    Attributes:
        pages: keys and values. index: key means.
        mass: of each layer, [Hkv, capacity] float32: attention mass received from sampled queries (H2O), or the most of
            it that one gave, as `app.kernels.h2o.peaks` tells it.
        exposure: of each layer, [Hkv, capacity] float32: sampled query rows that saw the token.
        filled: slots that each layer holds.
        origins: of each layer, [Hkv, capacity] int32: which token of the text each slot is; None: slot i is token i.
        dropped: tokens that no slot holds any more; `whole_from`: tokens read when some were dropped last.
        levels: how often each of the first regions was merged; those after them never were.
    """

    def __init__(self, shape: MemoryShape, capacity_tokens: int = 0) -> None:
        self.shape = shape
        self.token_ids: list[int] = []
        self.filled = [0] * shape.layers
        self.capacity = 0
        self.pages, self.index = KVPages(shape), RegionIndex(shape)
        self.mass = [self._book(0) for _ in range(shape.layers)]
        self.exposure = [self._book(0) for _ in range(shape.layers)]
        self.origins = [self._book(0, torch.int32) for _ in range(shape.layers)] if shape.compaction else None
        self.dropped = self.whole_from = 0
        self.levels: list[int] = []
        self._books_on_host = False
        self.reserve(capacity_tokens)

    def _book(self, slots: int, dtype: torch.dtype = torch.float32, *, host: bool = False) -> Tensor:
        return zeros(self.shape.kv_heads, slots, dtype=dtype, device=self.shape.device, host=host)

    @property
    def tokens(self) -> int:
        """Tokens that all layers have read."""
        return self.slots + self.dropped

    @property
    def slots(self) -> int:
        """Tokens that each KV head of every layer holds."""
        return self.filled[-1]

    @property
    def regions(self) -> int:
        return -(-self.slots // self.shape.attention.region_tokens)

    @property
    def groups(self) -> int:
        """Groups, the last of which may be short."""
        return -(-self.slots // self.shape.attention.group_tokens)

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        return self.pages.size_bytes + self.index.size_bytes + self._book_bytes(self.capacity)

    @property
    def host_bytes(self) -> int:
        """Those of the bytes held that are on the host."""
        if self.shape.device.type == "cpu":
            return self.size_bytes
        return self.pages.packed_bytes + self.index.host_bytes + self._books_on_host * self._book_bytes(self.capacity)

    def _book_bytes(self, slots: int) -> int:
        return sum(layers[0].itemsize * len(layers) for layers in self._books()) * self.shape.kv_heads * slots

    def _books(self) -> list[list[Tensor]]:
        """What is known of each token besides its key and value: lists by layer of [Hkv, capacity]."""
        return [self.mass, self.exposure, *([self.origins] if self.origins else [])]

    def counts(self) -> dict[str, int]:
        """What became of the tokens and where they are, by the names of AnswerStats.

        Kept, compressed and evicted make up all of them.
        """
        merged = sum(level > 0 for level in self.levels) * self.shape.attention.region_tokens
        group = self.shape.attention.group_tokens
        return {
            "tokens_kept": self.slots - merged,
            "tokens_compressed": merged,
            "tokens_evicted": self.dropped,
            "tokens_quantized": 0 if self.shape.codec == "raw" else self.slots // group * group,
            **self.pages.places(self.slots),
        }

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` slots in all; doubles at least, so that growth costs a constant per token.

        Where the shape names a compaction, it is never more than that allows.
        """
        region, rule = self.shape.attention.region_tokens, self.shape.compaction
        tokens = min(tokens, rule.most_slots) if rule else tokens
        if tokens <= self.capacity:
            return
        tokens = -(-max(tokens, 2 * self.capacity if self.capacity else tokens) // region) * region
        tokens = min(tokens, rule.most_slots) if rule else tokens
        self.pages.reserve(tokens)
        parts = {"codes": self.index.sketch.most_bytes(tokens)}  # they stay on the device
        parts |= self.index.parts(tokens) | {"books": self._book_bytes(tokens)}
        on_host = self.shape.tiers.share.settle(self, parts)
        self.index.reserve(tokens, on_host)
        self._books_on_host = "books" in on_host
        for layers in self._books():
            for i, old in enumerate(layers):
                layers[i] = self._book(tokens, old.dtype, host=self._books_on_host)
                layers[i][:, : old.shape[1]] = old
        self.capacity = tokens

    def make_room(self, tokens: int) -> None:
        """Drop what the shape's compaction drops before `tokens` more are appended.

        Raises:
            ValueError: more tokens than may be run together.
        """
        rule = self.shape.compaction
        if rule is None:
            return
        if tokens > rule.stretch_tokens:
            raise ValueError(f"{tokens} tokens at once: at most {rule.stretch_tokens} here; use Engine.read")
        before, read = self.slots, self.tokens
        try:
            rule.make_room(self, tokens)
        except BaseException:  # some layers may have dropped tokens, others not
            self.clear()
            raise
        if self.slots < before:
            self.dropped, self.whole_from = read - self.slots, read

    def keep(self, layer: int, slots: Tensor) -> None:
        """Keep only these slots of each KV head, [Hkv, S], ascending."""
        count, group = slots.shape[1], self.shape.attention.group_tokens
        if count == self.filled[layer]:
            return
        moved = (slots != torch.arange(count, device=slots.device)).any(0).nonzero()[:1]
        first = int(moved.sum()) // group * group
        self.pages.keep(layer, slots, first)
        for layers in self._books():
            layers[layer][:, :count] = layers[layer].gather(1, slots)
            layers[layer][:, count:] = 0
        self.index.update(layer, first, self.pages.rows(layer, first, count)[0])
        self.filled[layer] = count

    def fade(self, layer: int, steps: int, groups: int = 1) -> Tensor | None:
        """Let the mass received so far count less before that of further queries is added, where it shall.

        Returns:
            [groups], what the mass of each of so many successive groups of `steps` queries counts; None where it is 1.
        """
        rule = self.shape.compaction
        if not rule or rule.options.score != "decay":
            return None
        self.mass[layer] *= DECAY ** (steps * groups)
        return DECAY ** (steps * torch.arange(groups - 1, -1, -1, device=self.mass[layer].device))

    def count(self, layer: int, places: Tensor, mass: Tensor, ends: Tensor, steps: int) -> None:
        """Add mass that queries gave, which has been faded already.

        Args:
            places: [N] rows of [Hkv * regions, L], several may be the same; `mass` [N, L], of `steps` queries each.
            ends: [N] slots that were filled when the last of the queries came.
        """
        size = self.shape.attention.region_tokens
        if self._keeps_peaks:
            slots = (places[:, None] * size + torch.arange(size, device=places.device)).flatten()
            found = peaks(mass / steps, ends[:, None] + self.dropped).flatten()
            self.mass[layer].view(-1).scatter_reduce_(0, slots, found, "amax")
        else:
            self.mass[layer].view(-1, size).index_add_(0, places, mass)

    def count_first(self, layer: int, mass: Tensor, steps: int) -> None:
        """The same for the first S slots, [Hkv, S], when no more were filled."""
        book = self.mass[layer][:, : mass.shape[1]]
        if self._keeps_peaks:
            torch.maximum(book, peaks(mass / steps, mass.shape[1] + self.dropped), out=book)
        else:
            book += mass

    @property
    def _keeps_peaks(self) -> bool:
        rule = self.shape.compaction
        return rule is not None and rule.options.score == "peak"

    def clear(self) -> None:
        """Forget everything."""
        self.dropped = self.whole_from = 0
        self.levels = []
        self.filled = [0] * self.shape.layers
        self.token_ids = []
        for layers in self._books():
            for book in layers:
                book.zero_()

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Add one segment's raw keys and values, [Hkv, T, D] each."""
        start = self.filled[layer]
        end = start + keys.shape[1]
        self.reserve(end)
        self.pages.append(layer, start, keys, values)
        first = self.index.first_changed(start)
        self.index.update(layer, first, self.pages.newest_keys(layer, first, end))
        if self.origins:
            places = torch.arange(start + self.dropped, end + self.dropped, device=keys.device)
            self.origins[layer][:, start:end] = places.int()
        self.filled[layer] = end

    def freeze(self) -> "RegionMemory":
        """End the text; nothing is appended afterwards."""
        self.index.freeze(self.slots)
        return self

    def truncate(self, tokens: int) -> None:
        """Forget everything after the first `tokens` tokens; what is left is as if no more had come.

        What was dropped since then cannot come back: everything is forgotten, and `tokens` is 0.
        """
        if tokens < self.whole_from:
            self.clear()
            return
        slots = tokens - self.dropped
        first = self.index.first_changed(slots)
        for layer in range(self.shape.layers):
            for layers in self._books():
                layers[layer][:, slots:] = 0
            if first < slots:
                self.index.update(layer, first, self.pages.rows(layer, first, slots)[0])
        self.filled = [slots] * self.shape.layers
        del self.token_ids[tokens:]

    def copy(self) -> "RegionMemory":
        """An independent copy, for an answer that must not change the chat."""
        twin = RegionMemory(self.shape, self.capacity)
        twin.pages.copy_from(self.pages)
        twin.index.copy_from(self.index)
        for mine, theirs in zip(self._books(), twin._books(), strict=True):
            for source, target in zip(mine, theirs, strict=True):
                target.copy_(source)
        twin.token_ids, twin.filled, twin.levels = list(self.token_ids), list(self.filled), list(self.levels)
        twin.dropped, twin.whole_from = self.dropped, self.whole_from
        return twin

    def group_range(self, group: int) -> tuple[int, int]:
        """[start, end) slots of a group."""
        size = self.shape.attention.group_tokens
        return group * size, min((group + 1) * size, self.slots)

    def export_group(self, group: int) -> tuple[bytes, list[bytes]]:
        """The bytes of one sealed group: (index, K/V rows of at most 1 MiB)."""
        start, end = self.group_range(group)
        return self.index.export_rows(start, end), self.pages.export_rows(start, end)

    def import_group(self, token_ids: list[int], index: bytes, kv: list[bytes]) -> None:
        """Append a group that `export_group` made; the memory must stand at a group boundary.

        Raises:
            ValueError: the bytes do not have the size that the tokens and this memory's shape ask for.
        """
        self._import_rows(len(token_ids), index, kv)
        self.token_ids += token_ids

    def _import_rows(self, slots: int, index: bytes, kv: list[bytes]) -> None:
        start = self.slots
        assert start % self.shape.attention.group_tokens == 0, "groups are imported in order"
        self.reserve(start + slots)
        self.pages.import_rows(start, slots, kv)
        self.index.import_rows(start, slots, index)
        self.filled = [start + slots] * self.shape.layers

    def export_mass(self) -> bytes:
        """H2O mass and exposure of all slots, float32; then their origins, if tokens were dropped."""
        return b"".join(to_bytes(book[:, : self.slots]) for layers in self._books() for book in layers)

    def import_mass(self, data: bytes) -> None:
        """Put back what `export_mass` gave."""
        shape = (sum(map(len, self._books())), self.shape.kv_heads, self.slots * 4)
        parts = iter(from_bytes(data, torch.uint8, shape))
        for layers in self._books():
            for book in layers:
                book[:, : self.slots] = next(parts).view(book.dtype).to(self.shape.device)

    def export_state(self) -> bytes:
        """What the groups of slots do not tell: how much was read and dropped, levels, mass, exposure and origins."""
        numbers = [self.slots, self.dropped, self.whole_from, len(self.levels), *self.levels]
        return to_bytes(torch.tensor(numbers)) + self.export_mass()

    @staticmethod
    def stored_groups(state: bytes, shape: MemoryShape) -> int:
        """Groups that belong to an exported state."""
        return -(-int(from_bytes(state[:8], torch.int64, (1,))) // shape.attention.group_tokens)

    def import_slots(self, token_ids: list[int], state: bytes, groups: Iterable[tuple[bytes, list[bytes]]]) -> None:
        """Take over a memory of slots: all it read, what `export_state` gave, and its groups in order.

        Raises:
            ValueError: the bytes do not have the size that the state and this memory's shape ask for.
        """
        merged = int(from_bytes(state[24:32], torch.int64, (1,)))
        numbers = from_bytes(state[: 32 + 8 * merged], torch.int64, (4 + merged,)).tolist()
        slots, dropped, whole_from, _, *levels = numbers
        if slots + dropped != len(token_ids):
            raise ValueError(f"a memory of {slots + dropped} tokens, expected {len(token_ids)}")
        size = self.shape.attention.group_tokens
        self.clear()
        self.reserve(slots)
        for index, kv in groups:
            self._import_rows(min(size, slots - self.slots), index, kv)
        self.import_mass(state[32 + 8 * merged :])
        self.dropped, self.whole_from, self.levels, self.token_ids = dropped, whole_from, levels, list(token_ids)


HEAVY_GROUPS = 16  # those with most attention mass are brought in when a memory is opened


class Stored(PageSource, Protocol):
    """A source of groups that can take one back."""

    def replace(self, group: int, memory: RegionMemory) -> None:
        """A group that was lost has been read again; keep it."""


def open_groups(memory: RegionMemory, token_ids: Sequence[int], index: Sequence[bytes], source: Stored) -> None:
    """Append whole groups of a text: their index now, keys and values when they are selected.

    Args:
        token_ids: of the groups; `index` the rows of `RegionMemory.export_group`.

    Raises:
        ValueError: a row does not have the size that this memory's shape asks for.
    """
    start, size = memory.tokens, memory.shape.attention.group_tokens
    assert start % size == 0 and len(token_ids) == len(index) * size
    memory.reserve(start + len(token_ids))
    memory.index.import_groups(start // size, index)
    memory.filled = [start + len(token_ids)] * memory.shape.layers
    memory.token_ids += token_ids
    memory.pages.source = source


def export_mass(memory: RegionMemory) -> bytes:
    """H2O mass of each group, [groups] float32: what its keys are worth against other groups'."""
    size, tokens = memory.shape.attention.group_tokens, memory.tokens
    mass = torch.stack([layer[:, :tokens].sum(0) for layer in memory.mass]).sum(0)
    return to_bytes(torch.nn.functional.pad(mass, (0, -tokens % size)).view(-1, size).sum(-1))


def warm(memory: RegionMemory, mass: bytes | None) -> None:
    """Bring in what nearly every answer needs: the sinks, the end of the text, and the heavy hitters.

    Args:
        mass: what `export_mass` gave.

    Raises:
        ValueError: it is that of another memory.
    """
    whole = memory.tokens // memory.shape.attention.group_tokens
    wanted = [0, whole - 1]
    if mass is not None:
        scores = memory.pages.scores = from_bytes(mass, torch.float32, (memory.groups,))
        wanted += scores[:whole].topk(min(HEAVY_GROUPS, whole)).indices.tolist()
    memory.pages.warm([group for group in dict.fromkeys(wanted) if 0 <= group < whole])
