"""Held selections: for a few tokens of an answer every layer goes on with the regions that it chose last.

Such a step chooses, fetches and seals nothing: it is tensor work of fixed shapes in fixed places. What changes (the
token, how far the last region is filled, the query's position) is in tensors. So a CUDA device can replay a graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.decode import decode_attention
from app.kernels.layout import Pages, Places
from app.memory.pools import SlotPool
from app.runtime.cache import RegionCache, found
from app.runtime.policies import AttentionSpec


class Captured:
    """Work that reads and writes the same tensors every time, and never waits for the device.

    The first call runs it as it is, which compiles its kernels; on a CUDA device that runs Triton's kernels the second
    one records it, and from then on it is replayed. Elsewhere every call runs it.

    Attributes:
        replays: how often it was replayed.
    """

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self._work, self._graph, self._result = work, None, None
        self.replays = 0

    def __call__(self) -> Tensor:
        """What the work returns; the next call may write over it."""
        if self._result is None or not (self._result.is_cuda and use_triton(self._result)):
            self._result = self._work()
            return self._result
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._work()
        self._graph.replay()
        self.replays += 1
        return self._result


@dataclass
class HeldLayer:
    """What one layer goes on with; its tensors stay where they are and are filled anew with each selection.

    Attributes:
        pages, places: of the query; the last region is the one that grows.
        rows: [Hkv * K] rows of mass and exposure, [Hkv * regions, L]; `own` [Hkv * K, 1], 1.0 for the tail's regions.
        texts: [Hkv * K] regions of the memories, and `seen` [Hkv * K, 1], 1.0 for those that are evidence.
    """

    pages: Pages
    places: Places
    rows: Tensor
    own: Tensor
    texts: Tensor
    seen: Tensor

    def tensors(self) -> list[Tensor]:
        """Those that are filled anew."""
        lists = [self.pages.keys, self.pages.values, self.places.lengths, self.places.starts, self.places.query]
        return [*lists, self.rows, self.own, self.texts, self.seen]


class Held:
    """Steps of one answer that keep the last selection.

    Attributes:
        every: tokens that share a selection, the one that chose it included; 1 holds nothing.
    """

    def __init__(
        self, spec: AttentionSpec, cache: RegionCache, every: int, forward: Callable[[Tensor], Tensor]
    ) -> None:
        """
        Args:
            forward: runs a token [1, 1] through the model, with the cache; returns the hidden state [H].
        """
        self.spec, self.cache, self.every, self._forward = spec, cache, every, forward
        self._left = self._begun = 0
        self._clocks: list[int] = []  # of the pools: they go on when somebody else uses them
        self._layers: list[HeldLayer] = []
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=cache.shape.device)
        self._captured: Captured | None = None
        self._addresses: tuple[int, ...] = ()

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """While a token is run that chooses for those after it."""
        self.release()
        yield
        self.hold()

    def hold(self) -> None:
        """Take over what a step has chosen just now, as far as steps of that kind can follow."""
        self.release()
        tail, size = self.cache.tail, self.cache.shape.attention.region_tokens
        room = (size - 1 - tail.slots % size) if tail.slots % size else 0  # the last token of a region is not held
        steps = min(self.every - 1, room)
        if steps < 1 or self.cache.shape.compaction or any(memory.dropped for memory in self.cache.memories):
            return
        tail.reserve(tail.slots + steps)
        for pool in self._pools:
            pool.land()
        layers = [self._layer(number) for number in range(self.cache.shape.layers)]
        if torch.stack([layer.pages.keys.amin() for layer in layers]).amin() < 0:  # not all are hot any more
            return
        self._keep(layers)
        self._left, self._begun, self._clocks = steps, tail.slots, [pool.clock for pool in self._pools]

    @property
    def goes_on(self) -> bool:
        """Whether the next token can be run without a choice."""
        return self._left > 0 and self._clocks == [pool.clock for pool in self._pools]

    @property
    def _pools(self) -> list[SlotPool]:
        return self.cache.shape.tiers.hot

    def _layer(self, number: int) -> HeldLayer:
        cache = self.cache
        regions, places = cache.chosen[number]
        keys, values = found(cache, number, regions)
        own, far = regions >= cache.base_regions, regions < cache.far_regions(cache.tail.filled[number])
        per_head = cache.tail.mass[number].shape[1] // cache.shape.attention.region_tokens
        heads = torch.arange(len(regions), device=regions.device)[:, None]
        rows = torch.where(own, heads * per_head + regions - cache.base_regions, 0)
        pages = Pages(cache.tail.pages.store(number), keys, values, cache.shape.attention.region_tokens)
        places = Places(places.lengths.clone(), places.starts.clone(), places.query.clone())
        texts, shares = torch.where(far, regions, 0), [mask.float().view(-1, 1) for mask in (own, far)]
        return HeldLayer(pages, places, rows.flatten(), shares[0], texts.flatten(), shares[1])

    def _keep(self, layers: list[HeldLayer]) -> None:
        """Fill the tensors anew; what was captured stands as long as nothing has another shape or place."""
        tail, evidence = self.cache.tail, self.cache.evidence
        books = [t for book in (tail.mass, tail.exposure) for t in book] + [layer.pages.data for layer in layers]
        addresses = (*(t.data_ptr() for t in books), id(evidence), *(len(layer.rows) for layer in layers))
        if addresses != self._addresses:
            self._layers, self._addresses, self._captured = layers, addresses, Captured(self._work)
            return
        for mine, new in zip(self._layers, layers, strict=True):
            for old, fresh in zip(mine.tensors(), new.tensors(), strict=True):
                old.copy_(fresh)

    def step(self, token: int) -> Tensor:
        """Run one token; returns the hidden state [H]."""
        assert self.goes_on and self._captured is not None
        tail, self._left = self.cache.tail, self._left - 1
        self._token.fill_(token)
        self.cache.held = self
        try:
            hidden = self._captured()
        except BaseException:  # some layers may have counted the token, others not
            self._left = 0
            raise
        finally:
            self.cache.held = None
        tail.token_ids.append(token)
        tail.filled = [tail.slots + 1] * len(tail.filled)
        if self.cache.evidence is not None and self.cache.memories:
            self.cache.evidence.touch(torch.cat([layer.texts for layer in self._layers]))
        return hidden

    def release(self) -> None:
        """Bring the index up to the tokens that were run meanwhile; a selection has to follow."""
        tail, self._left = self.cache.tail, 0
        if self._begun and tail.slots > self._begun:
            first = tail.index.first_changed(self._begun)
            for layer in range(len(tail.filled)):
                tail.index.update(layer, first, tail.pages.rows(layer, first, tail.slots)[0])
        self._begun = 0

    # --- what is captured

    def _work(self) -> Tensor:
        return self._forward(self._token)

    def append(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Put a token's key and value [Hkv, 1, D] behind what the last region holds."""
        layer = self._layers[number]
        lengths, data = layer.places.lengths[:, -1], layer.pages.data.view(-1)
        dim = torch.arange(keys.shape[-1], device=keys.device)
        for at, x in ((layer.pages.keys, keys), (layer.pages.values, values)):
            places = (at[:, -1] + lengths * keys.shape[-1])[:, None] + dim
            data[places] = x[:, 0].to(data.dtype)
        lengths += 1
        layer.places.query.add_(1)

    def attend(self, number: int, q: Tensor, scale: float) -> Tensor:
        """Attention of the newest token, [Hq, 1, D] like q; counts where it looked."""
        layer, cache = self._layers[number], self.cache
        kv_heads, size = cache.shape.kv_heads, layer.pages.region_tokens
        heads = q.shape[0] // kv_heads
        longest = cache.get_seq_length() + self.every
        if self.spec.attention.positions != "original":
            longest = layer.pages.keys.shape[1] * size
        rope = self.spec.rope(longest, q)
        found = decode_attention(q.view(kv_heads, heads, -1), layer.pages, layer.places, rope, scale=scale)
        mass = found.mass.flatten(0, 1)  # [Hkv * K, L]
        valid = (torch.arange(size, device=q.device) < layer.places.lengths[..., None]).flatten(0, 1)
        cache.tail.mass[number].view(-1, size).index_add_(0, layer.rows, mass * layer.own)
        cache.tail.exposure[number].view(-1, size).index_add_(0, layer.rows, heads * valid * layer.own)
        if cache.evidence is not None and cache.memories:
            cache.evidence.weigh(layer.texts, mass * layer.seen)
        return found.out.view(kv_heads * heads, 1, -1)
