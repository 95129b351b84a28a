"""MSA-1 against loops that follow its five steps, and its invariants."""

import math

import pytest
import torch

from app.kernels import ms_attn
from app.kernels.ms_attn import Selection, ms_attention, select_group
from app.kernels.rope import rope_table

DIM, REGION, MERGE, BUDGET = 16, 8, 2, 64
GROUP = REGION * MERGE
CHOICE = {"region_tokens": REGION, "budget_tokens": BUDGET, "local_regions": 1, "query_sub": 2, "key_sub": 2}
INV_FREQ = 10_000.0 ** -(torch.arange(0, DIM, 2) / DIM)
LENGTHS = [1, 63, 64, 65, 100, 1000]


def text(tokens, heads=4, kv_heads=2, dtype=torch.float32, seed=0):
    """Raw q, k, v of a random text. Scaled so that selection and attention are sharp."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, 1.5), (kv_heads, 1.5), (kv_heads, 1.0))
    return [(torch.randn(h, tokens, DIM, generator=generator) * s).to(dtype) for h, s in shapes]


def run(q, k, v, **changes):
    options = {**CHOICE, "merge": MERGE, **changes}
    cos, sin = rope_table(INV_FREQ, min(q.shape[1], options["budget_tokens"]) + REGION, 1.0, q.dtype)
    return ms_attention(q, k, v, cos, sin, scale=DIM**-0.5, **options)


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


def naive_choice(q, k, start, end, head):
    """Steps 1 to 4 for one KV head: the regions that the group [start, end) sees."""
    if end <= BUDGET:
        return list(range((end - 1) // REGION + 1))
    heads, first, last = q.shape[0] // k.shape[0], start // REGION, (end - 1) // REGION
    forced = {0, *range(first - 1, last + 1)}
    free = [r for r in range(first) if r not in forced]
    sub = CHOICE["key_sub"]
    kbar = torch.stack(
        [k[head, r * REGION : (r + 1) * REGION].float().view(-1, sub, DIM).mean(1) for r in free]
    )  # [free, subs, D]
    total = torch.zeros(len(free))
    for own in range(first, last + 1):
        for query_head in range(head * heads, (head + 1) * heads):
            best = torch.zeros(len(free))
            stop = min((own + 1) * REGION, end)
            for t in range(own * REGION, stop, CHOICE["query_sub"]):
                qbar = q[query_head, t : min(t + CHOICE["query_sub"], stop)].float().mean(0)
                score = (kbar @ qbar).amax(-1) / math.sqrt(DIM)
                best = torch.maximum(best, score.softmax(-1))
            total += best
    votes = total.tolist()
    ranked = sorted(range(len(free)), key=lambda i: (votes[i], i), reverse=True)
    return sorted(forced | {free[i] for i in ranked[: BUDGET // REGION - len(forced)]})


def naive(q, k, v):
    """MSA-1, one query at a time."""
    tokens, heads = q.shape[1], q.shape[0] // k.shape[0]
    out = torch.empty(q.shape, dtype=torch.float64)
    for start in range(0, tokens, GROUP):
        end = min(start + GROUP, tokens)
        for head in range(k.shape[0]):
            regions = naive_choice(q, k, start, end, head)
            places = [t for r in regions for t in range(r * REGION, min((r + 1) * REGION, end))]
            keys = turn(k[head, places], torch.arange(len(places)))
            for t in range(start, end):
                position = places.index(t)
                seen = [i for i, place in enumerate(places) if place <= t]
                for query_head in range(head * heads, (head + 1) * heads):
                    weights = (keys[seen] @ turn(q[query_head, t], position) * DIM**-0.5).softmax(0)
                    out[query_head, t] = weights @ v[head, [places[i] for i in seen]].double()
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 1), (2, 2)])
@pytest.mark.parametrize("tokens", [1, 63, 100, 200])
def test_equals_a_loop(tokens, heads, kv_heads):
    q, k, v = text(tokens, heads, kv_heads)
    torch.testing.assert_close(run(q, k, v).double(), naive(q, k, v), atol=1e-5, rtol=1e-5)


def test_equals_a_loop_on_a_thousand_tokens():
    q, k, v = text(1000, 2, 1)
    torch.testing.assert_close(run(q, k, v).double(), naive(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_the_loop(dtype):
    """Scores are float32 whatever the keys are, so the same regions are chosen."""
    q, k, v = text(200, dtype=dtype)
    out = run(q, k, v)
    assert out.dtype == dtype
    tolerance = 0.01 if dtype == torch.float16 else 0.08
    torch.testing.assert_close(out.double(), naive(q, k, v), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_budget_for_every_region_equals_dense(tokens):
    q, k, v = text(tokens)
    out = run(q, k, v, budget_tokens=-(-tokens // GROUP) * GROUP)
    torch.testing.assert_close(out.double(), dense(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 63, 100, 1000])
def test_choosing_every_region_equals_dense(tokens, monkeypatch):
    """Through the gathering path, with the choice made outside."""

    def everything(q, k, start, end, **_):
        return Selection(start, end, torch.arange(-(-end // REGION)).expand(2, -1))

    monkeypatch.setattr(ms_attn, "select_group", everything)
    q, k, v = text(tokens)
    out = run(q, k, v, budget_tokens=10_000)
    torch.testing.assert_close(out.double(), dense(q, k, v), atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_loop():
    inputs = [x.double().requires_grad_() for x in text(100, 2, 1)]
    weight = torch.randn(2, 100, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = torch.autograd.grad((run(*inputs) * weight).sum(), inputs)
    expected = torch.autograd.grad((naive(*inputs) * weight).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [63, 100])
def test_no_gradient_from_the_future(tokens):
    """Exactly zero: of output t with respect to q, k and v of every later token."""
    inputs = [x.requires_grad_() for x in text(tokens, 2, 1)]
    out = run(*inputs)
    for t in range(tokens):
        for gradient in torch.autograd.grad(out[:, t].sum(), inputs, retain_graph=True):
            assert (gradient[:, t + 1 :] == 0).all()
            assert gradient[:, : t + 1].abs().sum() > 0 or tokens == 1


def test_permuted_heads_give_permuted_outputs():
    q, k, v = text(200, 6, 3)
    order = [2, 0, 1]
    query_order = [2 * h + i for h in order for i in (1, 0)]  # inside a KV head, too
    out = run(q[query_order], k[order], v[order])
    torch.testing.assert_close(out, run(q, k, v)[query_order], atol=1e-6, rtol=1e-6)


def test_later_tokens_move_nothing_before_their_group():
    """Look-ahead reaches to the end of the own group and no further."""
    q, k, v = text(200)
    longer = text(300, seed=1)
    for short, long in zip((q, k, v), longer, strict=True):
        long[:, :200] = short
    torch.testing.assert_close(run(*longer)[:, :192], run(q, k, v)[:, :192], atol=1e-6, rtol=1e-6)


def test_with_the_choice_held_appended_tokens_move_nothing(monkeypatch):
    """Inside a group, too: the token mask stands on original positions."""
    q, k, v = text(188)
    longer = text(192, seed=1)
    for short, long in zip((q, k, v), longer, strict=True):
        long[:, :188] = short
    held = {}
    for start in range(0, 192, GROUP):
        held[start] = select_group(*longer[:2], start, start + GROUP, **CHOICE).regions
    monkeypatch.setattr(ms_attn, "select_group", lambda q, k, start, end, **_: Selection(start, end, held[start]))
    torch.testing.assert_close(run(*longer)[:, :188], run(q, k, v), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tokens", [100, 500, 2000])
def test_what_is_gathered_stays_within_the_budget(tokens, monkeypatch):
    """Neither the tokens gathered nor the largest position grows with the text."""
    sizes, positions = [], []
    rotate = ms_attn.rotate
    cos, sin = rope_table(INV_FREQ, BUDGET + REGION, 1.0, torch.float32)
    cos[:, 0] = torch.arange(len(cos))  # the first column tells which position was used

    def spy(x, cos, sin):
        sizes.append(x.shape[-2])
        positions.append(int(cos[..., 0].max()))
        return rotate(x, cos, sin)

    monkeypatch.setattr(ms_attn, "rotate", spy)
    q, k, v = text(tokens)
    ms_attention(q, k, v, cos, sin, scale=DIM**-0.5, merge=MERGE, **CHOICE)
    assert max(sizes) == BUDGET
    assert max(positions) == BUDGET - 1


def test_first_own_and_preceding_regions_are_always_kept():
    q, k, _ = text(1000)
    for start in range(BUDGET, 1000, GROUP):
        end = min(start + GROUP, 1000)
        chosen = select_group(q, k, start, end, **CHOICE).regions
        first, last = start // REGION, (end - 1) // REGION
        assert chosen.shape == (2, BUDGET // REGION)
        for row in chosen.tolist():
            assert row == sorted(set(row)) and {0, *range(first - 1, last + 1)} <= set(row)


def test_the_region_that_answers_is_found():
    """One key among a thousand answers one query of the group: a mean over either would drown it."""
    q, k, _ = text(1000, 2, 1)
    q, k = 0.1 * q, 0.1 * k
    q[1, 905] = 5.0
    k[0, 301] = 5.0
    assert 301 // REGION in select_group(q, k, 896, 912, **CHOICE).regions[0].tolist()
