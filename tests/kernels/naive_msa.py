"""MSA-1 number by number, with every option by name: what the oracle is tested against."""

import math

import torch

from app.kernels.options import SelectionOptions

DIM = 16
INV_FREQ = 10_000.0 ** -(torch.arange(0, DIM, 2) / DIM)


def text(tokens, heads=4, kv_heads=2, dtype=torch.float32, seed=0):
    """Raw q, k, v of a random text. Scaled so that selection and attention are sharp."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, 1.5), (kv_heads, 1.5), (kv_heads, 1.0))
    return [(torch.randn(h, tokens, DIM, generator=generator) * s).to(dtype) for h, s in shapes]


def turn(x, position):
    """Rotate [..., D] by a position each, in complex numbers."""
    half = x.shape[-1] // 2
    angle = torch.as_tensor(position, dtype=torch.float64)[..., None] * INV_FREQ.double()
    z = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=-1)


def dense(q, k, v):
    """Causal attention in float64, rotated at the original positions, head by head."""
    tokens, heads = q.shape[1], q.shape[0] // k.shape[0]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    outputs = []
    for h in range(q.shape[0]):
        logits = turn(q[h], torch.arange(tokens)) @ turn(k[h // heads], torch.arange(tokens)).T * DIM**-0.5
        outputs.append(logits.masked_fill(~mask, -math.inf).softmax(-1) @ v[h // heads].double())
    return torch.stack(outputs)


def groups(tokens, o: SelectionOptions):
    """The numbers of the query regions of each merged group."""
    count, m = -(-tokens // o.query_tokens), o.merge
    found: dict[tuple[int, int], list[int]] = {}
    for i in range(count):
        block, place = divmod(i, m * m)
        key = (i // m, 0) if o.permute == "adjacent" else (block, place % m)
        found.setdefault(key, []).append(i)
    return list(found.values())


def local_mass(q, k, head, o: SelectionOptions):
    """Attention that each key receives from the queries of its own block of `group_tokens`."""
    heads, tokens = q.shape[0] // k.shape[0], k.shape[1]
    mass = [0.0] * tokens
    for t in range(tokens):
        first = t // o.group_tokens * o.group_tokens
        keys = turn(k[head, first : t + 1], torch.arange(t + 1 - first))
        for h in range(head * heads, (head + 1) * heads):
            row = (keys @ turn(q[h, t], t - first) * DIM**-0.5).softmax(0)
            for j, weight in enumerate(row.tolist()):
                mass[first + j] += weight
    return mass


def region_score(query, keys, mass, o: SelectionOptions):
    """One query representative against one region's keys [L, D]."""
    blocks = keys.split(o.key_sub)
    if o.score == "minmax":
        return max(float(torch.maximum(query * b.amin(0), query * b.amax(0)).sum()) for b in blocks)
    if o.score == "infllm":
        best = sorted(range(len(keys)), key=lambda i: mass[i], reverse=True)[:4]
        return float(query @ keys[best].mean(0))
    return max(float(query @ b.mean(0)) for b in blocks)


def choice(q, k, group, o: SelectionOptions):
    """Steps 1 to 4: the regions of one group, for every KV head. `group`: numbers of its query regions."""
    tokens, kv_heads, heads, size = q.shape[1], k.shape[0], q.shape[0] // k.shape[0], o.region_tokens
    q, k = q.float(), k.float()
    parts = [(i * o.query_tokens, min((i + 1) * o.query_tokens, tokens)) for i in group]
    end = parts[-1][1]
    if end <= o.budget_tokens:
        return [list(range((end - 1) // size + 1))] * kv_heads
    forced = set()
    for start, stop in parts:
        before = o.local_regions if o.forced == "all" else 0
        forced |= {r for r in range(start // size - before, (stop - 1) // size + 1) if r >= 0}
    if o.forced == "all":
        forced |= set(range(o.sink_regions))
    totals = []
    for head in range(kv_heads):
        mass = local_mass(q, k, head, o) if o.score == "infllm" else [0.0] * tokens
        sums: dict[int, list[float]] = {}
        for start, stop in parts:
            free = [r for r in range(start // size) if r not in forced and (r + 1) * size <= start]
            for h in range(head * heads, (head + 1) * heads):
                sub = o.query_sub if o.combine == "votes" else stop - start
                best = [-math.inf] * len(free)
                for t in range(start, stop, sub):
                    query = turn(q[h, t : min(t + sub, stop)].mean(0), o.score_angle).float()
                    scores = torch.tensor(
                        [
                            region_score(query, k[head, r * size : (r + 1) * size], mass[r * size : (r + 1) * size], o)
                            for r in free
                        ]
                    ) / math.sqrt(DIM)
                    row = scores.softmax(0) if o.combine == "votes" else scores
                    best = [max(a, b) for a, b in zip(best, row.tolist(), strict=True)]
                for r, value in zip(free, best, strict=True):
                    sums.setdefault(r, []).append(value)
        # Raw sums: mean over the query regions that may choose it, so that being visible to few is no merit.
        totals.append({r: sum(x) * (heads / len(x) if o.combine == "raw_sum" else 1) for r, x in sums.items()})
    if o.heads == "shared":
        totals = [{r: sum(t[r] for t in totals) for r in totals[0]}] * kv_heads
    room = max(0, o.budget_tokens // size - len(forced))
    return [sorted(forced | set(sorted(t, key=lambda r: (t[r], r), reverse=True)[:room])) for t in totals]


def attend(q, k, v, o: SelectionOptions):
    """MSA-1, one query at a time."""
    tokens, heads, size = q.shape[1], q.shape[0] // k.shape[0], o.region_tokens
    out = torch.empty(q.shape, dtype=torch.float64)
    for group in groups(tokens, o):
        rows = [t for i in group for t in range(i * o.query_tokens, min((i + 1) * o.query_tokens, tokens))]
        end = rows[-1] + 1
        for head, regions in enumerate(choice(q, k, group, o)):
            places = [t for r in regions for t in range(r * size, min((r + 1) * size, end))]
            own = {t // size for t in rows}
            near = own | ({r - n for r in own for n in range(o.local_regions + 1)} if o.forced == "all" else set())
            window = end - min(r for r in near if r >= 0) * size - 1
            for t in rows:
                seen = [i for i, place in enumerate(places) if place <= t]
                for h in range(head * heads, (head + 1) * heads):
                    logits = []
                    for i in seen:
                        key, query = k[head, places[i]], q[h, t]
                        if o.positions == "one_distance" and end > o.budget_tokens:
                            distance = t - places[i] if places[i] // size in near else window
                        elif o.positions == "original":
                            distance = t - places[i]
                        else:
                            distance = places.index(t) - i
                        logits.append(turn(query, distance) @ key.double() * DIM**-0.5)
                    out[h, t] = torch.stack(logits).softmax(0) @ v[head, [places[i] for i in seen]].double()
    return out
