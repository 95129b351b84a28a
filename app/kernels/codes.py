"""Key means as int8 on half as many axes, for the one query of a decode step, whose time is the bytes it reads.

Raw keys lie close to a plane of fewer dimensions than they have, so a turn to their own main axes lets half of those
go. Products of int8 codes are integers, the same on every path; what is approximate is the rounding to codes and the
axes left out. What they find is scored again with the means themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 127
LEAST_AXES = 32
BLOCK = 256  # regions whose codes lie together
NEAR, FAR = (
    0.35,
    0.2,
)  # of the mean and of the largest distance along each axis that a cluster's score takes for granted
NOT_SEEN = -1e30  # below every score, and no trouble in a softmax


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


def uses_integers(device: torch.device) -> bool:
    """Whether products of codes are faster than those of the means: on a CPU with an integer matrix product."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


def products(queries: Tensor, codes: Tensor) -> Tensor:
    """Products of one KV head.

    Args:
        queries: [Q, A] int8. codes: [N, A] int8, contiguous.

    Returns:
        [Q, N], whole numbers: int32, or float32 where there is no integer product.
    """
    if uses_integers(codes.device):
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
        blocks = -(-stop // BLOCK)
        best = []
        for q, codes in zip(asked, self.codes[:, :blocks], strict=True):
            found = products(q, codes.view(-1, codes.shape[-1])).view(len(q), blocks, -1, BLOCK)
            best.append(found.amax(2).view(len(q), -1)[:, :stop])
        return torch.stack(best) * (self.scales[:, None, :stop] * units)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.codes, self.scales


@dataclass
class Clusters:
    """The lowest level of a tree with its members beside each node, so that a node is opened in one piece.

    Attributes:
        nodes: [Hkv, N, 2 A] int8: the mean of the members and their reach along each axis. scales: [Hkv, N].
        members: [Hkv, N, F, A] int8. member_scales: [Hkv, N].
        regions: [Hkv, N, F] int32, the region of each member.
    """

    nodes: Tensor
    scales: Tensor
    members: Tensor
    member_scales: Tensor
    regions: Tensor

    @classmethod
    def of(cls, members: Tensor, regions: Tensor) -> "Clusters":
        """Of members [Hkv, N, F, A] on axes, and their regions [Hkv, N, F]."""
        means = members.mean(2)
        apart = (members - means[:, :, None]).abs()
        reach = NEAR * apart.square().mean(2).sqrt() + FAR * apart.amax(2)
        nodes, scales = encode(torch.cat([means, reach], dim=-1)[:, :, None])
        return cls(nodes[:, :, 0], scales, *encode(members), regions.int())

    @classmethod
    def joined(cls, parts: Sequence["Clusters"]) -> "Clusters":
        """The nodes of all parts, one behind the other."""
        return cls(*(torch.cat(x, dim=1) for x in zip(*(part.tensors() for part in parts), strict=True)))

    def first(self, count: int) -> "Clusters":
        """The first `count` nodes."""
        return Clusters(*(tensor[:, :count].contiguous() for tensor in self.tensors()))

    def open(self, queries: Tensor, count: int, beam: int, found: Tensor) -> None:
        """Score regions by the means in the clusters that look best.

        A cluster's score is the product with its mean, and what a member could add that lies by the cluster's reach to
        the query's side of it on every axis: a member that answers is unlike the rest.

        Args:
            queries: [Hkv, Q, A]. count: clusters to look at, from the first on. beam: how many each KV head opens.
            found: [Hkv, Q, R] float32, raised to the best product with a mean of each region that was looked at.
        """
        asked, units = encode_queries(torch.cat([queries, queries.abs()], dim=-1))
        near = torch.stack([products(q, nodes[:count]) for q, nodes in zip(asked, self.nodes, strict=True)])
        near = near * (self.scales[:, None, :count] * units)
        best = near.log_softmax(-1).amax(1).topk(min(beam, count), sorted=False).indices  # [Hkv, beam]
        kv_heads, size, fines, axes = self.members.shape
        rows = (best + torch.arange(0, kv_heads * size, size, device=best.device)[:, None]).flatten()
        members = self.members.view(-1, fines * axes).index_select(0, rows).view(kv_heads, -1, axes)
        asked = asked[..., :axes].contiguous()
        scores = torch.stack([products(q, codes) for q, codes in zip(asked, members, strict=True)])
        scales = self.member_scales.view(-1).index_select(0, rows).view(kv_heads, 1, -1) * units
        scores = (scores.unflatten(-1, (-1, fines)) * scales[..., None]).flatten(2)
        index = self.regions.view(-1, fines).index_select(0, rows).view(kv_heads, 1, -1).long()
        found.scatter_reduce_(-1, index.expand_as(scores), scores, "amax")

    def tensors(self) -> tuple[Tensor, ...]:
        return self.nodes, self.scales, self.members, self.member_scales, self.regions
