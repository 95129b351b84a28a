"""Which regions queries attend to (MSA-1 steps 1 to 4): groups of them while reading, a single one in decode.

For a single query many regions are scored roughly first, all of them from the int8 codes of the index or those that a
tree finds; the best are scored again with their means. The softmax of its votes runs over all that was scored.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.codes import uses_integers
from app.kernels.regions import best_regions, group_votes, query_representatives, region_scores, sub_means
from app.kernels.rope import rotate
from app.kernels.tree import candidate_regions, search
from app.memory.config import AttentionConfig
from app.memory.memory import RegionMemory
from app.runtime.cache import RegionCache
from app.runtime.policies import AttentionSpec

FOUND_PER_CANDIDATE = 4  # fine means that the tree is asked for: several may lie in one region


@dataclass(frozen=True)
class Eligible:
    """Which regions groups may choose; a table of all is made only where no tree is searched: it grows with the text.

    Attributes:
        first: the regions before it are attended anyway.
        ends: [G], the first region of each group that is attended for being near.
        lengths: [R] tokens of the regions that any group may choose, 0 for muted ones.
    """

    first: int
    ends: Tensor
    lengths: Tensor

    @property
    def regions(self) -> int:
        return len(self.lengths)

    def part(self, groups: slice) -> "Eligible":
        """The same for some of the groups."""
        return replace(self, ends=self.ends[groups])

    def of(self, regions: Tensor) -> Tensor:
        """Which of these regions [N] each group may choose, [G, N]."""
        return (regions >= self.first) & (regions < self.ends[:, None]) & (self.lengths[regions] > 0)

    def table(self) -> Tensor:
        """The same of all regions, [G, R]."""
        return self.of(torch.arange(self.regions, device=self.lengths.device))


def select(
    spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, firsts: Tensor, own: int, lengths: Tensor
) -> Tensor:
    """Choose the regions of each query group (MSA-1 steps 1 to 4).

    Args:
        q: [G, Hkv, heads, Tg, D] raw queries.
        firsts: [G] first own region of each group; `own` regions each.
        lengths: [R] tokens of every region, 0 for muted ones.

    Returns:
        [G, Hkv, K] regions in text order, K at most the budget.
    """
    a, kv_heads = spec.attention, q.shape[1]
    firsts_near, sinks = a.first_near(firsts), a.forced_sinks
    local = torch.arange(int(firsts_near[0] - firsts[0]), own, device=q.device) + firsts[:, None]  # [G, own + local]
    forced = torch.cat([torch.arange(sinks, device=q.device).expand(len(firsts), -1), local.clamp(min=0)], dim=1)
    total = int(firsts_near[-1])  # regions that any group may choose from
    count = min(max(0, a.budget_regions - forced.shape[1]), total)
    eligible = Eligible(sinks, firsts_near, lengths[:total])
    if not spec.policy.scores:
        picked = best_regions(spec.policy.votes(eligible.table(), kv_heads), count)
    else:
        # Each group by its own place, whatever the others of its segment do.
        far = (firsts_near - cache.base_regions) * a.region_tokens >= _tree_from(a, q)
        near = len(firsts) - int(far.sum())
        picked = torch.cat(
            [
                _best_scored(spec, cache, layer, q[part], eligible.part(part), count, part.start == near)
                for part in (slice(0, near), slice(near, len(firsts)))
                if part.start < part.stop
            ]
        )
    fixed = forced[:, None].expand(-1, kv_heads, -1)
    return torch.cat([picked, fixed], dim=-1).sort(-1).values


def _best_scored(
    spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, eligible: Eligible, count: int, far: bool
) -> Tensor:
    """The `count` best regions [G, Hkv, count]: candidates first, then fine scores of those in float32."""
    a, total = spec.attention, eligible.regions
    means = query_means(spec, q)  # [G, Hkv, heads, Q, D]
    searched = searched_by_tree(cache, far, _tree_from(a, q))
    if total <= a.candidates and not any(searched):
        fine = torch.cat(_summaries(cache, layer, "fine", total, searched), dim=1)
        scores = region_scores(means.flatten(2, 3), fine.float())
        return best_regions(_totals(a, scores, eligible.table()[:, None], means.shape[2:4]), count)
    parts = [] if all(searched) else [_coarse_candidates(cache, layer, means, eligible, count, searched)]
    for tree, store in zip(searched, cache.stores(), strict=True):
        if tree:
            parts.append(_tree_candidates(cache, layer, means, eligible, count, store))
    candidates, valid = (torch.cat(x, dim=-1) for x in zip(*parts, strict=True))
    candidates, order = candidates.sort(dim=-1)  # ties go to the later region
    fine = _gather_fine(cache, layer, candidates)
    scores = region_scores(means.flatten(2, 3), fine.float())  # [G, Hkv, heads * Q, C]
    votes = _totals(a, scores, valid.gather(-1, order), means.shape[2:4])
    return candidates.gather(-1, best_regions(votes, count))


def query_means(spec: AttentionSpec, q: Tensor) -> Tensor:
    """What the queries [G, Hkv, heads, Tg, D] are compared with regions by, [G, Hkv, heads, Q, D'], scaled."""
    a, rows = spec.attention, q.shape[3]
    if a.score_angle:
        cos, sin = spec.rope(a.score_angle + 1, q)
        q = rotate(q, cos[a.score_angle], sin[a.score_angle])
    sub = a.query_sub if a.combine == "votes" else a.query_tokens
    return query_representatives(sub_means(q, min(sub, rows)) * q.shape[-1] ** -0.5, a.score)


def _totals(a: AttentionConfig, scores: Tensor, eligible: Tensor, shape: tuple[int, int]) -> Tensor:
    """What each group gives to each region (MSA-1 step 4), [G, Hkv, C]; -inf where it may not choose it.

    Args:
        scores: [G, Hkv, heads * Q, C]; `shape` is (heads, Q).
        eligible: [G, Hkv or 1, C].
    """
    eligible = eligible.expand(*scores.shape[:2], -1)
    if a.combine == "raw_sum":
        total = scores.sum(-2).masked_fill(~eligible, float("-inf"))
        return total.sum(1, keepdim=True).expand_as(total) if a.heads == "shared" else total
    folded = scores.flatten(0, 1)[:, None]  # [G * Hkv, 1, heads * Q, C]: each KV head has candidates of its own
    votes = group_votes(folded, eligible.flatten(0, 1), shape[0], a.query_tokens // a.query_sub).view(eligible.shape)
    return votes.logsumexp(1, keepdim=True).expand_as(votes) if a.heads == "shared" else votes


def _tree_from(a: AttentionConfig, q: Tensor) -> int:
    """Length from which a memory is searched by tree for queries [G, Hkv, heads, Tg, D]."""
    return a.decode_tree_from_tokens if q.shape[3] == 1 else a.tree_from_tokens


def searched_by_tree(cache: RegionCache, far: bool, tree_from: int) -> list[bool]:
    """Which memories are searched by tree: those that long; the tail when the groups stand `far` enough in it."""
    a = cache.shape.attention
    if not a.searches_tree or cache.allowed is not None:  # a beam would be spent on muted regions
        return [False] * (len(cache.memories) + 1)
    return [*(memory.tokens >= tree_from for memory in cache.memories), far]


def _coarse_candidates(
    cache: RegionCache, layer: int, means: Tensor, eligible: Eligible, count: int, searched: list[bool]
) -> tuple[Tensor, Tensor]:
    """Candidates from the memories without a tree: all regions when they are few, else the best by coarse means.

    Returns:
        (regions [G, Hkv, C], valid [G, Hkv, C]).
    """
    a, total = cache.shape.attention, eligible.regions
    groups, kv_heads = means.shape[:2]
    index = torch.cat(
        [
            torch.arange(offset, max(offset, min(end, total)), device=means.device)
            for tree, (offset, end, _) in zip(searched, cache.stores(), strict=True)
            if not tree
        ]
    )
    allowed = eligible.of(index)
    if len(index) <= a.candidates:
        shape = (groups, kv_heads, len(index))
        return index.expand(shape), allowed[:, None].expand(shape)
    # A single query can afford the fine means at once; groups cut with the coarse ones.
    name = "fine" if means.shape[3] == 1 else "coarse"
    folded = means.permute(1, 0, 2, 3, 4).flatten(1, 3).to(cache.shape.dtype)
    scores = torch.cat(
        [region_scores(folded, part) for part in _summaries(cache, layer, name, total, searched)], dim=-1
    )  # [Hkv, G * heads * Q, R]
    scores = scores.view(kv_heads, groups, -1, len(index)).transpose(0, 1)
    best = best_regions(_totals(a, scores, allowed[:, None], means.shape[2:4]), max(a.candidates, count))
    return index[best], allowed[:, None].expand(-1, kv_heads, -1).gather(-1, best)


def _tree_candidates(
    cache: RegionCache,
    layer: int,
    means: Tensor,
    eligible: Eligible,
    count: int,
    store: tuple[int, int, RegionMemory],
) -> tuple[Tensor, Tensor]:
    """Candidates from one memory by its tree, and its last `count` eligible regions, so that there are always enough.

    Returns:
        (regions [G, Hkv, C], valid [G, Hkv, C]).
    """
    a, (offset, end, memory) = cache.shape.attention, store
    per_region = a.region_tokens // a.key_sub
    last = eligible.ends.clamp(max=end) - offset  # [G]; nothing is muted here
    limits = (last - count).clamp(min=0)
    skip = max(0, a.forced_sinks - offset)
    fine, levels = memory.index.tree(layer)
    parts = []
    for query, limit in zip(means.flatten(2, 3), (limits * per_region).tolist(), strict=True):
        numbers, scores = search(fine, levels, query, limit, limit, beam=a.tree_beam)
        votes = scores.log_softmax(-1).amax(-2).masked_fill_(numbers < skip * per_region, float("-inf"))
        best = votes.topk(min(FOUND_PER_CANDIDATE * a.candidates, votes.shape[-1]), dim=-1)
        found = candidate_regions(
            numbers.gather(-1, best.indices), best.values, per_region, max(a.candidates - count, count)
        )
        parts.append(found)
    width = max(regions.shape[-1] for regions, _ in parts)
    regions, valid = (
        torch.stack([F.pad(x, (0, width - x.shape[-1])) for x in part]) for part in zip(*parts, strict=True)
    )
    recent = limits[:, None] + torch.arange(count, device=means.device)  # [G, count]
    recent = recent[:, None].expand(-1, means.shape[1], -1)
    near = (recent < last[:, None, None]) & (recent >= skip)
    return torch.cat([regions, recent], dim=-1) + offset, torch.cat([valid, near], dim=-1)


def _summaries(cache: RegionCache, layer: int, name: str, total: int, searched: list[bool]) -> list[Tensor]:
    """[Hkv, R, F, D] key means of the first `total` regions, memory by memory, but for those `searched` by tree."""
    return [
        memory.index.summaries(layer, name, min(end, total) - offset)
        for tree, (offset, end, memory) in zip(searched, cache.stores(), strict=True)
        if offset < total and not tree
    ]


def _gather_fine(cache: RegionCache, layer: int, regions: Tensor) -> Tensor:
    """Fine key means of candidate regions [G, Hkv, C] -> [G, Hkv, C, F, D]."""
    stores = cache.stores()
    heads = torch.arange(cache.shape.kv_heads, device=regions.device)[:, None].expand_as(regions)
    if len(stores) == 1:
        means = stores[0][2].index.take(layer, "fine", heads.flatten(), regions.flatten())
        return means.view(*regions.shape, *means.shape[1:])
    a = cache.shape.attention
    size = (*regions.shape, a.region_tokens // a.key_sub, stores[0][2].index.width)
    out = torch.empty(size, dtype=cache.shape.dtype, device=regions.device)
    for offset, end, memory in stores:
        here = ((regions >= offset) & (regions < end)).nonzero(as_tuple=True)
        if len(here[0]):
            out[here] = memory.index.take(layer, "fine", here[1], regions[here] - offset)
    return out


SPARE = 2  # times as many regions are scored again as are chosen, at least
NOT_SEEN = -1e30  # below every score, and no trouble in a softmax
LEAST = 1e-7  # share of the softmax that the regions left out have at least: float32 does not tell it from none

Scored = tuple[Tensor, Tensor, Tensor]  # regions [Hkv, C], their scores and the log of all regions' sum [Hkv, heads]


def select_one(spec: AttentionSpec, cache: RegionCache, layer: int, q: Tensor, first: int, lengths: Tensor) -> Tensor:
    """Choose the regions of a single query.

    Args:
        q: [1, Hkv, heads, 1, D] raw query, which stands in region `first`.
        lengths: [R] tokens of every region, 0 for muted ones.

    Returns:
        [1, Hkv, K] regions in text order.
    """
    a, kv_heads = spec.attention, q.shape[1]
    if not (a.votes_by_means and spec.policy.scores):
        return select(spec, cache, layer, q, torch.tensor([first], device=q.device), 1, lengths)
    near, sinks = a.first_near(first), a.forced_sinks
    forced = [*range(sinks), *(max(0, region) for region in range(near, first + 1))]
    count = min(max(0, a.budget_regions - len(forced)), near)
    query = query_means(spec, q)[0, :, :, 0]  # [Hkv, heads, D]
    far = (near - cache.base_regions) * a.region_tokens >= a.decode_tree_from_tokens
    searched = searched_by_tree(cache, far, a.decode_tree_from_tokens)
    parts: list[Scored] = []
    for tree, (offset, end, memory) in zip(searched, cache.stores(), strict=True):
        start, stop = max(sinks - offset, 0), min(end, near) - offset
        if start >= stop:
            continue
        seen = None if cache.allowed is None else lengths[offset + start : offset + stop] > 0
        if seen is not None and not seen.any():
            continue
        regions, scores, total = _scored(a, memory, layer, query, range(start, stop), seen, count, tree)
        parts.append((regions + offset, scores, total))
    fixed = torch.tensor(forced, device=q.device).expand(kv_heads, -1)
    if not parts:  # all but what is near is muted
        return fixed.sort(-1).values[None]
    regions, scores, total = parts[0]
    if len(parts) > 1:
        regions, scores = (torch.cat(x, dim=-1) for x in list(zip(*parts, strict=True))[:2])
        total = torch.stack([part[2] for part in parts]).logsumexp(0)
    votes = (scores - total[..., None]).logsumexp(-2)
    picked = regions.gather(-1, best_regions(votes, count))
    return torch.cat([picked, fixed], dim=-1).sort(-1).values[None]


def _scored(
    a: AttentionConfig,
    memory: RegionMemory,
    layer: int,
    query: Tensor,
    among: range,
    seen: Tensor | None,
    count: int,
    tree: bool,
) -> Scored:
    """The best of the regions `among` those of a memory, or all when they are few; `seen` leaves some of them out."""
    if seen is not None and int(seen.sum()) <= max(a.candidates, count):
        few = seen.nonzero()[:, 0] + among.start
        return _exactly(memory, layer, query, few.expand(len(query), -1))
    if len(among) <= max(a.candidates, count):
        fine = memory.index.summaries(layer, "fine", among.stop)[:, among.start :]
        scores = region_scores(query, fine.float())
        few = torch.arange(among.start, among.stop, device=query.device)
        return few.expand(len(query), -1), scores, scores.logsumexp(-1)
    if tree:
        return _by_tree(a, memory, layer, query, among, count)
    rough, shift = _roughly(memory, layer, query, among.stop)
    rough = rough[..., among.start :]
    if seen is not None:
        rough = rough.masked_fill(~seen, float("-inf"))
    return _again(memory, layer, query, rough, shift, max(a.candidates // 2, SPARE * count), among.start)


def _roughly(memory: RegionMemory, layer: int, query: Tensor, stop: int) -> tuple[Tensor, Tensor]:
    """Scores [Hkv, heads, R] of the first `stop` regions, as exact as codes or the cache's data type allow.

    What is the same for all regions is told apart, [Hkv, heads].
    """
    if uses_integers(query):
        return memory.index.sketch.scores(layer, query, stop)
    fine = memory.index.summaries(layer, "fine", stop)
    return region_scores(query.to(fine.dtype), fine), query.new_zeros(query.shape[:2])


def _by_tree(a: AttentionConfig, memory: RegionMemory, layer: int, query: Tensor, among: range, count: int) -> Scored:
    """The best of the regions that a tree finds, at least `count`; nothing here has the size of the text."""
    per_region, kept = a.region_tokens // a.key_sub, SPARE * count
    fine, levels = memory.index.tree(layer)
    end, beam = among.stop * per_region, max(a.tree_beam, a.candidates, count)
    numbers, scores = search(fine, levels, query, end, end, beam=beam)
    if among.start:
        scores = scores.masked_fill((numbers < among.start * per_region)[:, None], NOT_SEEN)
    shares = scores.log_softmax(-1)
    found = min(max(FOUND_PER_CANDIDATE * kept, per_region * count), scores.shape[-1])
    best = shares.amax(-2).topk(found, dim=-1)
    regions, valid = candidate_regions(numbers.gather(-1, best.indices), best.values, per_region, kept)
    valid &= regions >= among.start
    rest = 1 - shares.gather(-1, best.indices[:, None].expand(-1, shares.shape[1], -1)).exp().sum(-1)
    rest = (scores - shares)[..., 0] + rest.clamp(min=LEAST).log()  # the difference is the same everywhere
    regions, scores, _ = _exactly(memory, layer, query, regions)
    scores = scores.masked_fill(~valid[:, None], NOT_SEEN)
    return regions, scores, torch.logaddexp(rest, scores.logsumexp(-1))


def _again(
    memory: RegionMemory, layer: int, query: Tensor, rough: Tensor, shift: Tensor, kept: int, start: int
) -> Scored:
    """Score the best `kept` regions again, exactly, by rough scores [Hkv, heads, R] of the regions from `start` on."""
    shares = rough.log_softmax(-1)
    best = shares.amax(-2).topk(min(kept, rough.shape[-1]), sorted=False).indices.sort(-1).values
    index = best[:, None].expand(-1, rough.shape[1], -1)
    shares, rough = shares.gather(-1, index), rough.gather(-1, index)
    total = shift + (rough - shares).amax(-1)  # the difference is the same everywhere
    rest = total + (1 - shares.exp().sum(-1)).clamp(min=LEAST).log()
    regions, scores, exact = _exactly(memory, layer, query, best + start)
    return regions, scores, torch.logaddexp(rest, exact)


def _exactly(memory: RegionMemory, layer: int, query: Tensor, regions: Tensor) -> Scored:
    """Scores of regions [Hkv, C] by their means."""
    heads = torch.arange(len(query), device=query.device)[:, None].expand_as(regions)
    fine = memory.index.take(layer, "fine", heads.flatten(), regions.flatten())
    scores = region_scores(query, fine.view(*regions.shape, *fine.shape[1:]).float())
    return regions, scores, scores.logsumexp(-1)
