"""Query groups with lists of blocks, made at random, for tests and benchmarks of attention over listed blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.layout import BlockLists
from app.kernels.rope import rope_table
from app.kernels.selected import lists_of_texts


@dataclass(frozen=True)
class Sizes:
    """A text of `held` blocks; the last group ends in its last block, at an odd place."""

    kv_heads: int = 2
    heads: int = 2
    dim: int = 32
    length: int = 16
    listed: int = 3
    rows: int = 9
    groups: int = 2
    batch: int = 1
    held: int = 6


@dataclass(frozen=True)
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    lists: BlockLists
    cos: Tensor
    sin: Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Leaves of another dtype with the same numbers; lists as they are."""
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in (self.q, self.k, self.v))
        return Inputs(q, k, v, self.lists, self.cos.to(dtype), self.sin.to(dtype))

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, BlockLists, Tensor, Tensor]:
        return self.q, self.k, self.v, self.lists, self.cos, self.sin


def make(s: Sizes, dtype: torch.dtype, device: str, *, seed: int = 0) -> Inputs:
    """Inputs whose groups are the last of the text; every list holds its own regions and others before them."""
    random = torch.Generator().manual_seed(seed)
    own = -(-s.rows // s.length) + 1
    assert own <= s.listed <= s.held
    ends = [s.held * s.length - 3 - s.rows * (s.groups - 1 - g) for g in range(s.groups)]
    begins = torch.tensor([max(end - s.rows, 0) for end in ends])
    regions = torch.empty(s.batch, s.groups, s.kv_heads, s.listed, dtype=torch.int64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in regions.shape[:3])):
        last = (int(begins[place[1]]) + s.rows - 1) // s.length
        others = torch.randperm(max(last + 1 - own, 0), generator=random)[: s.listed - own]
        chosen = torch.cat([others, torch.arange(last + 1 - own, last + 1)])
        regions[tuple(place)] = chosen.sort().values
    shapes = [(s.batch, s.heads * s.kv_heads, s.groups * s.rows, s.dim)]
    shapes += 2 * [(s.batch * s.kv_heads * s.held, s.length, s.dim)]
    q, k, v = (torch.randn(shape, generator=random).to(device, dtype) for shape in shapes)
    inv_freq = 1e4 ** -(torch.arange(0, s.dim, 2) / s.dim)
    cos, sin = (x.to(device) for x in rope_table(inv_freq, s.listed * s.length, 1.0, dtype))
    lists = lists_of_texts(regions.to(device), s.held, s.length, begins.to(device), own=own, compact=True)
    return Inputs(q, k, v, lists, cos, sin)
