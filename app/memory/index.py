"""RegionIndex: what finds a region again, per layer and KV head: means of neighbouring raw keys, and their tree."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from app.kernels.codes import LEAST_AXES, Basis, TextCodes
from app.kernels.layout import BLOCK
from app.kernels.regions import sub_bounds, sub_means
from app.kernels.tree import CLUSTER, SPAN, Level, cluster_span, node_radii, sealed_nodes
from app.memory.pools import zeros
from app.memory.shape import MemoryShape, from_bytes, to_bytes


class RegionIndex:
    """Key means of one text, layer by layer, with spare room at the end.

    Attributes:
        means: by name (`fine`, `coarse`), a tensor [Hkv, capacity / sub, D] for each layer; with `minmax` scores, the
            largest and the smallest keys instead, D twice.
        subs: by name, keys per mean.
        levels: of each layer, the tree over the fine means, lowest level first. Only nodes over whole spans count.
        sketch: what single queries read of it.
        on_host: names of the means, and `levels`, that lie on the host.
    """

    def __init__(self, shape: MemoryShape) -> None:
        self.shape, a = shape, shape.attention
        self.subs = {"fine": a.key_sub, "coarse": a.coarse_sub}
        self.width = shape.head_dim * (2 if a.score == "minmax" else 1)
        self._summarise = sub_bounds if a.score == "minmax" else sub_means
        self.on_host: frozenset[str] = frozenset()
        self.means = {name: [self._empty(name, 0) for _ in range(shape.layers)] for name in self.subs}
        self.levels: list[list[Level]] = [[] for _ in range(shape.layers)]
        self.sketch = Sketch(self)

    def _empty(self, name: str, rows: int) -> Tensor:
        s = self.shape
        return zeros(s.kv_heads, rows, self.width, dtype=s.dtype, device=s.device, host=name in self.on_host)

    def _empty_level(self, nodes: int) -> Level:
        s, host = self.shape, "levels" in self.on_host
        return Level(
            nodes=zeros(s.kv_heads, nodes, self.width + 1, dtype=s.dtype, device=s.device, host=host),
            children=zeros(s.kv_heads, nodes, CLUSTER, dtype=torch.int32, device=s.device, host=host),
        )

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(self.parts(self.capacity).values()) + self.sketch.size_bytes

    @property
    def host_bytes(self) -> int:
        """Those of them that lie on the host because the device's share is used up."""
        return sum(size for name, size in self.parts(self.capacity).items() if name in self.on_host)

    @property
    def capacity(self) -> int:
        """Tokens that there is room for."""
        return self.means["fine"][0].shape[1] * self.subs["fine"]

    def parts(self, tokens: int) -> dict[str, int]:
        """Bytes by name of what room for `tokens` takes, but for the sketch; what is read most often comes first."""
        s, nodes = self.shape, [tokens // self.subs["fine"]]
        while s.attention.searches_tree and nodes[-1]:
            nodes.append(sealed_nodes(nodes[-1]))
        node = (self.width + 1) * s.dtype.itemsize + CLUSTER * torch.int32.itemsize
        means = {name: tokens // self.subs[name] * self.width * s.dtype.itemsize for name in ("coarse", "fine")}
        return {name: n * s.layers * s.kv_heads for name, n in {"levels": sum(nodes[1:]) * node, **means}.items()}

    def reserve(self, tokens: int, on_host: frozenset[str] = frozenset()) -> None:
        """Make room for `tokens` tokens, a multiple of `region_tokens`, and place what it holds."""
        self.on_host = on_host
        for name, layers in self.means.items():
            for i, old in enumerate(layers):
                layers[i] = self._empty(name, tokens // self.subs[name])
                layers[i][:, : old.shape[1]] = old
        if self.shape.attention.searches_tree:
            self.levels = [self._grown(levels, tokens // self.subs["fine"]) for levels in self.levels]

    def _grown(self, levels: list[Level], fine: int) -> list[Level]:
        """The same tree with room for that of `fine` key means."""
        grown: list[Level] = []
        nodes = sealed_nodes(fine)
        while nodes:
            level = self._empty_level(nodes)
            if len(grown) < len(levels):
                for new, old in zip(level.tensors(), levels[len(grown)].tensors(), strict=True):
                    new[:, : old.shape[1]] = old
            grown.append(level)
            nodes = sealed_nodes(nodes)
        return grown

    def first_changed(self, start: int) -> int:
        """First token whose keys `update` must see when the text grows from `start` tokens."""
        return min(start // sub * sub for sub in self.subs.values())

    def update(self, layer: int, first: int, keys: Tensor) -> None:
        """Summarise keys [Hkv, T, D] that stand at `first` and reach the end of what is there.

        Args:
            first: a multiple of every `sub`.
        """
        for name, sub in self.subs.items():
            means = self._summarise(keys, sub)
            target = self.means[name][layer]
            target[:, first // sub : first // sub + means.shape[1]] = means.to(target.dtype)
        self.sketch.cut(layer, first // self.shape.attention.region_tokens)
        self._seal(layer, first // self.subs["fine"], (first + keys.shape[1]) // self.subs["fine"])

    def _seal(self, layer: int, first: int, end: int) -> None:
        """Cluster the spans of every level that the fine means [first, end) complete."""
        fine = self.means["fine"][layer]
        below = fine
        for number, level in enumerate(self.levels[layer]):
            spans = range(first // SPAN, end // SPAN)
            for span in spans:
                here = slice(span * SPAN, (span + 1) * SPAN)
                there = slice(sealed_nodes(here.start), sealed_nodes(here.stop))
                means, members = cluster_span(below[:, here].float(), self.shape.attention.tree)
                level.means[:, there] = means.to(level.means.dtype)
                level.children[:, there] = members + here.start
                level.radii[:, there] = node_radii(fine, self.levels[layer], number, there).to(level.radii.dtype)
            if not spans:
                return
            first, end = sealed_nodes(first), sealed_nodes(end)
            below = level.means

    def freeze(self, tokens: int) -> None:
        """End the text: the short last region's missing means repeat its last one, so that a max ignores them."""
        region = self.shape.attention.region_tokens
        whole = -(-tokens // region) * region
        for name, sub in self.subs.items():
            used = -(-tokens // sub)
            for means in self.means[name]:
                means[:, used : whole // sub] = means[:, used - 1 : used]

    def summaries(self, layer: int, name: str, regions: int) -> Tensor:
        """Means of the first `regions` regions, [Hkv, R, F, D]."""
        per_region = self.shape.attention.region_tokens // self.subs[name]
        return self.means[name][layer].unflatten(1, (-1, per_region))[:, :regions]

    def take(self, layer: int, name: str, heads: Tensor, regions: Tensor) -> Tensor:
        """Means of n regions, each of one KV head, [n, F, D].

        Args:
            heads, regions: [n], int64.
        """
        means = self.means[name][layer]
        per_region = self.shape.attention.region_tokens // self.subs[name]
        rows = heads * (means.shape[1] // per_region) + regions
        return means.view(-1, per_region * means.shape[2]).index_select(0, rows).unflatten(-1, (per_region, -1))

    def tree(self, layer: int) -> tuple[Tensor, list[Level]]:
        """(fine key means [Hkv, capacity, D], the levels over them), as `app.kernels.tree.search` takes them."""
        return self.means["fine"][layer], self.levels[layer]

    def copy_from(self, other: "RegionIndex") -> None:
        """Take over what another holds; both have the same room."""
        for name, layers in self.means.items():
            for mine, theirs in zip(layers, other.means[name], strict=True):
                mine.copy_(theirs)
        for levels, others in zip(self.levels, other.levels, strict=True):
            for level, twin in zip(levels, others, strict=True):
                for mine, theirs in zip(level.tensors(), twin.tensors(), strict=True):
                    mine.copy_(theirs)

    def _parts(self, start: int, end: int) -> Iterator[tuple[Tensor, slice]]:
        """What belongs to the tokens [start, end): (tensor, rows) of means, and of the tree's nodes they complete."""
        for layer in range(self.shape.layers):
            for name, sub in self.subs.items():
                yield self.means[name][layer], slice(start // sub, -(-end // sub))
            first, last = start // self.subs["fine"], end // self.subs["fine"]
            for level in self.levels[layer]:
                first, last = sealed_nodes(first), sealed_nodes(last)
                if first == last:
                    break
                for tensor in level.tensors():
                    yield tensor, slice(first, last)

    def export_rows(self, start: int, end: int) -> bytes:
        """Means of the tokens [start, end), and the tree's nodes that they complete, all layers."""
        return b"".join(to_bytes(tensor[:, rows]) for tensor, rows in self._parts(start, end))

    def import_rows(self, start: int, tokens: int, data: bytes) -> None:
        """Put back what `export_rows` gave.

        Raises:
            ValueError: the bytes do not have the size that the tokens and this memory's shape ask for.
        """
        offset = 0
        for tensor, rows in self._parts(start, start + tokens):
            target = tensor[:, rows]
            size = target.numel() * target.itemsize
            target.copy_(from_bytes(data[offset : offset + size], tensor.dtype, tuple(target.shape)))
            offset += size
        if offset != len(data):
            raise ValueError(f"index of {len(data)} bytes, expected {offset}")

    def import_groups(self, first: int, rows: Sequence[bytes]) -> None:
        """Put back the rows of many whole groups, the first of which has the number `first`.

        Raises:
            ValueError: a row does not have the size that this memory's shape asks for.
        """
        s, size = self.shape, self.shape.attention.group_tokens
        lengths = [s.kv_heads * (size // sub) * self.width * s.dtype.itemsize for sub in self.subs.values()]
        plain = [group for group, row in enumerate(rows) if len(row) == s.layers * sum(lengths)]  # complete no nodes
        if plain:
            data = torch.frombuffer(bytearray().join([rows[group] for group in plain]), dtype=torch.uint8)
            parts = iter(data.view(len(plain), -1).split(lengths * s.layers, dim=1))
            places = (torch.tensor(plain) + first).to(s.device)
            for layer in range(s.layers):
                for name, sub in self.subs.items():
                    part = next(parts).view(s.dtype).unflatten(1, (s.kv_heads, size // sub, -1))
                    target = self.means[name][layer][:, : (first + len(rows)) * size // sub]
                    target.unflatten(1, (-1, size // sub)).index_copy_(1, places, part.transpose(0, 1).to(s.device))
        for group in sorted(set(range(len(rows))) - set(plain)):
            self.import_rows((first + group) * size, size, rows[group])


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
