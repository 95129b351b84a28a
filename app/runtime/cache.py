"""RegionCache: what one forward pass attends to, as a transformers cache.

Attached memories come first, in order, then the tail, which grows. `update()` hands the attention function a handle
instead of tensors (docs/algorithm.md, the three seams).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from app.models.stock import transformers
from app.errors import CancelledError
from app.kernels.layout import Pages, Places
from app.memory.memory import RegionMemory
from app.memory.shape import MemoryShape
from app.runtime.evidence import AnswerEvidence, Chosen

SINK_TOKENS = 4  # attended whatever they say: kept when region 0 is muted, and no evidence


class HeldSteps(Protocol):
    """Steps that keep their selection and put keys and values where they belong by themselves."""

    def append(self, number: int, keys: Tensor, values: Tensor) -> None: ...


class RegionLayer(transformers.cache_utils.CacheLayerMixin):
    """Thin adapter between one decoder layer and the cache."""

    def __init__(self, cache: "RegionCache", number: int) -> None:
        super().__init__()
        self.cache, self.number = cache, number
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the memory is allocated with the cache."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append raw keys and values [1, Hkv, T, D]; returns the handle twice."""
        if self.cache.held is not None:
            self.cache.held.append(self.number, key_states[0], value_states[0])
            return self, self
        if key_states.shape[0] != 1:
            raise ValueError(
                f"batch of {key_states.shape[0]}: a memory holds one text; run texts one by one, with num_beams=1"
            )
        self.cache.append(self.number, key_states[0], value_states[0])
        return self, self

    def get_seq_length(self) -> int:
        cache = self.cache
        return sum(memory.tokens for memory in cache.memories) + cache.tail.dropped + cache.tail.filled[self.number]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.10

    def reset(self) -> None:
        self.cache.tail = RegionMemory(self.cache.shape)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise ValueError("beam search is not supported: the scores of regions cannot follow the beams")


