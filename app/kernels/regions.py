"""Regions: summaries of their keys, scores of query groups against them, and the choice of the best.

MS-Attn compares one representative per region; plain means drown both the query that asks and the key that answers, so
a representative here is a set of fine means, reduced by max (algorithm MSA-1 in docs/algorithm.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.backend import use_triton
from app.kernels.options import SelectionOptions
from app.kernels.rope import rotate

FEW_QUERIES = 16
FEW_REGIONS = 512  # are sorted at once
INFLLM_TOKENS = 4


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
    if use_triton(x) and not _differentiated(x):
        from app.kernels.regions_triton import means

        return means(x, sub)
    return sub_means_reference(x, sub)


def sub_means_reference(x: Tensor, sub: int) -> Tensor:
    """`sub_means` in plain PyTorch; differentiable."""
    tokens = x.shape[-2]
    whole = tokens // sub * sub
    means = x[..., :whole, :].unflatten(-2, (-1, sub)).float().mean(-2)
    if whole == tokens:
        return means
    rest = x[..., whole:, :].float().mean(-2, keepdim=True)
    return torch.cat([means, rest], dim=-2)


def _differentiated(*tensors: Tensor) -> bool:
    """Whether gradients are wanted, which the kernels do not have."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def sub_bounds(x: Tensor, sub: int) -> Tensor:
    """Largest, then smallest channels of every `sub` neighbours, [..., ceil(T / sub), 2 D], float32; as `sub_means`."""
    tokens = x.shape[-2]
    if sub <= 0 or tokens == 0:
        raise ValueError(f"need sub > 0 and T > 0, got {sub}, {tokens}")
    blocks = torch.cat([x, x[..., -1:, :].expand(*x.shape[:-2], -tokens % sub, -1)], dim=-2)
    blocks = blocks.unflatten(-2, (-1, sub)).float()
    return torch.cat([blocks.amax(-2), blocks.amin(-2)], dim=-1)


def query_representatives(means: Tensor, score: str) -> Tensor:
    """What query means [..., D] are compared with keys by: [..., 2 D] for `minmax`, else themselves."""
    if score != "minmax":
        return means
    return torch.cat([means.clamp(min=0), means.clamp(max=0)], dim=-1)


def key_representatives(keys: Tensor, options: SelectionOptions) -> Tensor:
    """What whole regions are compared by, for the scores that follow from their keys alone.

    Args:
        keys: [..., R * L, D], raw.

    Returns:
        [..., R, F, D'], float32: means of `key_sub` keys, or for `minmax` the largest, then the smallest channels, so
        that the product with `query_representatives` bounds that with any of the keys (Quest).
    """
    if keys.shape[-2] == 0:
        return keys.new_zeros(*keys.shape[:-2], 0, 1, keys.shape[-1] * (2 if options.score == "minmax" else 1)).float()
    blocks = (sub_bounds if options.score == "minmax" else sub_means)(keys, options.key_sub)
    return blocks.unflatten(-2, (-1, options.region_tokens // options.key_sub))


def local_representatives(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float, options: SelectionOptions
) -> Tensor:
    """InfLLM's representative of each whole region: the mean of the 4 raw keys with most local attention.

    Local attention is that of a group's tokens among themselves: causal, rotated at places within the group, summed
    over queries and over the query heads of a KV head. So it is final when the group ends.

    Args:
        q: [Hq, T, D] raw. k: [Hkv, T, D] raw. The text, or a part that starts at a group.

    Returns:
        [Hkv, R, 1, D], float32.
    """
    kv_heads, tokens, dim = k.shape
    size = options.group_tokens
    pad = -tokens % size
    q = F.pad(q, (0, 0, 0, pad)).view(kv_heads, -1, tokens + pad, dim).unflatten(2, (-1, size))
    padded = F.pad(k, (0, 0, 0, pad)).unflatten(1, (-1, size))  # [Hkv, G, size, D]
    queries, keys = rotate(q, cos[:size], sin[:size]), rotate(padded, cos[:size], sin[:size])
    logits = (queries @ keys[:, None].transpose(-1, -2)).float() * scale  # [Hkv, heads, G, size, size]
    seen = torch.ones(size, size, dtype=torch.bool, device=k.device).tril()
    rows = (torch.arange(tokens + pad, device=k.device) < tokens).view(-1, size, 1)
    mass = (logits.masked_fill(~seen, float("-inf")).softmax(-1) * rows).sum((1, -2)).flatten(1)  # [Hkv, T]
    region = options.region_tokens
    whole = tokens // region * region
    best = mass[:, :whole].unflatten(1, (-1, region)).topk(min(INFLLM_TOKENS, region), dim=-1).indices
    picked = k[:, :whole].unflatten(1, (-1, region)).float().gather(2, best[..., None].expand(-1, -1, -1, dim))
    return picked.mean(2, keepdim=True)


def region_scores(queries: Tensor, fine: Tensor) -> Tensor:
    """Score of each query representative against each region: the best of its key means.

    Args:
        queries: [..., Hkv, Q, D] query representatives (query heads of one KV head folded into Q), already scaled.
        fine: [..., Hkv, R, F, D] key means, F per region.

    Returns:
        [..., Hkv, Q, R], float32.
    """
    if use_triton(queries) and queries.dtype == fine.dtype and not _differentiated(queries, fine):
        from app.kernels.regions_triton import scores

        return scores(queries, fine)
    return region_scores_reference(queries, fine)


def region_scores_reference(queries: Tensor, fine: Tensor) -> Tensor:
    """`region_scores` in plain PyTorch; makes all products."""
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
        count: at least 0; all regions when it is R or more.

    Returns:
        [..., count], int64, ascending.
    """
    regions = votes.shape[-1]
    if count >= regions:
        return torch.arange(regions, device=votes.device).expand(*votes.shape[:-1], regions)
    if count <= 0:
        return torch.zeros(*votes.shape[:-1], 0, dtype=torch.int64, device=votes.device)
    if regions <= FEW_REGIONS:
        return votes.sort(dim=-1, stable=True).indices[..., -count:].sort(dim=-1).values
    # topk alone breaks ties as it likes, and coarse scores in bfloat16 have many.
    least = votes.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = votes > least, votes == least
    latest = equal.flip(-1).cumsum(-1).flip(-1) <= count - above.sum(-1, keepdim=True)
    return (above | (equal & latest)).nonzero()[:, -1].view(*votes.shape[:-1], count)
