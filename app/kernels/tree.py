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
from typing import Literal

import torch
from torch import Tensor

SPAN = 1024  # nodes of a level that are clustered together
CLUSTER = 16  # nodes of a cluster
POWER_STEPS = 4
SLACK = 0.5
TreeKind = Literal["similar", "adjacent"]


@dataclass
class Level:
    """Nodes of one level above the fine means.

    Attributes:
        nodes: [Hkv, M, D + 1]: means, and behind each its radius, the distance of the farthest fine mean below.
        children: [Hkv, M, CLUSTER] int32, numbers of nodes of the level below.
    """

    nodes: Tensor
    children: Tensor

    @property
    def means(self) -> Tensor:
        return self.nodes[..., :-1]

    @property
    def radii(self) -> Tensor:
        return self.nodes[..., -1]

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.nodes, self.children


def sealed_nodes(below: int) -> int:
    """Nodes of a level over `below` nodes: those of whole spans."""
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
    fine: Tensor, levels: list[Level], queries: Tensor, limit: int, end: int, *, beam: int, slack: float = SLACK
) -> tuple[Tensor, Tensor]:
    """Find the fine means that the queries of one group want most, from the top of the tree down.

    At each level the children of the best `beam` nodes above are scored, and the nodes of the level's unsealed end. A
    node's score is the largest, over the group's rows, of its log-softmax among the nodes scored beside it.

    Args:
        fine: [Hkv, M, D] fine key means; `levels` the tree over them, lowest first.
        queries: [Hkv, Q, D] query representatives, scaled.
        limit: the tree is used as if it had been sealed at so many fine means; those from there to `end` are all
            looked at.
        beam: nodes of each level whose children are looked at.

    Returns:
        (numbers [Hkv, N] of fine means, each once, their products [Hkv, Q, N] with the queries, float32).
    """
    counts = [limit]
    while len(counts) <= len(levels) and sealed_nodes(counts[-1]) > beam:  # else all of a level is looked at
        counts.append(sealed_nodes(counts[-1]))
    queries = queries.float()
    reaching = torch.cat([queries, slack * queries.norm(dim=-1, keepdim=True)], dim=-1)  # meets (mean, radius)
    picked: Tensor | None = None
    for number in range(len(counts) - 1, 0, -1):
        level, start = levels[number - 1], _sealed_below(counts, number)
        numbers, scores = _scored(level.nodes, reaching, picked, start, counts[number])
        best = scores.log_softmax(-1).amax(-2).topk(min(beam, numbers.shape[-1]), dim=-1, sorted=False).indices
        picked = _take(level.children, numbers.gather(-1, best)).flatten(1).long()
    return _scored(fine, queries, picked, _sealed_below(counts, 0), end)


def _sealed_below(counts: list[int], number: int) -> int:
    """Nodes of a level that have nodes above them, of those that are searched."""
    return counts[number + 1] // (SPAN // CLUSTER) * SPAN if number + 1 < len(counts) else 0


def _scored(nodes: Tensor, queries: Tensor, picked: Tensor | None, start: int, end: int) -> tuple[Tensor, Tensor]:
    """(numbers [Hkv, N], products [Hkv, Q, N]) of picked nodes and of all in [start, end)."""
    rows, numbers = nodes[:, start:end], picked
    if picked is None or start < end:
        numbers = torch.arange(start, end, device=nodes.device).expand(len(nodes), -1)
    if picked is not None:
        rows = _take(nodes, picked) if start == end else torch.cat([_take(nodes, picked), rows], dim=1)
        numbers = picked if start == end else torch.cat([picked, numbers], dim=-1)
    return numbers, queries @ rows.float().transpose(-1, -2)


def _take(rows: Tensor, numbers: Tensor) -> Tensor:
    """rows [Hkv, M, X], contiguous, at numbers [Hkv, N] -> [Hkv, N, X]."""
    kv_heads, size, width = rows.shape
    heads = torch.arange(0, kv_heads * size, size, device=rows.device)[:, None]
    return rows.view(-1, width).index_select(0, (numbers + heads).flatten()).view(kv_heads, -1, width)


def candidate_regions(numbers: Tensor, scores: Tensor, per_region: int, count: int) -> tuple[Tensor, Tensor]:
    """The regions of found fine means, each once, in the order of their best.

    Args:
        numbers, scores: [..., K], best first; -inf for what was not found.
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
