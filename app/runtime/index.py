"""RegionIndex: what finds a region again, per layer and KV head: means of neighbouring raw keys."""

import torch
from torch import Tensor

from app.kernels.regions import sub_means
from app.runtime.shape import MemoryShape, from_bytes, to_bytes


class RegionIndex:
    """Key means of one text, layer by layer, with spare room at the end.

    Attributes:
        means: by name (`fine`, `coarse`), a tensor [Hkv, capacity / sub, D] for each layer.
        subs: by name, keys per mean.
    """

    def __init__(self, shape: MemoryShape) -> None:
        self.shape = shape
        self.subs = {"fine": shape.attention.key_sub, "coarse": shape.attention.coarse_sub}
        self.means = {name: [self._empty(0) for _ in range(shape.layers)] for name in self.subs}

    def _empty(self, rows: int) -> Tensor:
        s = self.shape
        return torch.zeros(s.kv_heads, rows, s.head_dim, dtype=s.dtype, device=s.device)

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(t.numel() * t.itemsize for layers in self.means.values() for t in layers)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens, a multiple of `region_tokens`."""
        for name, layers in self.means.items():
            for i, old in enumerate(layers):
                layers[i] = self._empty(tokens // self.subs[name])
                layers[i][:, : old.shape[1]] = old

    def first_changed(self, start: int) -> int:
        """First token whose keys `update` must see when the text grows from `start` tokens."""
        return min(start // sub * sub for sub in self.subs.values())

    def update(self, layer: int, first: int, keys: Tensor) -> None:
        """Summarise keys [Hkv, T, D] that stand at `first` and reach the end of what is there.

        Args:
            first: a multiple of every `sub`.
        """
        for name, sub in self.subs.items():
            means = sub_means(keys, sub)
            target = self.means[name][layer]
            target[:, first // sub : first // sub + means.shape[1]] = means.to(target.dtype)

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

    def copy_from(self, other: "RegionIndex") -> None:
        """Take over what another holds; both have the same room."""
        for name, layers in self.means.items():
            for mine, theirs in zip(layers, other.means[name], strict=True):
                mine.copy_(theirs)

    def export_rows(self, start: int, end: int) -> bytes:
        """Means of the tokens [start, end), all layers."""
        return b"".join(
            to_bytes(self.means[name][layer][:, start // sub : -(-end // sub)])
            for layer in range(self.shape.layers)
            for name, sub in self.subs.items()
        )

    def import_rows(self, start: int, tokens: int, data: bytes) -> None:
        """Put back what `export_rows` gave.

        Raises:
            ValueError: the bytes do not have the size that the tokens and this memory's shape ask for.
        """
        s, offset = self.shape, 0
        for layer in range(s.layers):
            for name, sub in self.subs.items():
                count = -(-tokens // sub)
                size = s.kv_heads * count * s.head_dim * s.dtype.itemsize
                part = from_bytes(data[offset : offset + size], s.dtype, (s.kv_heads, count, s.head_dim))
                self.means[name][layer][:, start // sub : start // sub + count] = part.to(s.device)
                offset += size
        if offset != len(data):
            raise ValueError(f"index of {len(data)} bytes, expected {offset}")
