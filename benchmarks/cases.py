"""Operations, shapes and how one case of a kernel benchmark looks; `kernels.py` checks and measures them.

A file of cases makes `Operation`s; adding one means writing its `make` and naming it in `kernels.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Shape:
    """Attention of one model."""

    name: str
    heads: int
    kv_heads: int
    dim: int
    budget: int = 4096  # tokens a query attends to

    @property
    def scale(self) -> float:
        return self.dim**-0.5

    def tiny(self) -> "Shape":
        """One or two KV heads of it, and a budget for the interpreter."""
        kv_heads = min(self.kv_heads, 2 if self.dim <= 64 else 1)
        return replace(self, heads=self.heads // self.kv_heads * kv_heads, kv_heads=kv_heads, budget=256)


SHAPES = (
    Shape("lectern-small", 4, 2, 64, 1024),
    Shape("Llama-2-7B", 32, 32, 128),
    Shape("Llama-3.1-8B, Mistral-7B", 32, 8, 128),  # of one shape
    Shape("Qwen3-8B", 32, 8, 128, 8192),  # the same heads, with a larger budget
)


@dataclass(frozen=True)
class Way:
    """Something that is measured: what it runs, and what that has to do at least."""

    run: Callable[[], object]
    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Case:
    """One operation on random inputs.

    Attributes:
        kernel: runs ours; returns what is checked.
        exact: the same from the same inputs, in float64.
        flops, bytes: what ours does.
        peers: other ways to the same end, by name; those that are too large or not installed are left out.
    """

    kernel: Callable[[], Outputs]
    exact: Callable[[], Outputs]
    flops: float = 0.0
    bytes: float = 0.0
    peers: Mapping[str, Way] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A row of the table for each shape and length.

    Attributes:
        make: (shape, tokens, dtype, device) -> case.
        bound: which ceiling its share is taken of.
        tokens: lengths on a GPU; `check_tokens` that of the check there, `tiny_tokens` in the interpreter.
        dtypes: those that it takes.
    """

    name: str
    make: Callable[[Shape, int, torch.dtype, str], Case]
    bound: str = "flops"
    tokens: tuple[int, ...] = (8192, 32768, 131072)
    check_tokens: int = 8192
    tiny_tokens: int = 320
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16)


def relative(found: Outputs, wanted: Outputs) -> float:
    """The worst error of several outputs, each as a share of its largest number; infinite for no number."""
    worst = 0.0
    for mine, exact in zip(found, wanted, strict=True):
        error = (mine.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max()
        worst = max(worst, float(error.nan_to_num(nan=float("inf"))))
    return worst


def randn(*shape: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Random numbers that do not depend on the dtype but for its rounding."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)
