"""A tree over fine key means, searched by beam, so that selecting costs the logarithm of the text.

Level 0 are the fine key means of a text. Every whole span of 1,024 nodes is sealed: it is split into 64 clusters of 16
nodes, each of which becomes one node of the next level, whose mean is its own. Two ways to form clusters:

- `similar`: halve the span at the median of its main direction, six times, so that members resemble their mean,
  wherever in the span they stand.
- `adjacent`: neighbours (the paper's multi-scale regions).

A mean alone hides the one member that answers, being unlike the rest; so a node also knows its radius, the distance of
the farthest fine mean under it, and scores q.mean + slack |q| radius. Slack 1 would be an upper bound of what any fine
mean under it can score; less searches better, since bounds are loose in many dimensions.

Spans lie at absolute multiples, so a text's tree is the same however it was read.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SPAN = 1024  # nodes of a level that are clustered together
CLUSTER = 16  # nodes of a cluster
POWER_STEPS = 4
SLACK = 0.5
GROUPS_AT_ONCE = 4  # whose scores stay in a CPU's caches
TreeKind = Literal["similar", "adjacent"]


@dataclass
class Level:
    """Nodes of one level above the fine means.

    Attributes:
        means: [Hkv, M, D]; `radii` [Hkv, M], distance of the farthest fine mean below.
        children: [Hkv, M, CLUSTER] int32, numbers of nodes of the level below.
    """

    means: Tensor
    radii: Tensor
    children: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.means, self.radii, self.children


def sealed_nodes(below: Any) -> Any:
    """Nodes of a level over `below` nodes (a number or a tensor of numbers): those of whole spans."""
    return below // SPAN * (SPAN // CLUSTER)


def cluster_span(nodes: Tensor, kind: TreeKind = "similar") -> tuple[Tensor, Tensor]:
    """Cluster one span.

    Args:
        nodes: [Hkv, SPAN, D], float32.

    Returns:
        (means [Hkv, SPAN / CLUSTER, D], members [Hkv, SPAN / CLUSTER, CLUSTER] int64, places within the span).
    """
    order = torch.arange(nodes.shape[1], device=nodes.device).expand(nodes.shape[0], -1)
    parts, order = nodes[:, None], order[:, None]  # [Hkv, P, n, D], [Hkv, P, n]
    while kind == "similar" and parts.shape[2] > CLUSTER:
        centred = parts - parts.mean(2, keepdim=True)
        halves = (centred @ _main_direction(centred))[..., 0].argsort(dim=-1, stable=True)
        parts = parts.gather(2, halves[..., None].expand_as(parts)).unflatten(2, (2, -1)).flatten(1, 2)
        order = order.gather(2, halves).unflatten(2, (2, -1)).flatten(1, 2)
    members = order.flatten(1).unflatten(1, (-1, CLUSTER))
    return parts.flatten(1, 2).unflatten(1, (-1, CLUSTER)).mean(2), members


def _main_direction(centred: Tensor) -> Tensor:
    """[..., D, 1] of points [..., n, D] around 0: power iteration from the farthest point, so that it is determined."""
    far = centred.square().sum(-1).argmax(-1)[..., None, None]
    direction = centred.gather(-2, far.expand(*far.shape[:-1], centred.shape[-1])).transpose(-1, -2)
    for _ in range(POWER_STEPS):
        direction = centred.transpose(-1, -2) @ (centred @ direction)
        direction = direction / direction.norm(dim=-2, keepdim=True).clamp(min=1e-20)
    return direction


def node_radii(fine: Tensor, levels: list[Level], number: int, nodes: slice) -> Tensor:
    """How far the fine means under some nodes lie from them.

    Args:
        fine: [Hkv, M, D]; `levels` the tree over them, whose level `number` holds the nodes, means and children set.

    Returns:
        [Hkv, n]: exact on the two lowest levels, on higher ones a bound through the children's radii.
    """
    level = levels[number]
    children, means = level.children[:, nodes].long(), level.means[:, nodes].float()
    below, extra = (levels[number - 1].means, None) if number else (fine, None)
    if number == 1:
        children, below = _at(levels[0].children, children).flatten(2).long(), fine
    elif number:
        extra = _at(levels[number - 1].radii[..., None], children)[..., 0].float()
    distances = (_at(below, children).float() - means[:, :, None]).norm(dim=-1)
    return (distances if extra is None else distances + extra).amax(-1)


def _at(rows: Tensor, numbers: Tensor) -> Tensor:
    """rows [Hkv, M, X] at numbers [Hkv, ...] -> [Hkv, ..., X]."""
    heads = torch.arange(len(rows), device=rows.device).view(-1, *[1] * (numbers.dim() - 1))
    return rows[heads, numbers]


def search(
    fine: Tensor,
    levels: list[Level],
    queries: Tensor,
    limits: Tensor,
    *,
    skip: int,
    beam: int,
    found: int,
    slack: float = SLACK,
) -> tuple[Tensor, Tensor]:
    """Find the fine means that the queries of each group want most, from the top of the tree down.

    At each level the children of the best `beam` nodes above are scored, and the nodes of the level's unsealed end. A
    node's score is the largest, over the group's rows, of its log-softmax among the nodes scored beside it.

    Args:
        fine: [Hkv, M, D] fine key means; `levels` the tree over them, lowest first.
        queries: [G, Hkv, Q, D] query representatives, scaled.
        limits: [G] int64, fine means that each group may see; the tree is used as if it had been sealed there.
        skip: fine means at the start that are not wanted (the sinks').
        beam: nodes of each level whose children are looked at.
        found: fine means wanted.

    Returns:
        (numbers [G, Hkv, K] of fine means, scores [G, Hkv, K]), best first; K at most `found`. Where a group has fewer,
        the score is -inf.
    """
    parts = [
        _search(fine, levels, q, limit, skip, beam, found, slack)
        for q, limit in zip(queries.split(GROUPS_AT_ONCE), limits.split(GROUPS_AT_ONCE), strict=True)
    ]
    width = max(numbers.shape[-1] for numbers, _ in parts)
    numbers = torch.cat([F.pad(x, (0, width - x.shape[-1])) for x, _ in parts])
    return numbers, torch.cat([F.pad(x, (0, width - x.shape[-1]), value=float("-inf")) for _, x in parts])


def _search(
    fine: Tensor,
    levels: list[Level],
    queries: Tensor,
    limits: Tensor,
    skip: int,
    beam: int,
    found: int,
    slack: float,
) -> tuple[Tensor, Tensor]:
    counts = [limits]
    while int(counts[-1].max()) >= SPAN and len(counts) <= len(levels):
        counts.append(sealed_nodes(counts[-1]))
    kv_heads = fine.shape[0]
    picked = torch.zeros(len(limits), kv_heads, 0, dtype=torch.int64, device=fine.device)
    known = torch.zeros_like(picked, dtype=torch.bool)
    for number in range(len(counts) - 1, -1, -1):
        nodes = fine if number == 0 else levels[number - 1].means
        count = counts[number]
        upper = counts[number + 1] if number + 1 < len(counts) else torch.zeros_like(count)
        start = upper // (SPAN // CLUSTER) * SPAN  # the unsealed end of this level, for each group
        longest = int((count - start).max())
        end = (start[:, None] + torch.arange(longest, device=fine.device))[:, None].expand(-1, kv_heads, -1)
        numbers = torch.cat([picked, end], dim=-1)
        valid = torch.cat([known, end < count[:, None, None]], dim=-1)
        if number == 0:
            valid &= numbers >= skip
        radii = levels[number - 1].radii if number and slack else None
        scores = _node_scores(nodes, radii, queries, numbers.masked_fill(~valid, 0), valid, slack)
        width = min(found if number == 0 else beam, numbers.shape[-1])
        best = scores.topk(width, dim=-1)
        chosen = numbers.gather(-1, best.indices)
        if number == 0:
            return chosen, best.values
        known = (best.values > float("-inf"))[..., None].expand(-1, -1, -1, CLUSTER).flatten(2)
        picked = _take(levels[number - 1].children, chosen.masked_fill(best.values == float("-inf"), 0))
        picked = picked.flatten(2).long()
    raise AssertionError("level 0 returns")


def _take(rows: Tensor, numbers: Tensor) -> Tensor:
    """rows [Hkv, M, X], contiguous, at numbers [G, Hkv, N] -> [G, Hkv, N, X]."""
    kv_heads, size, width = rows.shape
    heads = torch.arange(kv_heads, device=rows.device)[:, None] * size
    return rows.view(-1, width).index_select(0, (numbers + heads).flatten()).view(*numbers.shape, width)


def _node_scores(
    nodes: Tensor, radii: Tensor | None, queries: Tensor, numbers: Tensor, valid: Tensor, slack: float
) -> Tensor:
    """[G, Hkv, N] log of the largest vote that any row gives to each node; -inf where it is not valid."""
    rows = _take(nodes, numbers)  # [G, Hkv, N, D]
    mask = torch.zeros(valid.shape, device=rows.device).masked_fill_(~valid, float("-inf"))
    products = (queries.to(rows.dtype) @ rows.transpose(-1, -2)) + mask[:, :, None]  # [G, Hkv, Q, N], float32
    if radii is not None:
        reach = _take(radii[..., None], numbers)[..., 0].float() * slack  # [G, Hkv, N]
        products.addcmul_(queries.norm(dim=-1, keepdim=True).float(), reach[:, :, None])
    votes = products.sub_(products.logsumexp(-1, keepdim=True)).amax(-2)
    return votes.masked_fill_(~valid, float("-inf"))


def candidate_regions(numbers: Tensor, scores: Tensor, per_region: int, count: int) -> tuple[Tensor, Tensor]:
    """The regions of found fine means, each once, in the order of their best.

    Args:
        numbers, scores: [..., K] as `search` gives them.
        per_region: fine means of one region.

    Returns:
        (regions [..., C], valid [..., C]), C at most `count`; where fewer were found, the rest is not valid.
    """
    regions = torch.where(scores > float("-inf"), numbers // per_region, -1)
    order = regions.argsort(dim=-1, stable=True)  # stable: of one region, the best comes first
    ordered = regions.gather(-1, order)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    kept = torch.zeros_like(first).scatter(-1, order, first) & (regions >= 0)
    best = torch.where(kept, scores, float("-inf")).topk(min(count, scores.shape[-1]), dim=-1)
    return regions.gather(-1, best.indices).clamp(min=0), best.values > float("-inf")
