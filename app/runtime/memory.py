"""RegionMemory: raw keys and values of one text, region by region, with the summaries that find them again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.regions import sub_means
from app.runtime.config import AttentionConfig

MAX_ROW_BYTES = 1 << 20  # of one stored row


@dataclass(frozen=True)
class MemoryShape:
    """What the tensors of a memory look like; equal for all memories of one engine."""

    layers: int
    kv_heads: int
    head_dim: int
    attention: AttentionConfig
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values per token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def bundle_layers(self) -> int:
        """Layers whose K and V of one group share a stored row of at most 1 MiB."""
        layer = self.token_bytes // self.layers * self.attention.group_tokens
        return max(1, min(self.layers, MAX_ROW_BYTES // layer))


@dataclass
class LayerMemory:
    """One layer's tensors. The second axis runs over tokens, sub-blocks or regions and has spare room at its end.

    Attributes:
        k, v: [Hkv, capacity, D] raw (un-rotated) keys, and values.
        fine, coarse: [Hkv, capacity / sub, D] means of `key_sub` and `coarse_sub` neighbouring keys.
        mass: [Hkv, capacity] float32, attention mass received from sampled queries (H2O).
        exposure: [Hkv, capacity / L] float32, sampled query rows that saw the region.
    """

    k: Tensor
    v: Tensor
    fine: Tensor
    coarse: Tensor
    mass: Tensor
    exposure: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.k, self.v, self.fine, self.coarse, self.mass, self.exposure


class RegionMemory:
    """Grows while a text is read or a chat goes on; a document's memory is frozen afterwards.

    Regions lie at multiples of `region_tokens` from the memory's own start, so a memory means the same wherever it is
    attached.
    """

    def __init__(self, shape: MemoryShape, capacity_tokens: int = 0) -> None:
        self.shape = shape
        self.token_ids: list[int] = []
        self.filled = [0] * shape.layers
        self.capacity = 0
        self.layers = [self._empty_layer(0) for _ in range(shape.layers)]
        self.reserve(capacity_tokens)

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
        return sum(t.numel() * t.itemsize for layer in self.layers for t in layer.tensors())

    def _empty_layer(self, tokens: int) -> LayerMemory:
        s, a = self.shape, self.shape.attention

        def zeros(count: int, *rest: int, dtype: torch.dtype = s.dtype) -> Tensor:
            return torch.zeros(s.kv_heads, count, *rest, dtype=dtype, device=s.device)

        return LayerMemory(
            k=zeros(tokens, s.head_dim),
            v=zeros(tokens, s.head_dim),
            fine=zeros(tokens // a.key_sub, s.head_dim),
            coarse=zeros(tokens // a.coarse_sub, s.head_dim),
            mass=zeros(tokens, dtype=torch.float32),
            exposure=zeros(tokens // a.region_tokens, dtype=torch.float32),
        )

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in all; doubles at least, so that growth costs a constant per token."""
        region = self.shape.attention.region_tokens
        if tokens <= self.capacity:
            return
        tokens = -(-max(tokens, 2 * self.capacity if self.capacity else tokens) // region) * region
        for i, old in enumerate(self.layers):
            new = self._empty_layer(tokens)
            for source, target in zip(old.tensors(), new.tensors(), strict=True):
                target[:, : source.shape[1]] = source
            self.layers[i] = new
        self.capacity = tokens

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Add one segment's raw keys and values, [Hkv, T, D] each."""
        start = self.filled[layer]
        end = start + keys.shape[1]
        self.reserve(end)
        memory, attention = self.layers[layer], self.shape.attention
        memory.k[:, start:end] = keys
        memory.v[:, start:end] = values
        for means, sub in ((memory.fine, attention.key_sub), (memory.coarse, attention.coarse_sub)):
            first = start // sub
            means[:, first : -(-end // sub)] = sub_means(memory.k[:, first * sub : end], sub).to(means.dtype)
        self.filled[layer] = end

    def freeze(self) -> "RegionMemory":
        """End the text: the short last region's missing key means repeat its last one, so that a max ignores them."""
        attention = self.shape.attention
        for layer in self.layers:
            for means, sub in ((layer.fine, attention.key_sub), (layer.coarse, attention.coarse_sub)):
                used = -(-self.tokens // sub)
                means[:, used : self.regions * attention.region_tokens // sub] = means[:, used - 1 : used]
        return self

    def truncate(self, tokens: int) -> None:
        """Forget everything after the first `tokens` tokens; what is left is as if no more had come."""
        attention = self.shape.attention
        for memory in self.layers:
            memory.mass[:, tokens:] = 0
            memory.exposure[:, -(-tokens // attention.region_tokens) :] = 0
            for means, sub in ((memory.fine, attention.key_sub), (memory.coarse, attention.coarse_sub)):
                first = tokens // sub
                if tokens % sub:
                    means[:, first : first + 1] = sub_means(memory.k[:, first * sub : tokens], sub).to(means.dtype)
        self.filled = [tokens] * self.shape.layers
        del self.token_ids[tokens:]

    def copy(self) -> "RegionMemory":
        """An independent copy, for an answer that must not change the chat."""
        twin = RegionMemory(self.shape, self.capacity)
        for source, target in zip(self.layers, twin.layers, strict=True):
            for a, b in zip(source.tensors(), target.tensors(), strict=True):
                b.copy_(a)
        twin.token_ids, twin.filled = list(self.token_ids), list(self.filled)
        return twin

    def group_range(self, group: int) -> tuple[int, int]:
        """[start, end) tokens of a group."""
        size = self.shape.attention.group_tokens
        return group * size, min((group + 1) * size, self.tokens)

    def export_group(self, group: int) -> tuple[bytes, list[bytes]]:
        """The bytes of one sealed group.

        Returns:
            (index, kv): the key means of all layers, and rows of at most 1 MiB: each holds K, then V, of a bundle of
            layers, or a piece of one layer where that is larger.
        """
        start, end = self.group_range(group)
        attention, bundle = self.shape.attention, self.shape.bundle_layers
        index = b"".join(
            _to_bytes(means[:, start // sub : -(-end // sub)])
            for layer in self.layers
            for means, sub in ((layer.fine, attention.key_sub), (layer.coarse, attention.coarse_sub))
        )
        rows = [_to_bytes(torch.stack([layer.k[:, start:end], layer.v[:, start:end]])) for layer in self.layers]
        bundles = [b"".join(rows[i : i + bundle]) for i in range(0, len(rows), bundle)]
        return index, [b[i : i + MAX_ROW_BYTES] for b in bundles for i in range(0, len(b), MAX_ROW_BYTES)]

    def import_group(self, token_ids: list[int], index: bytes, kv: list[bytes]) -> None:
        """Append a group that `export_group` made; the memory must stand at a group boundary.

        Raises:
            ValueError: the bytes do not have the size that the tokens and this memory's shape ask for.
        """
        start, tokens, s = self.tokens, len(token_ids), self.shape
        assert start % s.attention.group_tokens == 0, "groups are imported in order"
        self.reserve(start + tokens)
        shape = (s.layers, 2, s.kv_heads, tokens, s.head_dim)
        pairs = _from_bytes(b"".join(kv), s.dtype, shape).to(s.device)
        offset = 0
        for number, layer in enumerate(self.layers):
            layer.k[:, start : start + tokens], layer.v[:, start : start + tokens] = pairs[number]
            for means, sub in ((layer.fine, s.attention.key_sub), (layer.coarse, s.attention.coarse_sub)):
                count = -(-tokens // sub)
                size = s.kv_heads * count * s.head_dim * s.dtype.itemsize
                part = _from_bytes(index[offset : offset + size], s.dtype, (s.kv_heads, count, s.head_dim))
                means[:, start // sub : start // sub + count] = part.to(s.device)
                offset += size
        if offset != len(index):
            raise ValueError(f"index of {len(index)} bytes, expected {offset}")
        self.filled = [start + tokens] * s.layers
        self.token_ids += token_ids

    def export_mass(self) -> bytes:
        """H2O mass and exposure of all tokens read, float32."""
        region = self.shape.attention.region_tokens
        return b"".join(
            _to_bytes(layer.mass[:, : self.tokens]) + _to_bytes(layer.exposure[:, : -(-self.tokens // region)])
            for layer in self.layers
        )

    def import_mass(self, data: bytes) -> None:
        """Put back what `export_mass` gave."""
        s, offset = self.shape, 0
        for layer in self.layers:
            for target, count in ((layer.mass, self.tokens), (layer.exposure, self.regions)):
                size = s.kv_heads * count * 4
                part = _from_bytes(data[offset : offset + size], torch.float32, (s.kv_heads, count))
                target[:, :count] = part.to(s.device)
                offset += size


def _to_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes, expected {count * dtype.itemsize}")
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
