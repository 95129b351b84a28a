"""Select-and-merge attention, MSA-1: the oracle in plain PyTorch, differentiable, for any length.

The runtime's fast path (app/runtime/attention.py) must give the same outputs; tests hold the two together.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.regions import best_regions, group_votes, region_scores, sub_means
from app.kernels.rope import rotate


@dataclass(frozen=True)
class Selection:
    """Regions one merged query group attends to: [Hkv, K] in text order, and the group's tokens."""

    start: int
    end: int
    regions: Tensor


def select_group(
    q: Tensor,
    k: Tensor,
    start: int,
    end: int,
    *,
    region_tokens: int,
    budget_tokens: int,
    local_regions: int,
    query_sub: int,
    key_sub: int,
) -> Selection:
    """Choose the regions of the query group [start, end) (MSA-1 steps 1 to 4).

    Args:
        q: [Hq, T, D] raw queries. k: [Hkv, T, D] raw keys.
    """
    kv_heads, heads = k.shape[0], q.shape[0] // k.shape[0]
    first, last = start // region_tokens, (end - 1) // region_tokens
    everything = torch.arange(last + 1, device=q.device)
    if end <= budget_tokens:
        return Selection(start, end, everything.expand(kv_heads, -1))
    forced = (everything == 0) | (everything >= first - local_regions)
    count = budget_tokens // region_tokens - int(forced.sum())
    representatives = sub_means(q[:, start:end].detach(), query_sub) * q.shape[-1] ** -0.5  # [Hq, Q, D]
    past = k[:, : (first - local_regions) * region_tokens].detach()
    fine = sub_means(past, key_sub).unflatten(-2, (-1, region_tokens // key_sub))
    scores = region_scores(representatives.reshape(kv_heads, -1, q.shape[-1]), fine)  # [Hkv, Q, R]
    eligible = ~forced[: scores.shape[-1]]
    votes = group_votes(scores, eligible, heads, region_tokens // query_sub)
    picked = best_regions(votes, count)
    fixed = everything[forced].expand(kv_heads, -1)
    return Selection(start, end, torch.cat([picked, fixed], dim=-1).sort(-1).values)


def ms_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    scale: float,
    region_tokens: int,
    merge: int,
    budget_tokens: int,
    local_regions: int = 1,
    query_sub: int = 1,
    key_sub: int = 4,
) -> Tensor:
    """Attention of MS-Attn over one text, MSA-1.

    Queries whose past fits the budget attend to all of it. Later ones, in groups of `merge` regions anchored at
    absolute multiples, attend to region 0, their own and the preceding regions, and the best-scored others. Selected
    keys get compact positions in text order; a key is seen only by queries at or after it.

    Args:
        q: [Hq, T, D], before rotary embedding. k, v: [Hkv, T, D]. Any T.
        cos, sin: [P, D] with P at least min(T, budget_tokens + region_tokens).

    Returns:
        [Hq, T, D].
    """
    kv_heads, tokens, dim = k.shape
    heads = q.shape[0] // kv_heads
    group = region_tokens * merge
    outputs = []
    for start in range(0, tokens, group):
        end = min(start + group, tokens)
        chosen = select_group(
            q, k, start, end,
            region_tokens=region_tokens, budget_tokens=budget_tokens, local_regions=local_regions,
            query_sub=query_sub, key_sub=key_sub,
        )  # fmt: skip
        places = (chosen.regions[..., None] * region_tokens + torch.arange(region_tokens, device=q.device)).flatten(1)
        places = places[places < end].view(kv_heads, -1)  # [Hkv, S]; only the last region can overrun
        keys = torch.stack([k[h, places[h]] for h in range(kv_heads)])
        values = torch.stack([v[h, places[h]] for h in range(kv_heads)])
        size = places.shape[-1]
        own = torch.arange(size - (end - start), size, device=q.device)
        queries = rotate(q[:, start:end], cos[own], sin[own]).view(kv_heads, heads, end - start, dim)
        keys = rotate(keys, cos[:size], sin[:size])
        mask = places[:, None] <= torch.arange(start, end, device=q.device)[None, :, None]  # [Hkv, Tg, S]
        out = F.scaled_dot_product_attention(
            queries, keys[:, None].expand(-1, heads, -1, -1), values[:, None].expand(-1, heads, -1, -1),
            attn_mask=mask[:, None], scale=scale,
        )  # fmt: skip
        outputs.append(out.reshape(kv_heads * heads, end - start, dim))
    return torch.cat(outputs, dim=1)
