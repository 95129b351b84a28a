"""Memories that do not keep every token: when and what they drop. What a KV head keeps stands in slots, in text order.

A memory makes room before it grows. What it keeps then depends on what was read before, never on what comes, and, since
reading runs stretches that end at fixed places of the text, not on the size of segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from app.kernels.h2o import H2OOptions, evict, heaviest, scores

BATCH = 16  # one merge in this part of the memory at once: moving what is kept costs as much for one as for many


class Compactable(Protocol):
    """What a compaction sees of a memory (`RegionMemory`), and how it says what stays."""

    shape: Any
    pages: Any
    slots: int
    levels: list[int]
    filled: list[int]
    mass: list[Tensor]
    exposure: list[Tensor]

    def keep(self, layer: int, kept: Tensor) -> None: ...


@dataclass(frozen=True)
class Compaction:
    """How a memory stays within `most_slots`.

    Attributes:
        stretch_tokens: tokens that are run together at most; stretches end at its multiples.
    """

    most_slots: int
    stretch_tokens: int
    options: H2OOptions

    def make_room(self, memory: Compactable, tokens: int) -> None:
        """Drop what must go so that `tokens` more fit; at most a stretch."""
        raise NotImplementedError


@dataclass(frozen=True)
class Eviction(Compaction):
    """H2O: each KV head of each layer keeps its sinks, its newest tokens and its heavy hitters."""

    def make_room(self, memory: Compactable, tokens: int) -> None:
        if memory.slots + tokens <= self.most_slots:
            return
        size = memory.slots
        for layer in range(memory.shape.layers):
            mass, exposure = memory.mass[layer][:, :size], memory.exposure[layer][:, :size]
            values = _value_lengths(memory, layer, size, self.options)
            memory.keep(layer, evict(mass, exposure, self.most_slots, tokens, self.options, values))


@dataclass(frozen=True)
class Merging(Compaction):
    """Recursive merging: two neighbouring regions keep the heavier half of their slots in the room of one.

    Attributes:
        spared_regions: the latest regions, which are not merged yet.
    """

    spared_regions: int

    def make_room(self, memory: Compactable, tokens: int) -> None:
        a = memory.shape.attention
        size = a.region_tokens
        excess = memory.slots + tokens - self.most_slots
        if excess <= 0:
            return
        free = memory.slots // size - self.spared_regions
        wanted = max(-(-excess // size), free // BATCH)
        wanted = -(-wanted // a.merge) * a.merge  # what is left still stands at whole groups
        while wanted > 0:
            levels = [*memory.levels, *[0] * (free - len(memory.levels))][:free]
            firsts = pairs_to_merge(levels, wanted)
            for layer in range(memory.shape.layers):
                memory.keep(layer, self._kept(memory, layer, firsts))
            memory.levels = merged_levels(levels, firsts)
            wanted -= len(firsts)
            free -= len(firsts)

    def _kept(self, memory: Compactable, layer: int, firsts: Sequence[int]) -> Tensor:
        """[Hkv, S] slots that stay when the pairs that begin with these regions are merged."""
        size, held, device = memory.shape.attention.region_tokens, memory.filled[layer], memory.shape.device
        pairs = torch.tensor(list(firsts), device=device)[:, None] * size + torch.arange(2 * size, device=device)
        mass, exposure = memory.mass[layer][:, :held], memory.exposure[layer][:, :held]
        worth = scores(mass, exposure, self.options.score, _value_lengths(memory, layer, held, self.options)).clone()
        worth[:, : self.options.sinks] = float("inf")
        kept = heaviest(worth[:, pairs], size)  # [Hkv, P, L]
        mask = torch.ones_like(worth, dtype=torch.bool)
        mask[:, pairs.flatten()] = False
        mask.scatter_(1, (kept + pairs[:, :1]).flatten(1), True)
        return mask.nonzero()[:, 1].view(len(mask), -1)


def _value_lengths(memory: Compactable, layer: int, slots: int, options: H2OOptions) -> Tensor | None:
    """[Hkv, slots] float32, of the first slots, where the score asks for them."""
    return memory.pages.rows(layer, 0, slots)[1].float().norm(dim=-1) if options.score == "peak" else None


def pairs_to_merge(levels: Sequence[int], most: int) -> list[int]:
    """First regions of neighbours to be merged: those merged least often, of these the oldest; at most `most` pairs.

    Args:
        levels: how often each region was merged, in text order; at least two.
    """
    tops = [max(pair) for pair in pairwise(levels)]
    least, found, i = min(tops), [], 0
    while i < len(tops) and len(found) < most:
        taken = tops[i] == least
        if taken:
            found.append(i)
        i += 2 if taken else 1
    return found


def merged_levels(levels: Sequence[int], firsts: Sequence[int]) -> list[int]:
    """Levels once the pairs that begin with these regions are merged."""
    merged = {first: max(levels[first : first + 2]) + 1 for first in firsts}
    gone = {first + 1 for first in firsts}
    return [merged.get(i, level) for i, level in enumerate(levels) if i not in gone]
