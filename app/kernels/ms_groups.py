"""Select-and-merge attention of whole texts for training: MSA-1 for all merged groups at once, with gradients.

The oracle (app/kernels/ms_attn.py) goes group by group; tests hold the two together. Nothing here grows with the square
of a text but the scores of the selection, which has no gradient and goes piece by piece. The keys that each group
gathers are never kept either: backward gathers them again, so memory stays that of queries, keys and values.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.errors import ConfigError
from app.kernels.backend import use_triton
from app.kernels.options import SelectionOptions
from app.kernels.regions import (
    best_regions,
    group_votes,
    key_representatives,
    query_representatives,
    region_scores,
    sub_means,
)
from app.kernels.rope import rotate
from app.kernels.selected import lists_of_texts, selected_attention

SCORES_AT_ONCE = {"cpu": 1 << 21}  # numbers; what does not fit the caches of a CPU costs it twice
KEYS_AT_ONCE = {"cpu": 1 << 20}
ON_A_GPU = 1 << 26


@dataclass(frozen=True)
class _Plan:
    """Which queries select: whole groups from `start` on, or a piece of one.

    Attributes:
        rows: tokens of each group.
        keys: tokens that a group gathers, the last region's missing ones left out.
    """

    start: int
    rows: int
    scale: float
    options: SelectionOptions

    @property
    def keys(self) -> int:
        return self.options.budget_tokens - (-(self.start + self.rows) % self.options.region_tokens)


def check_options(options: SelectionOptions) -> None:
    """Raises ConfigError for an option that only the oracle has."""
    for name, known in (
        ("permute", ("adjacent",)),
        ("score", ("max", "minmax")),
        ("positions", ("compact", "original")),
    ):
        if getattr(options, name) not in known:
            value = getattr(options, name)
            raise ConfigError(f"{name} = {value!r}: not for training; choose {' or '.join(known)}")


def ms_attention_groups(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *, scale: float, options: SelectionOptions
) -> Tensor:
    """Attention of MS-Attn, MSA-1, over a batch of whole texts of one length.

    Args:
        q: [B, Hq, T, D], before rotary embedding. k, v: [B, Hkv, T, D]. Any T and B.
        cos, sin: [P, D]; P at least min(T, budget_tokens), and T with original positions.
        options: as AttentionConfig allows them, so that groups and the budget are whole regions.

    Returns:
        [B, Hq, T, D], of the dtype of v. The choice of regions has no gradient.
    """
    tokens, group = q.shape[2], options.group_tokens
    if q.numel() == 0:
        return torch.zeros_like(q)
    dense = min(tokens, options.budget_tokens)  # groups whose past fits the budget see all of it
    parts = [_dense(q[:, :, :dense], k[:, :, :dense], v[:, :, :dense], cos[:dense], sin[:dense], scale)]
    whole = dense + (tokens - dense) // group * group
    turned, walks = k, use_triton(v)
    if options.positions == "original" and dense < tokens and not walks:
        turned = rotate(k, cos[:tokens], sin[:tokens])
    for start, stop in ((dense, whole), (whole, tokens)):
        if start == stop:
            continue
        plan = _Plan(start, min(group, stop - start), scale, options)
        queries = q[:, :, start:stop]
        regions = choose(queries, k[:, :, :stop], cos, sin, plan)
        if options.positions == "original":
            queries = rotate(queries, cos[start:stop], sin[start:stop])
        keys, values = (F.pad(x[:, :, :stop], (0, 0, 0, -stop % options.region_tokens)) for x in (turned, v))
        attend = _listed if walks else _Selected.apply
        parts.append(attend(queries, keys, values, regions, cos, sin, plan))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _dense(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
    q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _listed(q: Tensor, k: Tensor, v: Tensor, regions: Tensor, cos: Tensor, sin: Tensor, plan: _Plan) -> Tensor:
    """`_Selected` by the kernels that walk lists: k raw, q rotated when positions are the original ones."""
    o, count = plan.options, regions.shape[1]
    begins = plan.start + torch.arange(count, device=q.device) * plan.rows
    own = -(-plan.rows // o.region_tokens)
    compact, held = o.positions == "compact", k.shape[2] // o.region_tokens
    lists = lists_of_texts(regions, held, o.region_tokens, begins, own=own, compact=compact)
    if compact:
        around = slice(plan.keys - plan.rows, plan.keys)
        q = rotate(q.unflatten(2, (count, -1)), cos[around], sin[around]).flatten(2, 3)
    q, k = q.to(v.dtype), k.to(v.dtype)
    blocks = (x.reshape(-1, o.region_tokens, x.shape[-1]) for x in (k, v))
    return selected_attention(q, *blocks, lists, cos, sin, scale=plan.scale)[0]


@torch.no_grad()
def choose(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, plan: _Plan) -> Tensor:
    """The regions of every group (MSA-1 steps 1 to 4).

    Args:
        q: [B, Hq, G * rows, D] raw queries. k: [B, Hkv, T, D] raw keys, to the last group's end.

    Returns:
        [B, G, Hkv, K] in text order, K the budget in regions.
    """
    o, device = plan.options, q.device
    batch, kv_heads, count = q.shape[0], k.shape[1], q.shape[2] // plan.rows
    sinks, local = o.forced_sinks, -o.first_near(0)
    firsts = (plan.start + torch.arange(count, device=device) * plan.rows) // o.region_tokens
    own = -(-plan.rows // o.region_tokens)
    free = o.budget_regions - sinks - local - own
    total = int(firsts[-1]) - local  # regions that any group may choose from
    queries = _query_means(q, cos, sin, plan, kv_heads)  # [B, Hkv, G, heads * Q, D']
    fine = key_representatives(k[:, :, : total * o.region_tokens], o)  # [B, Hkv, R, F, D']
    index = torch.arange(total, device=device)
    products = 1 if use_triton(queries) else fine.shape[3]  # kept of each query and region
    per_group = queries[:, :, 0].shape[:3].numel() * fine.shape[2] * products
    step = max(1, SCORES_AT_ONCE.get(device.type, ON_A_GPU) // per_group)
    picked = []
    for at in range(0, count, step):
        near = firsts[at : at + step] - local
        reach = int(near[-1])
        some = queries[:, :, at : at + step]
        scores = region_scores(some.flatten(2, 3), fine[:, :, :reach]).unflatten(2, some.shape[2:4]).transpose(1, 2)
        eligible = (index[:reach] >= sinks) & (index[:reach] < near[:, None])  # [g, R]
        votes = _totals(scores, eligible, q.shape[1] // kv_heads, o)
        picked.append(best_regions(votes, free))
    around = torch.arange(-local, own, device=device) + firsts[:, None]
    forced = torch.cat([torch.arange(sinks, device=device).expand(count, -1), around], dim=1)
    forced = forced[None, :, None].expand(batch, -1, kv_heads, -1)
    return torch.cat([torch.cat(picked, dim=1), forced], dim=-1).sort(-1).values


def _query_means(q: Tensor, cos: Tensor, sin: Tensor, plan: _Plan, kv_heads: int) -> Tensor:
    """What the groups' queries are compared with regions by: [B, Hkv, G, heads * Q, D'], scaled, float32."""
    o = plan.options
    q = q.float().unflatten(1, (kv_heads, -1)).unflatten(3, (-1, plan.rows)) * q.shape[-1] ** -0.5
    if o.score_angle:
        q = rotate(q, cos[o.score_angle].float(), sin[o.score_angle].float())
    sub = o.query_sub if o.combine == "votes" else o.query_tokens
    means = query_representatives(sub_means(q, min(sub, plan.rows)), o.score)  # [B, Hkv, heads, G, Q, D']
    return means.transpose(2, 3).flatten(3, 4)


def _totals(scores: Tensor, eligible: Tensor, heads: int, o: SelectionOptions) -> Tensor:
    """What each group gives to each region (step 4), [B, g, Hkv, R]; -inf where it may not choose it."""
    if o.combine == "raw_sum":
        totals = scores.sum(-2)
        totals = totals.sum(2, keepdim=True).expand_as(totals) if o.heads == "shared" else totals
        return totals.masked_fill(~eligible[:, None], float("-inf"))
    votes = group_votes(scores, eligible, heads, o.query_tokens // o.query_sub)
    return votes.logsumexp(2, keepdim=True).expand_as(votes) if o.heads == "shared" else votes


class _Selected(torch.autograd.Function):
    """Groups attend to their regions, a few groups at a time, forward and backward.

    Inputs: q [B, Hq, G * rows, D]; k, v [B, Hkv, R * L, D]; regions [B, G, Hkv, K]; cos, sin; the plan.
    """

    @staticmethod
    def forward(ctx, q, k, v, regions, cos, sin, plan: _Plan):
        ctx.save_for_backward(q, k, v, regions, cos, sin)
        ctx.plan = plan
        out = torch.empty(q.shape, dtype=v.dtype, device=q.device)
        with torch.autocast(q.device.type, enabled=False):
            for groups, rows in _pieces(plan, regions, v):
                gathered = (_gather(x, regions[:, groups], plan) for x in (k, v))
                out[:, :, rows] = _attend(q[:, :, rows], *gathered, cos, sin, plan)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, regions, cos, sin = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grad_q = torch.empty_like(q)
        sums = [
            torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device) for x in (k, v)
        ]
        for groups, rows in _pieces(plan, regions, v):
            chosen = regions[:, groups]
            given = [x.detach() for x in (q[:, :, rows], *(_gather(x, chosen, plan) for x in (k, v)))]
            with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
                given = [x.requires_grad_() for x in given]
                out = _attend(*given, cos, sin, plan)
                grad_q[:, :, rows], *parts = torch.autograd.grad(out, given, grad[:, :, rows].to(out.dtype))
            for total, part in zip(sums, parts, strict=True):
                _add_back(total, part, chosen, plan)
        return grad_q, sums[0].to(k.dtype), sums[1].to(v.dtype), None, None, None, None


def _pieces(plan: _Plan, regions: Tensor, v: Tensor) -> list[tuple[slice, slice]]:
    """(groups, their tokens) of what is attended to at a time."""
    count, per_group = regions.shape[1], regions[:, 0].numel() * plan.options.region_tokens * v.shape[-1]
    step = max(1, KEYS_AT_ONCE.get(v.device.type, ON_A_GPU) // per_group)
    starts = range(0, count, step)
    return [(slice(g, g + step), slice(g * plan.rows, min(g + step, count) * plan.rows)) for g in starts]


def _flat(regions: Tensor, held: int) -> Tensor:
    """Numbers of regions [B, g, Hkv, K] among those of all texts and heads, `held` in each."""
    batch, _, kv_heads, _ = regions.shape
    first = torch.arange(batch * kv_heads, device=regions.device).view(batch, 1, kv_heads, 1) * held
    return (regions + first).flatten()


def _gather(x: Tensor, regions: Tensor, plan: _Plan) -> Tensor:
    """Keys or values [B, Hkv, R * L, D] of regions [B, g, Hkv, K]: [B, g, Hkv, K * L, D]."""
    blocks = x.unflatten(2, (-1, plan.options.region_tokens))  # [B, Hkv, R, L, D]
    picked = blocks.flatten(0, 2).index_select(0, _flat(regions, blocks.shape[2]))
    return picked.view(*regions.shape[:3], -1, x.shape[-1])


def _add_back(total: Tensor, part: Tensor, regions: Tensor, plan: _Plan) -> None:
    """Add gradients of what `_gather` gave to those of all keys or values; every region of a text is there once."""
    blocks = total.view(-1, plan.options.region_tokens, total.shape[-1])
    numbers = _flat(regions, total.shape[2] // plan.options.region_tokens)
    blocks.index_add_(0, numbers, part.reshape(-1, *blocks.shape[1:]).to(total.dtype))


def _attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, plan: _Plan) -> Tensor:
    """Step 5. q: [B, Hq, g * rows, D]; k, v: [B, g, Hkv, K * L, D]. Returns like q."""
    kv_heads, size, rows = k.shape[2], plan.keys, plan.rows
    q = q.unflatten(1, (kv_heads, -1)).unflatten(3, (-1, rows)).permute(0, 3, 1, 2, 4, 5)  # [B, g, Hkv, heads, rows, D]
    k, v = k[..., :size, :], v[..., :size, :]
    if plan.options.positions == "compact":  # chosen regions are whole and the group's own stand last
        q = rotate(q, cos[size - rows : size], sin[size - rows : size])
        k = rotate(k, cos[:size], sin[:size])
    heads = q.shape[3]
    mask = torch.ones(rows, size, dtype=torch.bool, device=q.device).tril(size - rows).repeat(heads, 1)
    bias = torch.zeros(mask.shape, dtype=v.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
    out = F.scaled_dot_product_attention(
        q.to(v.dtype).flatten(0, 2).flatten(1, 2)[:, None],  # [B * g * Hkv, 1, heads * rows, D]
        k.to(v.dtype).flatten(0, 2)[:, None],
        v.flatten(0, 2)[:, None],
        attn_mask=bias,
        scale=plan.scale,
    ).view(q.shape)
    return out.permute(0, 2, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
