"""Sketch: the int8 codes of an index that single queries read; made when the first of them comes, never stored."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.kernels.codes import BLOCK, NOT_SEEN, Basis, Clusters, TextCodes
from app.kernels.regions import region_scores
from app.kernels.tree import CLUSTER, sealed_nodes

if TYPE_CHECKING:
    from app.runtime.index import RegionIndex

PIECE_NODES = 4096  # encoded at a time


class Sketch:
    """Codes of a memory's regions, layer by layer, in text order or by clusters: whichever way it is searched.

    They grow as the text does: only regions and spans that are whole are encoded. The axes come from the first regions
    alone, so that they are the same whenever they are made.
    """

    def __init__(self, index: "RegionIndex") -> None:
        self.index = index
        layers = index.shape.layers
        self._bases: list[Basis | None] = [None] * layers
        self._codes: list[TextCodes | None] = [None] * layers
        self._encoded = [0] * layers
        self._clusters: list[Clusters | None] = [None] * layers

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        held = [t for part in (*self._codes, *self._clusters) if part is not None for t in part.tensors()]
        return sum(t.numel() * t.itemsize for t in held)

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
            self._bases[layer] = self._codes[layer] = self._clusters[layer] = None
            self._encoded[layer] = 0
            return
        self._encoded[layer] = min(self._encoded[layer], regions)
        clusters, nodes = self._clusters[layer], sealed_nodes(regions * self._per_region)
        if clusters is not None and nodes < clusters.nodes.shape[1]:
            self._clusters[layer] = clusters.first(nodes) if nodes else None

    def _basis(self, layer: int) -> Basis:
        basis = self._bases[layer]
        if basis is None:
            first = self.index.means["fine"][layer][:, : self.least_regions * self._per_region]
            self._bases[layer] = basis = Basis.of(first)
        return basis

    def seals(self, stop: int) -> bool:
        """Whether the first `stop` regions hold enough whole spans to search them by tree."""
        return sealed_nodes(stop * self._per_region) * CLUSTER > self.least_regions * self._per_region

    def scores(self, layer: int, query: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """Rough scores of queries [Hkv, Q, D] against the first `stop` regions, all of them whole.

        Returns:
            ([Hkv, Q, stop], what is to be added to all of a query's scores [Hkv, Q]), float32.
        """
        turned, shift = self._basis(layer).of_queries(query)
        return self._text(layer, stop).scan(turned, stop), shift

    def found(self, layer: int, query: Tensor, stop: int, beam: int) -> tuple[Tensor, Tensor]:
        """The same; of regions in sealed spans those that a tree finds, and NOT_SEEN for the others."""
        turned, shift = self._basis(layer).of_queries(query)
        sealed, width = sealed_nodes(stop * self._per_region), self._per_region
        rough = query.new_full((*query.shape[:2], stop), NOT_SEEN)
        end = sealed * CLUSTER // width  # the region in which the last span ends, whole or not
        means = self.index.summaries(layer, "fine", stop)[:, end:]
        rough[..., end:] = region_scores(query.to(means.dtype), means) - shift[..., None]
        self._upto(layer, sealed).open(turned, sealed, beam, rough)
        return rough, shift

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

    def _upto(self, layer: int, wanted: int) -> Clusters:
        """At least the first `wanted` clusters."""
        held, basis = self._clusters[layer], self._basis(layer)
        fine, levels = self.index.tree(layer)
        parts = [held] if held else []
        for first in range(held.nodes.shape[1] if held else 0, wanted, PIECE_NODES):
            children = levels[0].children[:, first : min(first + PIECE_NODES, wanted)].long()
            heads = torch.arange(len(fine), device=fine.device)[:, None]
            members = basis.of_keys(fine[heads, children.flatten(1)]).unflatten(1, (-1, CLUSTER))
            parts.append(Clusters.of(members, children // self._per_region))
        self._clusters[layer] = held = Clusters.joined(parts) if len(parts) > 1 else parts[0]
        return held
