"""Sketch: the int8 codes of an index that single queries read; made when the first of them comes, never stored."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.kernels.codes import BLOCK, LEAST_AXES, Basis, TextCodes

if TYPE_CHECKING:
    from app.memory.index import RegionIndex


class Sketch:
    """Codes of a memory's regions, layer by layer, in text order.

    They grow as the text does: only regions that are whole are encoded. The axes come from the first regions
    alone, so that they are the same whenever they are made.
    """

    def __init__(self, index: "RegionIndex") -> None:
        self.index = index
        layers = index.shape.layers
        self._bases: list[Basis | None] = [None] * layers
        self._codes: list[TextCodes | None] = [None] * layers
        self._encoded = [0] * layers

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        held = [t for part in self._codes if part is not None for t in part.tensors()]
        return sum(t.numel() * t.itemsize for t in held)

    def most_bytes(self, tokens: int) -> int:
        """What codes of a text of so many tokens take; a longer one than single queries scan has no more."""
        s, dim = self.index.shape, self.index.shape.head_dim
        regions = min(tokens, s.attention.decode_tree_from_tokens) // s.attention.region_tokens
        region = self._per_region * min(dim, max(LEAST_AXES, dim // 2)) + torch.float32.itemsize
        return s.layers * s.kv_heads * regions * region

    @property
    def _per_region(self) -> int:
        return self.index.shape.attention.region_tokens // self.index.subs["fine"]

    @property
    def least_regions(self) -> int:
        """Regions that decide the axes; there must be as many."""
        return self.index.shape.attention.candidates

    def cut(self, layer: int, regions: int) -> None:
        """Forget what was made of all but the first `regions` regions: their means changed."""
        if regions < self.least_regions:
            self._bases[layer] = self._codes[layer] = None
            self._encoded[layer] = 0
            return
        self._encoded[layer] = min(self._encoded[layer], regions)

    def _basis(self, layer: int) -> Basis:
        basis = self._bases[layer]
        if basis is None:
            first = self.index.means["fine"][layer][:, : self.least_regions * self._per_region]
            self._bases[layer] = basis = Basis.of(first)
        return basis

    def scores(self, layer: int, query: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Rough scores of queries [Hkv, Q, D] against the first `stop` regions, all of them whole.

        Returns:
            ([Hkv, Q, stop], what is to be added to all of a query's scores [Hkv, Q]), float32.
        """
        turned, shift = self._basis(layer).of_queries(query)
        return self._text(layer, stop).scan(turned, stop), shift

    def _text(self, layer: int, stop: int) -> TextCodes:
        """Codes of at least the first `stop` regions."""
        held, means, width = self._codes[layer], self.index.means["fine"][layer], self._per_region
        basis = self._basis(layer)
        if held is None or held.scales.shape[1] < stop:
            old = held
            held = TextCodes.room(means.shape[1] // width, len(means), width, basis.axes.shape[-1], means.device)
            if old is not None:
                for new, kept in zip(held.tensors(), old.tensors(), strict=True):
                    new[:, : kept.shape[1]] = kept
            self._codes[layer] = held
        for block in range(self._encoded[layer] // BLOCK, -(-stop // BLOCK)):
            first, end = max(self._encoded[layer], block * BLOCK), min(stop, (block + 1) * BLOCK)
            held.put(first, basis.of_keys(means[:, first * width : end * width]).unflatten(1, (-1, width)))
        self._encoded[layer] = max(self._encoded[layer], stop)
        return held