class RegionCache(transformers.cache_utils.Cache):
    """Attached memories and the tail.

    Attributes:
        memories: frozen memories, in the order their texts are seen.
        tail: memory of everything after them.
        allowed: [regions of the memories] bool, False for those muted or left out; None when all may be seen.
        narrowed: what the answer that runs was narrowed to; None: nothing.
        evidence: where the answer that is generated, or was generated last, looked in the memories' texts.
        held: the steps that run now keep their selection; None when they choose.
        cancelled: asked before each layer of a segment; what it stops is taken back.
        choices: those that the tokens of the answer share; None when each chooses for itself.
        chosen: regions [Hkv, K] of the last single query of each layer, and what was valid of them where.
    """

    def __init__(
        self, shape: MemoryShape, memories: Sequence[RegionMemory] = (), tail: RegionMemory | None = None
    ) -> None:
        self.shape = shape
        self.memories = tuple(memories)
        self.tail = RegionMemory(shape) if tail is None else tail
        self.allowed: Tensor | None = None
        self._sight: Tensor | None = None
        self.narrowed: Chosen | None = None
        self._table: tuple[int, Tensor, Tensor] | None = None
        self._counted: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.evidence: AnswerEvidence | None = None
        self.held: HeldSteps | None = None
        self.cancelled: Callable[[], bool] | None = None
        self.choices: SharedChoices | None = None
        self.chosen: dict[int, tuple[Tensor, Places]] = {}
        region = shape.attention.region_tokens
        starts, lengths = [], []
        self.base_tokens = self.base_regions = 0  # held by the memories
        self.offsets = []  # of each memory, in regions
        for memory in self.memories:
            self.offsets.append(self.base_regions)
            first = torch.arange(memory.regions) * region
            starts.append(first + self.base_tokens)
            lengths.append((memory.slots - first).clamp(max=region))
            self.base_tokens += memory.slots
            self.base_regions += memory.regions
        none = torch.zeros(0, dtype=torch.int64)
        self._starts = torch.cat([none, *starts]).to(shape.device)
        self._lengths = torch.cat([none, *lengths]).to(shape.device)
        self.look()
        super().__init__(layers=[RegionLayer(self, i) for i in range(shape.layers)])

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put raw keys and values [Hkv, T, D] at the tail's end.

        Raises:
            CancelledError: `cancelled` said so.
        """
        if self.cancelled is not None and self.cancelled():
            raise CancelledError("stopped within a segment")
        if layer == 0:  # while all layers still hold the same tokens
            self.tail.make_room(keys.shape[1])
        self.tail.append(layer, keys, values)

    def allow(self, regions: Sequence[bool] | None) -> None:
        """Mute the regions of the memories that are False here; None lifts it."""
        self._sight = None if regions is None else torch.tensor(regions, dtype=torch.bool, device=self.shape.device)
        self.look()

    def narrow(self, chosen: Chosen | None) -> None:
        """Of what may be seen of the memories, see no more than these regions; None lifts it."""
        self.narrowed = chosen
        self.look()

    def look(self) -> None:
        """See what may be seen now, and no region that a memory has to leave out."""
        a, there = self.shape.attention, torch.ones_like(self._lengths, dtype=torch.bool)
        per_group = a.group_tokens // a.region_tokens
        for first, memory in zip(self.offsets, self.memories, strict=True):
            for group in memory.pages.left_out:
                there[first + group * per_group : first + min((group + 1) * per_group, memory.regions)] = False
        self._sinks = (self._lengths * there)[:1].clamp(max=SINK_TOKENS)
        if self._sight is not None:
            there &= self._sight
        if self.narrowed is not None:
            there &= torch.zeros_like(there).index_fill_(0, self.narrowed.regions.to(there.device), True)
        self.allowed = None if there.all() and self._sight is None else there
        self._table = None

    def watch(self) -> AnswerEvidence:
        """Gather evidence of an answer from now on."""
        size = self.shape.attention.region_tokens
        starts = [torch.arange(0, memory.tokens, size, device=self.shape.device) for memory in self.memories]
        lengths = [(m.tokens - start).clamp(max=size) for m, start in zip(self.memories, starts, strict=True)]
        self._text_firsts = [0, *accumulate(map(len, starts))]  # of each text, in regions
        firsts = [first for first, start in zip(self._text_firsts, starts, strict=False) if len(start)]
        self.evidence = AnswerEvidence(torch.cat([self._lengths[:0], *lengths]), firsts, SINK_TOKENS)
        self.evidence.chosen = self.narrowed
        return self.evidence

    def fork(self) -> "RegionCache":
        """A cache that can go on by itself: the memories are shared, the tail is copied, it sees the same."""
        twin = RegionCache(self.shape, self.memories, self.tail.copy())
        twin._sight, twin.narrowed, twin.allowed = self._sight, self.narrowed, self.allowed
        return twin

    def begin(self) -> None:
        """Start a step of the model; it may have to be repeated where keys and values can be lost."""
        lossy = any(memory.pages.source is not None for memory in (*self.memories, self.tail))
        self._counted = [] if lossy else None

    def take_back(self, tokens: int) -> None:
        """Undo what the step has counted and appended, up to `tokens` tokens of the tail: it is to be repeated."""
        for book, places, old in reversed(self._counted or ()):
            book[places] = old
        self._counted = None if self._counted is None else []
        for part in (self.evidence, self.choices):
            if part is not None:
                part.forget()
        self.tail.truncate(tokens)

    def remember(self, layer: int, places: Tensor | None = None) -> None:
        """Keep the tail's mass and exposure as they are, before a step adds to them.

        Args:
            places: [N] rows of [Hkv * regions, L]; None keeps all.
        """
        if self._counted is None:
            return
        for books in (self.tail.mass, self.tail.exposure):
            rows = books[layer].view(-1, self.shape.attention.region_tokens)
            kept = torch.arange(len(rows), device=rows.device) if places is None else places
            self._counted.append((rows, kept, rows[kept]))

    def counts(self) -> dict[str, int]:
        """What became of the tokens of the memories and the tail, by the names of AnswerStats."""
        parts = [memory.counts() for memory in (*self.memories, self.tail)]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, not kept."""
        return self.layers[layer_idx].get_seq_length()

    def stores(self) -> list[tuple[int, int, RegionMemory]]:
        """(first region, region after the last, memory) of each memory and of the tail, which has no end."""
        starts = [*self.offsets, self.base_regions]
        ends = [*starts[1:], 1 << 62]
        return list(zip(starts, ends, [*self.memories, self.tail], strict=True))

    def table(self, tail_tokens: int) -> tuple[Tensor, Tensor]:
        """Start (absolute token) and length of every region when the tail holds `tail_tokens`.

        Returns:
            (starts, lengths), each [R], int64; muted regions have length 0, except the sinks of region 0.
        """
        if self._table is None or self._table[0] != tail_tokens:  # all layers of a step ask for the same
            region = self.shape.attention.region_tokens
            first = torch.arange(0, tail_tokens, region, device=self.shape.device)
            lengths = self._lengths
            if self.allowed is not None:
                lengths = lengths.masked_fill(~self.allowed, 0)
                lengths[:1] = torch.maximum(lengths[:1], self._sinks)
            starts = torch.cat([self._starts, first + self.base_tokens])
            self._table = tail_tokens, starts, torch.cat([lengths, (tail_tokens - first).clamp(max=region)])
        return self._table[1], self._table[2]

    def far_regions(self, tail_tokens: int) -> int:
        """How many regions of the memories lie before the local window, which is looked at for being near.

        A text that is hardly longer than the window counts whole.
        """
        attention = self.shape.attention
        newest = self.base_regions + (tail_tokens - 1) // attention.region_tokens
        far = min(self.base_regions, newest - attention.local_regions)
        return far if far > 1 else self.base_regions

    def _witness(self, evidence: AnswerEvidence, layer: int, regions: Tensor, mass: Tensor) -> None:
        """Tell which regions of the texts received mass: where tokens were dropped, those that the slots came from."""
        far = regions < self.far_regions(self.tail.filled[layer])
        if not any(memory.dropped for memory in self.memories):
            evidence.add(regions[far], mass[far])
            return
        size = self.shape.attention.region_tokens
        for (first, end, memory), text in zip(self.stores()[:-1], self._text_firsts, strict=False):
            head, slot = (far & (regions >= first) & (regions < end)).nonzero(as_tuple=True)
            rows = ((regions[head, slot] - first) * size)[:, None] + torch.arange(size, device=regions.device)
            held = rows < memory.slots
            rows = rows.clamp(max=memory.slots - 1)
            places = rows if memory.origins is None else memory.origins[layer][head[:, None], rows].long()
            evidence.add_tokens(
                (text + places // size).flatten(), places.flatten(), (mass[head, slot] * held).flatten()
            )

    def observe(self, layer: int, regions: Tensor, mass: Tensor, rows: int, steps: int) -> None:
        """Record attention mass: as evidence, and for H2O in the tail.

        Args:
            regions: [G, Hkv, K] attended regions of successive query groups.
            mass: [G, Hkv, K, L] mass per token, summed over `rows` query rows (heads times queries, `steps`).
        """
        groups, size = len(regions), self.shape.attention.region_tokens
        regions, mass = regions.transpose(0, 1).flatten(1), mass.transpose(0, 1)  # [Hkv, G * K]
        if self.evidence is not None:
            self._witness(self.evidence, layer, regions, mass.flatten(1, 2))
        own = (regions >= self.base_regions).nonzero(as_tuple=True)
        tail = self.tail
        places = own[0] * (tail.mass[layer].shape[1] // size) + regions[own] - self.base_regions
        self.remember(layer, places)
        seen, filled = tail.exposure[layer], tail.filled[layer]
        faded = tail.fade(layer, steps, groups)
        mass = (mass if faded is None else mass * faded[:, None, None]).flatten(1, 2)[own]
        group = groups - 1 - own[1] // (regions.shape[1] // groups)  # counted from the last one
        tail.count(layer, places, mass, filled - group * self.shape.attention.group_tokens, steps)
        seen.view(-1, size).index_add_(0, places, torch.full_like(mass, rows))
        seen[:, filled : -(-filled // size) * size] = 0  # no region beyond the last one was attended


def gather(cache: RegionCache, layer: int, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Raw keys and values of the chosen regions.

    Args:
        regions: [G, Hkv, K].

    Returns:
        (k, v), each [G, Hkv, K * L, D], in the cache's dtype.
    """
    stores = cache.stores()
    heads = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None].expand_as(regions)
    if len(stores) == 1:
        pair = stores[0][2].pages.take(layer, heads.flatten(), regions.flatten())
        return tuple(x.view(*regions.shape[:-1], -1, cache.shape.head_dim) for x in pair)
    s, length = cache.shape, cache.shape.attention.region_tokens
    keys, values = found(cache, layer, regions)
    if s.tiers.lane is None and not (keys < 0).any():
        cache.tail.pages.touch(layer, keys)
        rows = torch.stack([keys, values]).flatten() // (length * s.head_dim)  # all memories lie in one store
        data = cache.tail.pages.store(layer).view(-1, length * s.head_dim)
        return data.index_select(0, rows).view(2, *regions.shape[:-1], -1, s.head_dim).unbind()
    size = (*regions.shape, length, s.head_dim)
    k, v = (torch.empty(size, dtype=cache.shape.dtype, device=regions.device) for _ in range(2))
    for offset, end, memory in stores:
        here = ((regions >= offset) & (regions < end)).nonzero(as_tuple=True)
        if len(here[0]):
            k[here], v[here] = memory.pages.take(layer, here[1], regions[here] - offset)
    return k.flatten(2, 3), v.flatten(2, 3)


def held_tokens(lengths: Tensor, regions: Tensor) -> Tensor:
    """Tokens that count of each of the regions [..., K].

    When much is muted, fewer regions may be eligible than the budget holds and one can be gathered twice: the second
    time it does not count.
    """
    held = lengths[regions]
    held[..., 1:] *= regions[..., 1:] != regions[..., :-1]
    return held


def located(cache: RegionCache, layer: int, regions: Tensor) -> Pages:
    """The chosen regions [..., Hkv, K] where they lie; copies of them where not all fit into hot slots.

    When they have been used, `release` lets what the next layer took last come ahead.
    """
    stores, length = cache.stores(), cache.shape.attention.region_tokens
    keys, values = found(cache, layer, regions)
    if cache.shape.tiers.lane is None and not (keys < 0).any():
        cache.tail.pages.touch(layer, keys)
    else:
        for offset, end, memory in stores:
            here = regions if len(stores) == 1 else regions[(regions >= offset) & (regions < end)]
            memory.pages.bring(layer, here.flatten() - offset)
        keys, values = found(cache, layer, regions)
    store = cache.tail.pages.store(layer)  # one for all memories
    if (keys < 0).any():
        store = torch.stack(gather(cache, layer, regions.view(-1, *regions.shape[-2:])))  # [2, G, Hkv, K * L, D]
        size = length * cache.shape.head_dim
        keys = torch.arange(regions.numel(), device=regions.device).view_as(regions) * size
        values = keys + regions.numel() * size
    return Pages(store, keys, values, length)


def found(cache: RegionCache, layer: int, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Where keys and values of regions [..., Hkv, K] begin in the layer's store; keys < 0 are not hot.

    Each memory is asked for all of them, which costs less than to tell first whose they are.
    """
    heads = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None]
    keys, values = cache.tail.pages.find(layer, heads, (regions - cache.base_regions).clamp(min=0))
    for offset, end, memory in reversed(cache.stores()[:-1]):
        theirs = memory.pages.find(layer, heads, (regions - offset).clamp(0, memory.regions - 1))
        keys, values = (torch.where(regions < end, x, y) for x, y in zip(theirs, (keys, values), strict=True))
    return keys, values


def release(cache: RegionCache, layer: int) -> None:
    """What `located` told has been used."""
    for memory in (*cache.memories, cache.tail):
        memory.pages.prefetch_after(layer)


class SharedChoices:
    """Choices of one answer that several of its tokens share, in each layer as many as it can afford.

    In some models few layers find what is asked for and the others go on with what was found: there, choosing for each
    token in those alone loses next to nothing (docs/experiments.md).
    """

    def __init__(self, every: Sequence[int]) -> None:
        """
        Args:
            every: by layer, tokens that share a choice; it ends with the region that grows, too.
        """
        self.every = every
        self._kept: dict[int, tuple[int, int, Tensor]] = {}  # by layer: the region that grew, tokens left, the choice

    def of(self, layer: int, first: int, choose: Callable[[], Tensor]) -> Tensor:
        """The regions [1, Hkv, K] of a query that stands in region `first`, kept or as `choose` finds them."""
        grew, left, regions = self._kept.get(layer, (first, 0, None))
        if regions is None or grew != first or not left:
            left, regions = self.every[layer], choose()
        self._kept[layer] = first, left - 1, regions
        return regions

    def forget(self) -> None:
        """Let every layer choose next."""
        self._kept.clear()
