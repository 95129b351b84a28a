"""RegionMemory: what one text left behind: keys, values, what finds them again, and what they were worth."""

import torch
from torch import Tensor

from app.runtime.index import RegionIndex
from app.runtime.pages import KVPages
from app.runtime.shape import MemoryShape, from_bytes, to_bytes


class RegionMemory:
    """Grows while a text is read or a chat goes on; a document's memory is frozen afterwards.

    Regions lie at multiples of `region_tokens` from the memory's own start, so a memory means the same wherever it is
    attached.

    Attributes:
        pages: keys and values. index: key means.
        mass: of each layer, [Hkv, capacity] float32: attention mass received from sampled queries (H2O).
        exposure: of each layer, [Hkv, capacity / L] float32: sampled query rows that saw the region.
        filled: slots that each layer holds.
    """

    def __init__(self, shape: MemoryShape, capacity_tokens: int = 0) -> None:
        self.shape = shape
        self.token_ids: list[int] = []
        self.filled = [0] * shape.layers
        self.capacity = 0
        self.pages, self.index = KVPages(shape), RegionIndex(shape)
        self.mass = [self._floats(0) for _ in range(shape.layers)]
        self.exposure = [self._floats(0) for _ in range(shape.layers)]
        self.reserve(capacity_tokens)

    def _floats(self, count: int) -> Tensor:
        return torch.zeros(self.shape.kv_heads, count, device=self.shape.device)

    @property
    def tokens(self) -> int:
        """Tokens that all layers hold."""
        return self.filled[-1]

    @property
    def regions(self) -> int:
        return -(-self.tokens // self.shape.attention.region_tokens)

    @property
    def groups(self) -> int:
        """Groups, the last of which may be short."""
        return -(-self.tokens // self.shape.attention.group_tokens)

    @property
    def size_bytes(self) -> int:
        """Bytes held, spare room included."""
        floats = sum(t.numel() * t.itemsize for t in (*self.mass, *self.exposure))
        return self.pages.size_bytes + self.index.size_bytes + floats

    def counts(self) -> dict[str, int]:
        """What became of the tokens, by the names of AnswerStats; kept, compressed and evicted make up all of them."""
        return {
            "tokens_kept": self.tokens,
            "tokens_compressed": 0,
            "tokens_evicted": 0,
            "tokens_quantized": 0,
        }

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in all; doubles at least, so that growth costs a constant per token."""
        region = self.shape.attention.region_tokens
        if tokens <= self.capacity:
            return
        tokens = -(-max(tokens, 2 * self.capacity if self.capacity else tokens) // region) * region
        self.pages.reserve(tokens)
        self.index.reserve(tokens)
        for layers, count in ((self.mass, tokens), (self.exposure, tokens // region)):
            for i, old in enumerate(layers):
                layers[i] = self._floats(count)
                layers[i][:, : old.shape[1]] = old
        self.capacity = tokens

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Add one segment's raw keys and values, [Hkv, T, D] each."""
        start = self.filled[layer]
        end = start + keys.shape[1]
        self.reserve(end)
        self.pages.append(layer, start, keys, values)
        first = self.index.first_changed(start)
        self.index.update(layer, first, self.pages.rows(layer, first, end)[0])
        self.filled[layer] = end

    def freeze(self) -> "RegionMemory":
        """End the text; nothing is appended afterwards."""
        self.index.freeze(self.tokens)
        return self

    def truncate(self, tokens: int) -> None:
        """Forget everything after the first `tokens` tokens; what is left is as if no more had come."""
        region = self.shape.attention.region_tokens
        first = self.index.first_changed(tokens)
        for layer in range(self.shape.layers):
            self.mass[layer][:, tokens:] = 0
            self.exposure[layer][:, -(-tokens // region) :] = 0
            if first < tokens:
                self.index.update(layer, first, self.pages.rows(layer, first, tokens)[0])
        self.filled = [tokens] * self.shape.layers
        del self.token_ids[tokens:]

    def copy(self) -> "RegionMemory":
        """An independent copy, for an answer that must not change the chat."""
        twin = RegionMemory(self.shape, self.capacity)
        twin.pages.copy_from(self.pages)
        twin.index.copy_from(self.index)
        for source, target in zip((*self.mass, *self.exposure), (*twin.mass, *twin.exposure), strict=True):
            target.copy_(source)
        twin.token_ids, twin.filled = list(self.token_ids), list(self.filled)
        return twin

    def group_range(self, group: int) -> tuple[int, int]:
        """[start, end) tokens of a group."""
        size = self.shape.attention.group_tokens
        return group * size, min((group + 1) * size, self.tokens)

    def export_group(self, group: int) -> tuple[bytes, list[bytes]]:
        """The bytes of one sealed group: (index, K/V rows of at most 1 MiB)."""
        start, end = self.group_range(group)
        return self.index.export_rows(start, end), self.pages.export_rows(start, end)

    def import_group(self, token_ids: list[int], index: bytes, kv: list[bytes]) -> None:
        """Append a group that `export_group` made; the memory must stand at a group boundary.

        Raises:
            ValueError: the bytes do not have the size that the tokens and this memory's shape ask for.
        """
        start, tokens, s = self.tokens, len(token_ids), self.shape
        assert start % s.attention.group_tokens == 0, "groups are imported in order"
        self.reserve(start + tokens)
        self.pages.import_rows(start, tokens, kv)
        self.index.import_rows(start, tokens, index)
        self.filled = [start + tokens] * s.layers
        self.token_ids += token_ids

    def export_mass(self) -> bytes:
        """H2O mass and exposure of all tokens read, float32."""
        layers = zip(self.mass, self.exposure, strict=True)
        return b"".join(to_bytes(mass[:, : self.tokens]) + to_bytes(seen[:, : self.regions]) for mass, seen in layers)

    def import_mass(self, data: bytes) -> None:
        """Put back what `export_mass` gave."""
        s, offset = self.shape, 0
        for mass, exposure in zip(self.mass, self.exposure, strict=True):
            for target, count in ((mass, self.tokens), (exposure, self.regions)):
                size = s.kv_heads * count * 4
                part = from_bytes(data[offset : offset + size], torch.float32, (s.kv_heads, count))
                target[:, :count] = part.to(s.device)
                offset += size
