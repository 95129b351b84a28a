"""Select-and-merge attention, MSA-1: the oracle in plain PyTorch, differentiable, for any length and batch.

The runtime's fast path (app/runtime/attention.py) must give the same outputs; tests hold the two together.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.options import SelectionOptions
from app.kernels.regions import (
    best_regions,
    group_votes,
    key_representatives,
    local_representatives,
    query_representatives,
    region_scores,
    sub_means,
)
from app.kernels.rope import rotate

Group = list[range]  # the tokens of each query region of one merged group


def query_groups(tokens: int, options: SelectionOptions) -> list[Group]:
    """The merged groups of a text, anchored at absolute multiples; the last regions may be short or missing.

    `stride` takes every m-th of m x m neighbouring query regions: 0 with 2 and 1 with 3, as in Figure 2.
    """
    size, merge = options.query_tokens, options.merge
    regions = [range(start, min(start + size, tokens)) for start in range(0, tokens, size)]
    if options.permute == "adjacent":
        return [regions[i : i + merge] for i in range(0, len(regions), merge)]
    blocks = [regions[i : i + merge * merge] for i in range(0, len(regions), merge * merge)]
    return [block[i::merge] for block in blocks for i in range(min(merge, len(block)))]


def forced_regions(group: Group, options: SelectionOptions) -> Tensor:
    """[R] bool over the regions up to the group's end: those that are attended without being scored."""
    size = options.region_tokens
    forced = torch.zeros((group[-1].stop - 1) // size + 1, dtype=torch.bool)
    forced[: options.forced_sinks] = True
    for part in group:
        forced[max(options.first_near(part.start // size), 0) : (part.stop - 1) // size + 1] = True
    return forced


def region_representatives(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, scale: float, options: SelectionOptions
) -> Tensor:
    """[Hkv, R, F, D'] what the whole regions of a text are compared by; see `key_representatives`."""
    whole = k.shape[1] // options.region_tokens * options.region_tokens
    if options.score != "infllm":
        return key_representatives(k[:, :whole].detach(), options)
    return local_representatives(q.detach(), k.detach(), cos, sin, scale, options)


def select_group(
    q: Tensor, representatives: Tensor, group: Group, cos: Tensor, sin: Tensor, options: SelectionOptions
) -> Tensor:
    """Choose the regions of one query group (MSA-1 steps 1 to 4).

    Args:
        q: [Hq, T, D] raw queries of the text.
        representatives: [Hkv, R, F, D'] as `region_representatives` gives them.
        cos, sin: [P, D] with P above `score_angle`.

    Returns:
        [Hkv, K] regions in text order: all while the group's past fits the budget; else K is the budget in regions, or
        as many as are forced where that is more.
    """
    kv_heads, device = representatives.shape[0], q.device
    end = group[-1].stop
    if end <= options.budget_tokens:
        return torch.arange(-(-end // options.region_tokens), device=device).expand(kv_heads, -1)
    forced = forced_regions(group, options).to(device)
    index = torch.arange(len(forced), device=device)
    past = torch.stack([(index + 1) * options.region_tokens <= part.start for part in group])
    eligible = past & ~forced  # [parts, R]: wholly before the query region
    total = _votes(q, representatives, group, eligible, cos, sin, options)
    room = max(0, options.budget_regions - int(forced.sum()))
    picked = best_regions(total, min(room, int(eligible.any(0).sum())))
    fixed = index[forced].expand(kv_heads, -1)
    return torch.cat([picked, fixed], dim=-1).sort(-1).values


def _votes(
    q: Tensor,
    representatives: Tensor,
    group: Group,
    eligible: Tensor,
    cos: Tensor,
    sin: Tensor,
    options: SelectionOptions,
) -> Tensor:
    """[Hkv, R] what the group gives to each region; -inf where no query region may choose it. eligible: [parts, R]."""
    kv_heads, heads = representatives.shape[0], q.shape[0] // representatives.shape[0]
    regions = min(representatives.shape[1], eligible.shape[1])  # a short last region has none and is always own
    totals = []
    for part, allowed in zip(group, eligible, strict=True):
        queries = q[:, part.start : part.stop].detach() * q.shape[-1] ** -0.5
        if options.score_angle:
            queries = rotate(queries, cos[options.score_angle], sin[options.score_angle])
        sub = options.query_sub if options.combine == "votes" else len(part)
        means = query_representatives(sub_means(queries, sub), options.score)  # [Hq, Q, D']
        scores = region_scores(means.reshape(kv_heads, -1, means.shape[-1]), representatives[:, :regions])
        if options.combine == "votes":
            total = group_votes(scores, allowed[:regions], heads, means.shape[1])
        else:
            total = scores.sum(-2).masked_fill(~allowed[:regions], float("-inf"))
        totals.append(F.pad(total, (0, eligible.shape[1] - regions), value=float("-inf")))
    stacked = torch.stack(totals)  # [parts, Hkv, R]
    if options.combine == "raw_sum":  # mean over the query regions that may choose it
        total = stacked.masked_fill(stacked == float("-inf"), 0).sum(0) / eligible.sum(0).clamp(min=1)
        if options.heads == "shared":
            total = total.sum(0, keepdim=True).expand(kv_heads, -1)
        return total.masked_fill(~eligible.any(0), float("-inf"))
    if options.heads == "shared":
        return stacked.flatten(0, 1).logsumexp(0, keepdim=True).expand(kv_heads, -1)
    return stacked.logsumexp(0)


def ms_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    scale: float,
    options: SelectionOptions,
    lengths: list[int] | None = None,
) -> Tensor:
    """Attention of MS-Attn, MSA-1, over one text or a batch of texts.

    Queries whose past fits the budget attend to all of it. Later ones, in merged groups, attend to the forced regions
    and the best-scored others; a key is seen only by queries at or after it, whatever its position became.

    Args:
        q: [Hq, T, D] or [B, Hq, T, D], before rotary embedding. k, v: [(B,) Hkv, T, D]. Any T and B.
        cos, sin: [P, D]; P at least min(T, budget_tokens) + region_tokens, and T with original positions.
        lengths: tokens of each text of a batch; what follows is padding, neither read nor written (its output is 0).

    Returns:
        Like q.
    """
    if q.dim() == 4:
        ends = lengths or [q.shape[2]] * q.shape[0]
        rows = [
            F.pad(_one_text(*(x[:, :end] for x in text), cos, sin, scale, options), (0, 0, 0, q.shape[2] - end))
            for *text, end in zip(q, k, v, ends, strict=True)
        ]
        return torch.stack(rows) if rows else torch.zeros_like(q)
    return _one_text(q, k, v, cos, sin, scale, options)


def _one_text(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float, options: SelectionOptions
) -> Tensor:
    if q.shape[1] == 0:
        return torch.zeros_like(q)
    outputs, places = [], []
    far = q.shape[1] > options.budget_tokens
    representatives = region_representatives(q, k, cos, sin, scale, options) if far else k[:, :0, None]
    for group in query_groups(q.shape[1], options):
        regions = select_group(q, representatives, group, cos, sin, options)
        outputs.append(attend_group(q, k, v, cos, sin, group, regions, scale, options))
        places += [place for part in group for place in part]
    order = torch.tensor(places, device=q.device).argsort()
    return torch.cat(outputs, dim=1)[:, order]


def attend_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    group: Group,
    regions: Tensor,
    scale: float,
    options: SelectionOptions,
) -> Tensor:
    """Step 5: the group's queries over its regions [Hkv, K], in text order. Returns [Hq, Tg, D]."""
    kv_heads, heads = k.shape[0], q.shape[0] // k.shape[0]
    size, end = options.region_tokens, group[-1].stop
    rows = torch.tensor([place for part in group for place in part], device=q.device)
    places = (regions[..., None] * size + torch.arange(size, device=q.device)).flatten(1)
    places = places[places < end].view(kv_heads, -1)  # [Hkv, S]; only the last region, an own one, can overrun
    head = torch.arange(kv_heads, device=q.device)[:, None]
    keys, values = k[head, places], v[head, places]
    queries = q[:, rows].unflatten(0, (kv_heads, heads))  # [Hkv, heads, Tg, D]
    q_places = torch.searchsorted(places, rows.expand(kv_heads, -1).contiguous())  # own regions are always among them
    if options.positions == "one_distance" and end > options.budget_tokens:
        queries, keys = _one_distance(queries, keys, cos, sin, group, rows, places, options)
    else:
        k_places = torch.arange(places.shape[1], device=q.device)
        if options.positions == "original":
            q_places, k_places = rows.expand(kv_heads, -1), places
        queries = rotate(queries, cos[q_places][:, None], sin[q_places][:, None])
        keys = rotate(keys, cos[k_places], sin[k_places])
    mask = places[:, None] <= rows[:, None]  # [Hkv, Tg, S]
    out = F.scaled_dot_product_attention(
        queries, keys[:, None].expand(-1, heads, -1, -1), values[:, None].expand(-1, heads, -1, -1),
        attn_mask=mask[:, None], scale=scale,
    )  # fmt: skip
    return out.flatten(0, 1)


def _one_distance(
    queries: Tensor,
    keys: Tensor,
    cos: Tensor,
    sin: Tensor,
    group: Group,
    rows: Tensor,
    places: Tensor,
    options: SelectionOptions,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of twice the width: a near key meets the first half of a query, a far key the second.

    Near are the own and local regions, at their true mutual distances; every far key sits as far away as the near
    ones reach (InfLLM: keys unrotated, queries at n_local - 1).
    """
    local = forced_regions(group, options).to(places.device)
    local[: max(0, group[0].start // options.region_tokens - options.local_regions)] = False  # sinks are far
    first = int(local.nonzero()[0]) * options.region_tokens
    near = local[places // options.region_tokens][..., None]
    distance = group[-1].stop - 1 - first
    q_near = rotate(queries, cos[rows - first], sin[rows - first])
    q_far = rotate(queries, cos[distance], sin[distance])
    offsets = (places - first).clamp(min=0)
    k_near = rotate(keys, cos[offsets], sin[offsets])
    return torch.cat([q_near, q_far], dim=-1), torch.cat([k_near * near, keys * ~near], dim=-1)
