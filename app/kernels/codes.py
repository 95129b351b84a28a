"""Key means as int8 on half as many axes, for the one query of a decode step, whose time is the bytes it reads.

Raw keys lie close to a plane of fewer dimensions than they have, so a turn to their own main axes lets half of those
go. Products of int8 codes are integers, the same on every path; what is approximate is the rounding to codes and the
axes left out. What they find is scored again with the means themselves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.layout import BLOCK

MOST = 127
LEAST_AXES = 32
TOGETHER = 16  # blocks whose products are made at once: they stay in the cache


@dataclass(frozen=True)
class Basis:
    """Main axes of a text's key means.

    Attributes:
        centre: [Hkv, D] float32. axes: [Hkv, D, A] float32.
    """

    centre: Tensor
    axes: Tensor

    @classmethod
    def of(cls, means: Tensor) -> "Basis":
        """Of means [Hkv, N, D]: half of the axes, and at least 32 or all."""
        dim, x = means.shape[-1], means.float()
        centre = x.mean(1)
        x = x - centre[:, None]
        _, axes = torch.linalg.eigh(x.transpose(-1, -2) @ x)  # ascending
        return cls(centre, axes[..., -min(dim, max(LEAST_AXES, dim // 2)) :].contiguous())

    def of_keys(self, means: Tensor) -> Tensor:
        """Means [Hkv, N, D] on these axes, [Hkv, N, A] float32."""
        return (means.float() - self.centre[:, None]) @ self.axes

    def of_queries(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [Hkv, Q, D] on these axes, [Hkv, Q, A], and what the centre adds to all their products, [Hkv, Q]."""
        return queries @ self.axes, (queries @ self.centre[..., None])[..., 0]


def encode(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows that share a scale.

    Args:
        rows: [..., F, A], float32.

    Returns:
        (codes [..., F, A] int8, scales [...] float32): codes times scale are the rows, each value off by at most half
        a scale, 1/254 of the largest.
    """
    scales = rows.abs().amax((-1, -2)) / MOST
    return (rows / scales.clamp(min=1e-30)[..., None, None]).round().to(torch.int8), scales


def encode_queries(queries: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [..., A] -> (codes [..., A] int8, scales [..., 1] float32)."""
    scales = queries.abs().amax(-1, keepdim=True) / MOST
    return (queries / scales.clamp(min=1e-30)).round().to(torch.int8), scales


def uses_integers(x: Tensor) -> bool:
    """Whether products of codes are faster than those of the means: a kernel, or a CPU with an integer product."""
    return use_triton(x) or (x.device.type == "cpu" and torch.backends.mkldnn.is_available())


def products(queries: Tensor, codes: Tensor) -> Tensor:
    """Products of one KV head.

    Args:
        queries: [Q, A] int8. codes: [N, A] int8, contiguous.

    Returns:
        [Q, N], whole numbers: int32, or float32 where there is no integer product.
    """
    if codes.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch._int_mm(queries, codes.T)
    return products_reference(queries, codes)


def products_reference(queries: Tensor, codes: Tensor) -> Tensor:
    """The same in float32: exact, as long as A is at most 1,000."""
    return queries.float() @ codes.float().T


@dataclass
class TextCodes:
    """Codes of regions in text order.

    Attributes:
        codes: [Hkv, blocks, F, BLOCK, A] int8. scales: [Hkv, blocks * BLOCK] float32, one for each region.
    """

    codes: Tensor
    scales: Tensor

    @classmethod
    def room(cls, regions: int, kv_heads: int, per_region: int, axes: int, device: torch.device) -> "TextCodes":
        """Empty ones."""
        blocks = -(-regions // BLOCK)
        codes = torch.zeros(kv_heads, blocks, per_region, BLOCK, axes, dtype=torch.int8, device=device)
        return cls(codes, torch.zeros(kv_heads, blocks * BLOCK, device=device))

    def put(self, first: int, means: Tensor) -> None:
        """Encode means on axes, [Hkv, R, F, A], of regions from `first` on, all in one block."""
        codes, scales = encode(means)
        block, slot = divmod(first, BLOCK)
        self.codes[:, block, :, slot : slot + means.shape[1]] = codes.transpose(1, 2)
        self.scales[:, first : first + means.shape[1]] = scales

    def scan(self, queries: Tensor, stop: int) -> Tensor:
        """Score the first `stop` regions by the best of their means: queries [Hkv, Q, A] -> [Hkv, Q, stop] float32."""
        asked, units = encode_queries(queries)
        if use_triton(queries):
            from app.kernels.codes_triton import scan

            return scan(asked, units, self.codes, self.scales, stop)
        return self.scan_reference(asked, units, stop)

    def scan_reference(self, asked: Tensor, units: Tensor, stop: int) -> Tensor:
        """The same in plain PyTorch, of encoded queries."""
        best = []
        for q, text in zip(asked, self.codes[:, : -(-stop // BLOCK)], strict=True):
            parts = [
                products(q, codes.view(-1, codes.shape[-1])).view(len(q), len(codes), -1, BLOCK).amax(2).flatten(1)
                for codes in text.split(TOGETHER)
            ]
            best.append(torch.cat(parts, dim=-1)[:, :stop])
        return torch.stack(best) * (self.scales[:, None, :stop] * units)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.codes, self.scales
