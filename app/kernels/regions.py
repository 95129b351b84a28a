"""Regions: summaries of their keys, scores of query groups against them, and the choice of the best.

MS-Attn compares one representative per region; plain means drown both the query that asks and the key that answers, so
a representative here is a set of fine means, reduced by max (algorithm MSA-1 in docs/algorithm.md).
"""

import torch
from torch import Tensor

FEW_QUERIES = 16


def sub_means(x: Tensor, sub: int) -> Tensor:
    """Mean of every `sub` neighbours; the last mean may cover fewer.

    Args:
        x: [..., T, D].

    Returns:
        [..., ceil(T / sub), D], float32.
    """
    tokens = x.shape[-2]
    if sub <= 0 or tokens == 0:
        raise ValueError(f"need sub > 0 and T > 0, got {sub}, {tokens}")
    whole = tokens // sub * sub
    means = x[..., :whole, :].unflatten(-2, (-1, sub)).float().mean(-2)
    if whole == tokens:
        return means
    rest = x[..., whole:, :].float().mean(-2, keepdim=True)
    return torch.cat([means, rest], dim=-2)


def region_scores(queries: Tensor, fine: Tensor) -> Tensor:
    """Score of each query representative against each region: the best of its key means.

    Args:
        queries: [..., Hkv, Q, D] query representatives (query heads of one KV head folded into Q), already scaled.
        fine: [..., Hkv, R, F, D] key means, F per region.

    Returns:
        [..., Hkv, Q, R], float32.
    """
    regions, fines = fine.shape[-3:-1]
    keys = fine.flatten(-3, -2)  # [..., Hkv, R * F, D]
    if queries.shape[-2] <= FEW_QUERIES:  # else a CPU spends its time on reordering the keys
        products = (keys @ queries.transpose(-1, -2)).transpose(-1, -2)
    else:
        products = queries @ keys.transpose(-1, -2)  # [..., Hkv, Q, R * F]
    return products.unflatten(-1, (regions, fines)).amax(-1).float()


def group_votes(scores: Tensor, eligible: Tensor, heads: int, per_region: int) -> Tensor:
    """Log of the votes that one merged query group gives to each region.

    Softmax over the eligible regions per representative, the largest vote within a query region, then the sum over the
    group's query regions and over the query heads that share a KV head (MSA-1 step 4).

    Args:
        scores: [..., Hkv, Q, R] with Q = heads x representatives in text order.
        eligible: [..., R] or broadcastable; others get -inf.
        heads: query heads per KV head.
        per_region: representatives of one query region; the group's last region may have fewer.

    Returns:
        [..., Hkv, R], float32. Logarithms, so that faint votes stay ordered instead of becoming equal zeros.
    """
    scores = scores.masked_fill(~eligible.unsqueeze(-2).unsqueeze(-2), float("-inf"))
    votes = scores - scores.logsumexp(-1, keepdim=True)
    votes = votes.unflatten(-2, (heads, -1))  # [..., Hkv, heads, representatives, R]
    best = torch.stack([part.amax(-2) for part in votes.split(per_region, dim=-2)], dim=-2)  # [..., heads, regions, R]
    return best.flatten(-3, -2).logsumexp(-2).nan_to_num(nan=float("-inf"), neginf=float("-inf"))


def best_regions(votes: Tensor, count: int) -> Tensor:
    """Indices of the `count` regions with most votes, ties to the later one, in text order.

    Args:
        votes: [..., R], no NaN.
        count: at least 1; all regions when it is R or more.

    Returns:
        [..., count], int64, ascending.
    """
    regions = votes.shape[-1]
    if count >= regions:
        return torch.arange(regions, device=votes.device).expand(*votes.shape[:-1], regions)
    # topk alone breaks ties as it likes, and coarse scores in bfloat16 have many.
    least = votes.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = votes > least, votes == least
    latest = equal.flip(-1).cumsum(-1).flip(-1) <= count - above.sum(-1, keepdim=True)
    return (above | (equal & latest)).nonzero()[:, -1].view(*votes.shape[:-1], count)
