"""KVPages: raw (un-rotated) keys and values of one text, found again by region."""

import torch
from torch import Tensor

from app.runtime.shape import MAX_ROW_BYTES, MemoryShape, from_bytes, to_bytes


class KVPages:
    """K and V of one text, layer by layer: [Hkv, capacity, D] each, with spare room at the end."""

    def __init__(self, shape: MemoryShape) -> None:
        self.shape = shape
        self.k = [self._empty(0) for _ in range(shape.layers)]
        self.v = [self._empty(0) for _ in range(shape.layers)]

    def _empty(self, tokens: int) -> Tensor:
        s = self.shape
        return torch.zeros(s.kv_heads, tokens, s.head_dim, dtype=s.dtype, device=s.device)

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(t.numel() * t.itemsize for t in (*self.k, *self.v))

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens, a multiple of `region_tokens`."""
        for pages in (self.k, self.v):
            for i, old in enumerate(pages):
                pages[i] = self._empty(tokens)
                pages[i][:, : old.shape[1]] = old

    def append(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Put one segment, [Hkv, T, D] each, behind the first `start` tokens."""
        self.k[layer][:, start : start + keys.shape[1]] = keys
        self.v[layer][:, start : start + keys.shape[1]] = values

    def rows(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """(k, v) of consecutive tokens, [Hkv, end - start, D] each."""
        return self.k[layer][:, start:end], self.v[layer][:, start:end]

    def take(self, layer: int, heads: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(k, v) of n regions, each of one KV head: [n, L, D] each; beyond the text's end they hold anything finite.

        Args:
            heads, regions: [n], int64.
        """
        size = self.shape.attention.region_tokens
        rows = heads * (self.k[layer].shape[1] // size) + regions

        def pick(pages: Tensor) -> Tensor:
            return pages.view(-1, size * self.shape.head_dim).index_select(0, rows).unflatten(-1, (size, -1))

        return pick(self.k[layer]), pick(self.v[layer])

    def keep(self, layer: int, slots: Tensor) -> None:
        """Keep only the given slots of each KV head, [Hkv, S], moved to the front in this order."""
        index = slots[..., None].expand(-1, -1, self.shape.head_dim)
        for pages in (self.k[layer], self.v[layer]):
            pages[:, : slots.shape[1]] = pages.gather(1, index)

    def copy_from(self, other: "KVPages") -> None:
        """Take over what another holds; both have the same room."""
        for mine, theirs in zip((*self.k, *self.v), (*other.k, *other.v), strict=True):
            mine.copy_(theirs)

    def export_rows(self, start: int, end: int) -> list[bytes]:
        """Stored rows of at most 1 MiB: each holds K, then V, of a bundle of layers, or a piece of one larger layer."""
        bundle = self.shape.bundle_layers
        rows = [to_bytes(torch.stack(self.rows(layer, start, end))) for layer in range(self.shape.layers)]
        bundles = [b"".join(rows[i : i + bundle]) for i in range(0, len(rows), bundle)]
        return [b[i : i + MAX_ROW_BYTES] for b in bundles for i in range(0, len(b), MAX_ROW_BYTES)]

    def import_rows(self, start: int, tokens: int, kv: list[bytes]) -> None:
        """Put back what `export_rows` gave.

        Raises:
            ValueError: the bytes do not have the size that the tokens and this memory's shape ask for.
        """
        s = self.shape
        pairs = from_bytes(b"".join(kv), s.dtype, (s.layers, 2, s.kv_heads, tokens, s.head_dim)).to(s.device)
        for layer, (k, v) in enumerate(pairs):
            self.append(layer, start, k, v)
