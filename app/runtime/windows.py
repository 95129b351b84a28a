"""Windows: what the tokens of an answer attend to, rotated once and kept side by side, where no GPU kernel reads slots.

The first token chooses regions (all of them where everything fits) and copies their keys, rotated, and their values
into a window of each layer. The tokens after it add themselves at its end: a step is two products a layer. What they
leave behind goes to the tail together when the choice ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.layout import UNTURNED, Places
from app.kernels.rope import rotate
from app.runtime.attention import look_from
from app.runtime.cache import RegionCache, gather
from app.runtime.policies import AttentionSpec

MOST_BYTES = 1 << 30  # of all windows together; where they would take more, each token chooses for itself
MOST_STEPS = 256  # room that a window has for tokens of the answer


@dataclass
class Window:
    """What one layer attends to; room for tokens of the answer behind it.

    Attributes:
        keys, values: [Hkv, D, room], keys rotated.
        filled: columns in use, `chosen` when it was made; whole blocks of `region_tokens`, the last may be short.
        regions: [Hkv, K] of the cache, one for each block; those of the answer follow the last one.
        lengths: [Hkv, K] tokens of each block that counted when it was made.
        hidden: [Hkv, 1, K * L] 0 or -inf; None when all columns count.
        query: [Hkv] position of the query that chose; like_first: whether the first layer's is the same.
    """

    keys: Tensor
    values: Tensor
    filled: int
    chosen: int
    regions: Tensor
    lengths: Tensor
    hidden: Tensor | None
    query: Tensor
    like_first: bool


class Windows:
    """Steps of one answer that share choices of regions.

    Attributes:
        every: tokens that share a choice, the one that chose included.
        settled: whether tokens share for longer where nothing that may be seen is left out: there is no choice.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        cache: RegionCache,
        every: int,
        *,
        settled: bool = True,
    ) -> None:
        self.spec, self.cache, self.every, self.settled = spec, cache, every, settled
        self._size = cache.shape.attention.region_tokens
        self._windows: list[Window | None] = [None] * cache.shape.layers
        self._choosing, self._left, self._steps, self._heads = False, 0, 0, 1
        self._tokens: list[int] = []
        self._new = torch.empty(0)  # [layers, Hkv, 2, steps, D], raw, in the cache's dtype
        self._looked = self._mass = torch.empty(0)  # [layers, Hkv, room] of the last token, of all tokens
        self._turn: tuple[Tensor, Tensor] | None = None  # of the first layer, for the token that is run
        self._texts: tuple[int, Tensor, Tensor, Tensor] | None = None

    # --- when they are used

    @property
    def goes_on(self) -> bool:
        """Whether the next token can be run without a choice."""
        return self._left > 0

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """While a token is run that chooses for those after it, where that pays."""
        self.release()
        steps = self._steps_at(self.cache.tail.slots + 1)
        if steps < 1:
            yield
            return
        self._choosing, self._left, self.cache.held = True, steps, self
        try:
            yield
        except BaseException:
            self._steps = self._left = 0
            raise
        finally:
            self._choosing, self.cache.held = False, None
        self._count_step()

    def _steps_at(self, end: int) -> int:
        """How many tokens may share the choice of one at `end` of the tail."""
        shape, spec = self.cache.shape, self.spec
        if shape.compaction or any(memory.dropped for memory in self.cache.memories):
            return 0
        shared = min(self.every - 1, -end % self._size)  # a choice ends with the region that grows
        steps = min(max(shared, self._unchanged(end) if self.settled else 0), MOST_STEPS)
        seen = self.cache.base_tokens + end
        if not spec.policy.sees_all and not spec.attention.dense_layers:
            seen = min(seen, spec.attention.budget_tokens)
        width = shape.layers * shape.kv_heads * shape.head_dim * 2 * torch.float32.itemsize
        return steps if (seen + steps) * width <= MOST_BYTES else 0

    def _unchanged(self, end: int) -> int:
        """How many tokens may follow one at `end` of the tail that attend to all that may be seen."""
        spec, cache, a = self.spec, self.cache, self.spec.attention
        room = min(spec.budget_for(layer) for layer in range(cache.shape.layers)) - cache.base_tokens - end
        if room >= 0:
            return room
        if not spec.policy.scores or a.positions == "one_distance":
            return 0
        lengths = cache.table(end)[1]
        forced = a.forced_sinks + a.local_regions + 1  # take a place each, muted or not
        free = a.budget_regions - forced - int((lengths > 0).sum())
        return max(0, free * self._size)

    # --- steps

    @contextmanager
    def stepping(self, token: int) -> Iterator[None]:
        """While a token is run through the model with the choice that was made."""
        assert self.goes_on and not self._choosing
        self._left -= 1
        self.cache.held, self._turn = self, None
        try:
            yield
        except BaseException:  # some layers may have taken the token, others not
            self._left = 0
            for window in self._windows:
                assert window is not None
                window.filled = window.chosen + len(self._tokens)
            raise
        finally:
            self.cache.held = None
        self._tokens.append(token)
        self._count_step()

    def append(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Take a token's raw key and value [Hkv, 1, D]."""
        if self._choosing:
            self.cache.tail.append(number, keys, values)
            return
        new = self._new[number, :, :, len(self._tokens)]
        new[:, 0], new[:, 1] = keys[:, 0], values[:, 0]  # rounded as the cache does

    def attend(self, number: int, q: Tensor, scale: float) -> Tensor:
        """Attention of the newest token, [Hq, 1, D] like q."""
        kv_heads = self.cache.shape.kv_heads
        q = q.view(kv_heads, -1, q.shape[-1])
        self._heads = q.shape[1]
        if self._choosing:
            window = self._windows[number] = self._choose(number, q)
            cos, sin = self._rope(q)
            q = rotate(q, cos[window.query][:, None], sin[window.query][:, None])
        else:
            window = self._windows[number]
            assert window is not None
            key, value = self._new[number, :, :, len(self._tokens)].to(q.dtype).unbind(1)
            turned = rotate(torch.cat([q, key[:, None]], dim=1), *self._angles(window, q))
            q = turned[:, :-1]
            window.keys[:, :, window.filled] = turned[:, -1]
            window.values[:, :, window.filled] = value
            window.filled += 1
        logits = self._logits(window, q, scale)
        weights = logits.softmax(-1)
        self._looked[number, :, : window.filled] = weights.sum(1)
        out = weights.to(q.dtype) @ window.values[:, :, : window.filled].transpose(1, 2)
        return out.view(-1, 1, q.shape[-1])

    def _angles(self, window: Window, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin), [Hkv, 1, D] each, of the newest token."""
        if window.like_first and self._turn is not None:
            return self._turn
        place = window.query + len(self._tokens) + 1
        cos, sin = (x[place][:, None] for x in self._rope(like))
        if window is self._windows[0]:
            self._turn = cos, sin
        return cos, sin

    def _logits(self, window: Window, q: Tensor, scale: float) -> Tensor:
        logits = (q @ window.keys[:, :, : window.filled]).to(torch.promote_types(q.dtype, torch.float32)) * scale
        if window.hidden is not None:
            logits[..., : window.hidden.shape[-1]] += window.hidden
        return logits

    def _rope(self, like: Tensor) -> tuple[Tensor, Tensor]:
        a, longest = self.spec.attention, self.cache.base_tokens + self.cache.tail.filled[0]
        if a.positions != "original" and not self.spec.policy.sees_all and not a.dense_layers:
            longest = min(longest, a.budget_tokens + self._size)
        return self.spec.rope(longest + MOST_STEPS + 1, like)

    def _choose(self, number: int, q: Tensor) -> Window:
        """What the token that chooses sees in a layer, itself included; it is the tail's last."""
        regions, places = look_from(self.spec, self.cache, number, q[None, :, :, None])
        regions, places = _without_empty(regions, places)
        size, (kv_heads, count) = self._size, regions.shape
        filled = (count - 1) * size + int(places.lengths[0, -1])
        k, v = (x[0, :, :filled].to(q.dtype) for x in gather(self.cache, number, regions[None]))
        window = Window(
            torch.empty(kv_heads, q.shape[-1], filled + self._left, dtype=q.dtype),
            torch.empty(kv_heads, q.shape[-1], filled + self._left, dtype=q.dtype),
            filled,
            filled,
            regions,
            places.lengths,
            _hidden(places.lengths, size, filled),
            places.query,
            bool(number) and torch.equal(places.query, self._windows[0].query),
        )
        window.keys[:, :, :filled] = self._turned(k, places).transpose(1, 2)
        window.values[:, :, :filled] = v.transpose(1, 2)
        self._make_room(number, window)
        return window

    def _turned(self, k: Tensor, places: Places) -> Tensor:
        """Keys [Hkv, S, D] at the positions that `places` gives them."""
        cos, sin = self._rope(k)
        inside = torch.arange(self._size)
        still = places.starts == UNTURNED
        at = (places.starts.clamp(min=0)[..., None] + inside * ~still[..., None]).flatten(1)[:, : k.shape[1]]
        if bool((at == torch.arange(k.shape[1])).all()):
            return rotate(k, cos[: k.shape[1]], sin[: k.shape[1]])
        at = at.clamp(max=len(cos) - 1)
        return rotate(k, cos[at], sin[at])

    def _make_room(self, number: int, window: Window) -> None:
        """Books for all layers, when the first of them has chosen."""
        shape, room = self.cache.shape, -(-window.keys.shape[2] // self._size) * self._size
        if number == 0 or room > self._looked.shape[2]:
            looked = torch.zeros(shape.layers, shape.kv_heads, room)
            if number:  # layers that see everything have more
                looked[:, :, : self._looked.shape[2]] = self._looked
            self._looked, self._mass = looked, torch.zeros_like(looked)
            self._new = torch.empty(shape.layers, shape.kv_heads, 2, self._left, shape.head_dim, dtype=shape.dtype)
            self._texts, self._steps = None, 0
        self._looked[number] = 0

    # --- what they leave behind

    def _count_step(self) -> None:
        self._steps += 1
        self._mass += self._looked
        evidence = self.cache.evidence
        if evidence is None or not self.cache.memories:
            return
        texts, shares, touched = self._seen_texts()
        evidence.weigh(texts, self._looked[:, :, : self._whole].reshape(-1, self._size), shares)
        evidence.touch(touched)

    @property
    def _whole(self) -> int:
        """Columns of the blocks that were chosen."""
        return max(window.regions.shape[1] for window in self._windows if window) * self._size

    def _seen_texts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of all layers' blocks: regions [N] of the memories, 1.0 for those that are evidence; those once each."""
        cache, filled = self.cache, self.cache.tail.filled[0] + len(self._tokens)
        newest = (filled - 1) // self._size  # what is near moves on with it
        if self._texts is None or self._texts[0] != newest:
            far, blocks = cache.far_regions(filled), self._whole // self._size
            ids = torch.full((len(self._windows), cache.shape.kv_heads, blocks), far)
            for number, window in enumerate(self._windows):
                assert window is not None
                ids[number, :, : window.regions.shape[1]] = window.regions
            seen = ids < far
            self._texts = newest, (ids * seen).flatten(), seen.flatten().float(), ids[seen].unique()
        return self._texts[1:]

    def release(self) -> None:
        """Bring the tail up to the tokens that were run meanwhile, and forget the choice."""
        count, windows = len(self._tokens), self._windows
        if self._steps:
            tail = self.cache.tail
            for number in range(len(windows)) if count else ():
                tail.append(number, *(x[:, :count] for x in self._new[number].unbind(1)))
            tail.token_ids += self._tokens
            for number, window in enumerate(windows):
                assert window is not None
                self._book(number, window, count)
        self._windows, self._tokens = [None] * len(windows), []
        self._choosing, self._left, self._steps, self._texts = False, 0, 0, None
        self._looked = self._mass = self._new = torch.empty(0)

    def _book(self, number: int, window: Window, count: int) -> None:
        """Add mass and exposure of the tail's own tokens to what it knows of them."""
        cache, size, tail = self.cache, self._size, self.cache.tail
        heads, own = cache.shape.kv_heads, window.regions - cache.base_regions
        per_head, blocks = tail.mass[number].shape[1] // size, self._mass.shape[2] // size
        more = own[:, -1:] + torch.arange(1, blocks - own.shape[1] + 1)  # regions that the answer began
        own = torch.cat([own, more], dim=1)
        mass = self._mass[number].unflatten(1, (-1, size))
        seen = (torch.arange(size) < window.lengths[..., None]).flatten(1).float() * self._steps
        exposure = torch.zeros_like(self._mass[number])
        exposure[:, : seen.shape[1]] = seen
        exposure[:, window.filled - count : window.filled] = torch.arange(count, 0, -1).float()
        exposure *= self._heads
        kept = (own >= 0) & (own < per_head)
        rows = (torch.arange(heads)[:, None] * per_head + own)[kept]
        tail.mass[number].view(-1, size).index_add_(0, rows, mass[kept])
        tail.exposure[number].view(-1, size).index_add_(0, rows, exposure.unflatten(1, (-1, size))[kept])


def _without_empty(regions: Tensor, places: Places) -> tuple[Tensor, Places]:
    """The regions [1, Hkv, K] of which some token counts: as [Hkv, K'], where some head has so many."""
    counts = places.lengths > 0
    if counts.all():
        return regions[0], places
    kept = counts.int().argsort(dim=1, stable=True)[:, -int(counts.sum(1).max()) :]
    return regions[0].gather(1, kept), Places(
        places.lengths.gather(1, kept), places.starts.gather(1, kept), places.query
    )


def _hidden(lengths: Tensor, size: int, filled: int) -> Tensor | None:
    """What is added to the logits of the first `filled` columns; None where all of them count."""
    valid = (torch.arange(size) < lengths[..., None]).flatten(1)[:, :filled]
    if valid.all():
        return None
    return torch.zeros(valid.shape).masked_fill(~valid, float("-inf"))[:, None]
