"""MSA-1 against loops that follow its five steps, and its invariants."""

from dataclasses import replace

import pytest
import torch

from app.errors import ConfigError
from app.kernels import ms_attn
from app.kernels.ms_attn import forced_regions, ms_attention, query_groups, region_representatives, select_group
from app.kernels.options import SelectionOptions
from app.kernels.rope import rope_table
from tests.kernels import naive_msa
from tests.kernels.naive_msa import DIM, INV_FREQ, text

OPTIONS = SelectionOptions(budget_tokens=64, region_tokens=8, merge=2, query_sub=2, key_sub=2)
REGION, GROUP, BUDGET = 8, 16, 64
LENGTHS = [1, 63, 64, 65, 100, 1000]
VARIANTS = {
    "plain averages": {"query_sub": 8, "key_sub": 8},
    "short query regions": {"query_region_tokens": 4, "merge": 4},
    "long query regions": {"query_region_tokens": 16},
    "odd query regions": {"query_region_tokens": 6, "merge": 3},
    "stride": {"permute": "stride", "budget_tokens": 80},
    "stride of three, own only": {"permute": "stride", "merge": 3, "forced": "own"},
    "bounds": {"score": "minmax"},
    "bounds of whole regions": {"score": "minmax", "key_sub": 8},
    "local attention": {"score": "infllm"},
    "one angle": {"score_angle": 40},
    "shared heads": {"heads": "shared"},
    "raw sum": {"combine": "raw_sum"},
    "raw sum of stride": {"combine": "raw_sum", "permute": "stride", "heads": "shared"},
    "own only": {"forced": "own"},
    "more sinks, no local": {"sink_regions": 2, "local_regions": 0},
    "original positions": {"positions": "original"},
    "one distance": {"positions": "one_distance"},
    "one distance of stride": {"positions": "one_distance", "permute": "stride"},
    "one query region": {"merge": 1, "query_sub": 1, "key_sub": 1},
    "token by token": {"merge": 1, "query_region_tokens": 1, "query_sub": 1},
}


def run(q, k, v, options=OPTIONS, **changes):
    size = max(q.shape[-2], options.budget_tokens, options.group_tokens) + REGION
    cos, sin = rope_table(INV_FREQ, size, 1.0, q.dtype)
    return ms_attention(q, k, v, cos, sin, scale=DIM**-0.5, options=options, **changes)


def choose(q, k, group, options=OPTIONS):
    cos, sin = rope_table(INV_FREQ, BUDGET + REGION, 1.0, q.dtype)
    representatives = region_representatives(q, k, cos, sin, DIM**-0.5, options)
    return select_group(q, representatives, group, cos, sin, options)


@pytest.mark.parametrize(("tokens", "heads", "kv_heads"), [(1, 4, 2), (63, 2, 2), (100, 4, 1), (200, 4, 2)])
def test_equals_a_loop(tokens, heads, kv_heads):
    q, k, v = text(tokens, heads, kv_heads)
    torch.testing.assert_close(run(q, k, v).double(), naive_msa.attend(q, k, v, OPTIONS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tokens", [1, 103])
def test_every_option_equals_a_loop(tokens, name):
    options = replace(OPTIONS, **VARIANTS[name])
    q, k, v = text(tokens)
    torch.testing.assert_close(run(q, k, v, options).double(), naive_msa.attend(q, k, v, options), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_changes_what_it_should(name):
    """Each variant selects or places otherwise than the default: a name that does nothing would pass the loops."""
    q, k, v = text(117)
    assert not torch.allclose(run(q, k, v, replace(OPTIONS, **VARIANTS[name])), run(q, k, v), atol=1e-3)


def test_equals_a_loop_on_three_hundred_tokens():
    q, k, v = text(300, 2, 1)
    torch.testing.assert_close(run(q, k, v).double(), naive_msa.attend(q, k, v, OPTIONS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_the_loop(dtype):
    """Scores are float32 whatever the keys are, so the same regions are chosen."""
    q, k, v = text(120, dtype=dtype)
    out = run(q, k, v)
    assert out.dtype == dtype
    tolerance = 0.01 if dtype == torch.float16 else 0.08
    torch.testing.assert_close(out.double(), naive_msa.attend(q, k, v, OPTIONS), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("permute", ["adjacent", "stride"])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_budget_for_every_region_equals_dense(tokens, permute):
    """Invariant (a)."""
    q, k, v = text(tokens)
    out = run(q, k, v, replace(OPTIONS, budget_tokens=-(-tokens // GROUP) * GROUP, permute=permute))
    torch.testing.assert_close(out.double(), naive_msa.dense(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 63, 100, 1000])
def test_choosing_every_region_equals_dense(tokens, monkeypatch):
    """Invariant (a) through the gathering path, with the choice made outside."""

    def everything(q, representatives, group, cos, sin, options):
        return torch.arange(-(-group[-1].stop // REGION)).expand(2, -1)

    monkeypatch.setattr(ms_attn, "select_group", everything)
    q, k, v = text(tokens)
    torch.testing.assert_close(run(q, k, v).double(), naive_msa.dense(q, k, v), atol=1e-5, rtol=1e-5)


# Figure 2 of MS-Attn: the picks of each query region, best first, itself (unscored) at the end.
FIGURE_2 = {5: [3, 4, 2, 5], 6: [5, 4, 2, 6], 7: [3, 5, 4, 7], 8: [5, 4, 7, 8]}


@pytest.mark.parametrize(("pair", "expected"), [((6, 8), [4, 5, 6, 8]), ((5, 7), [3, 4, 5, 7])])
def test_figure_2(pair, expected):
    """Invariant (b): strided pairs, four regions, only the own ones forced. The figure counts regions from one.

    Regions 1 to 8 hold one token each, keys are unit vectors, and a query prefers its picks in their order.
    """
    options = SelectionOptions(
        budget_tokens=4, region_tokens=1, merge=2, permute="stride", forced="own", query_sub=1, key_sub=1
    )
    k = torch.eye(8)[None]
    q = torch.zeros(1, 8, 8)
    for region, picks in FIGURE_2.items():
        for rank, pick in enumerate(picks[:-1]):
            q[0, region - 1, pick - 1] = 30.0 - 2 * rank
    group = next(g for g in query_groups(8, options) if g[0].start == pair[0] - 1)
    assert [part.start + 1 for part in group] == list(pair)
    cos = sin = torch.zeros(8, 8)
    representatives = region_representatives(q, k, cos, sin, 1.0, options)
    assert (select_group(q, representatives, group, cos, sin, options) + 1).tolist() == [expected]


def test_gradients_equal_those_of_the_loop():
    inputs = [x.double().requires_grad_() for x in text(100, 2, 1)]
    weight = torch.randn(2, 100, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = torch.autograd.grad((run(*inputs) * weight).sum(), inputs)
    expected = torch.autograd.grad((naive_msa.attend(*inputs, OPTIONS) * weight).sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [None, "stride", "local attention", "one distance of stride", "raw sum", "original positions"]
)
def test_no_gradient_from_the_future(name):
    """Invariant (c), exactly zero: of output t with respect to q, k and v of every later token."""
    options = replace(OPTIONS, **VARIANTS[name]) if name else OPTIONS
    tokens = 100
    inputs = [x.requires_grad_() for x in text(tokens, 2, 1)]
    out = run(*inputs, options)
    for t in range(0, tokens, 1 if name is None else 7):
        for gradient in torch.autograd.grad(out[:, t].sum(), inputs, retain_graph=True):
            assert (gradient[:, t + 1 :] == 0).all()
            assert gradient[:, : t + 1].abs().sum() > 0


def test_permuted_heads_give_permuted_outputs():
    """Invariant (d)."""
    q, k, v = text(200, 6, 3)
    order = [2, 0, 1]
    query_order = [2 * h + i for h in order for i in (1, 0)]  # inside a KV head, too
    out = run(q[query_order], k[order], v[order])
    torch.testing.assert_close(out, run(q, k, v)[query_order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("permute", "unmoved"), [("adjacent", 192), ("stride", 192)])
def test_later_tokens_move_nothing_before_their_group(permute, unmoved):
    """Look-ahead reaches to the end of the own group and no further."""
    q, k, v = text(200)
    longer = text(300, seed=1)
    for short, long in zip((q, k, v), longer, strict=True):
        long[:, :200] = short
    options = replace(OPTIONS, permute=permute)
    torch.testing.assert_close(
        run(*longer, options)[:, :unmoved], run(q, k, v, options)[:, :unmoved], atol=1e-6, rtol=1e-6
    )


def test_with_the_choice_held_appended_tokens_move_nothing(monkeypatch):
    """Invariant (e), inside a group, too: the token mask stands on original positions."""
    q, k, v = text(188)
    longer = text(192, seed=1)
    for short, long in zip((q, k, v), longer, strict=True):
        long[:, :188] = short
    held = {group[0].start: choose(*longer[:2], group) for group in query_groups(192, OPTIONS)}
    monkeypatch.setattr(ms_attn, "select_group", lambda q, representatives, group, *_: held[group[0].start])
    torch.testing.assert_close(run(*longer)[:, :188], run(q, k, v), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("positions", ["compact", "one_distance"])
@pytest.mark.parametrize("tokens", [100, 2000])
def test_what_is_gathered_stays_within_the_budget(tokens, positions, monkeypatch):
    """Invariants (f) and (g): neither the tokens gathered nor the largest position grows with the text."""
    sizes, used = [], []
    rotate = ms_attn.rotate
    cos, sin = rope_table(INV_FREQ, BUDGET + REGION, 1.0, torch.float32)
    cos[:, 0] = torch.arange(len(cos))  # the first column tells which position was used

    def spy(x, cos, sin):
        sizes.append(x.shape[-2])
        used.append(int(cos[..., 0].max()))
        return rotate(x, cos, sin)

    monkeypatch.setattr(ms_attn, "rotate", spy)
    q, k, v = text(tokens)
    ms_attention(q, k, v, cos, sin, scale=DIM**-0.5, options=replace(OPTIONS, positions=positions))
    assert max(sizes) == BUDGET
    assert max(used) == BUDGET - 1


def test_original_positions_are_used_where_they_are_asked_for():
    q, k, v = text(200)
    cos, sin = rope_table(INV_FREQ, 199, 1.0, torch.float32)
    with pytest.raises(IndexError):  # token 199 stands at position 199
        ms_attention(q, k, v, cos, sin, scale=DIM**-0.5, options=replace(OPTIONS, positions="original"))


def test_first_own_and_preceding_regions_are_always_kept():
    q, k, _ = text(1000)
    for group in query_groups(1000, OPTIONS):
        if group[-1].stop <= BUDGET:
            continue
        chosen = choose(q, k, group)
        first, last = group[0].start // REGION, (group[-1].stop - 1) // REGION
        assert chosen.shape == (2, BUDGET // REGION)
        for row in chosen.tolist():
            assert row == sorted(set(row)) and {0, *range(first - 1, last + 1)} <= set(row)


@pytest.mark.parametrize("permute", ["adjacent", "stride"])
def test_more_forced_regions_than_the_budget_are_all_kept(permute):
    """The budget grows; it never truncates."""
    tight = replace(OPTIONS, budget_tokens=16, sink_regions=3, local_regions=2, permute=permute)
    q, k, v = text(300)
    for group in query_groups(300, tight):
        if group[-1].stop > 16:
            assert choose(q, k, group, tight)[0].tolist() == forced_regions(group, tight).nonzero()[:, 0].tolist()
    torch.testing.assert_close(
        run(q[:, :60], k[:, :60], v[:, :60], tight).double(),
        naive_msa.attend(q[:, :60], k[:, :60], v[:, :60], tight),
        atol=1e-5,
        rtol=1e-5,
    )


def test_the_region_that_answers_is_found():
    """One key among a thousand answers one query of the group: a mean over either would drown it."""
    q, k, _ = text(1000, 2, 1)
    q, k = 0.1 * q, 0.1 * k
    q[1, 905] = 5.0
    k[0, 301] = 5.0
    group = [range(896, 904), range(904, 912)]
    assert 301 // REGION in choose(q, k, group)[0].tolist()
    plain = replace(OPTIONS, query_sub=8, key_sub=8, combine="raw_sum")
    q[1, 896:912] -= 0.7  # the others lean away: a mean query asks for nothing
    assert 301 // REGION in choose(q, k, group)[0].tolist()
    assert 301 // REGION not in choose(q, k, group, plain)[0].tolist()


@pytest.mark.parametrize("name", [None, "stride", "odd query regions"])
def test_a_batch_is_its_texts_one_by_one_and_padding_is_left_alone(name):
    options = replace(OPTIONS, **VARIANTS[name]) if name else OPTIONS
    texts = [text(117, seed=seed) for seed in range(4)]
    batch = [torch.stack(x) for x in zip(*texts, strict=True)]
    lengths = [117, 0, 5, 100]
    for x in batch:
        for row, length in enumerate(lengths):
            x[row, :, length:] = float("nan")
    out = run(*batch, options, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = run(*(x[:, :length] for x in texts[row]), options)
        torch.testing.assert_close(out[row, :, :length], alone)
        assert (out[row, :, length:] == 0).all()
    assert run(*(x[:0] for x in batch), options).shape == (0, 4, 117, DIM)


@pytest.mark.parametrize("tokens", (1, 7, 8, 9, 15, 16, 17, 24, 31, 39))
def test_no_length_is_an_error(tokens):
    for changes in VARIANTS.values():
        tight = replace(OPTIONS, **{**changes, "budget_tokens": 16, "score_angle": 3})
        assert run(*text(tokens), tight).isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("region_tokens", 0), ("merge", -1), ("query_sub", 0), ("key_sub", 2.0), ("budget_tokens", 0),
        ("sink_regions", -1), ("local_regions", -1), ("dense_layers", -1), ("score_angle", 64), ("key_sub", 3),
        ("query_sub", 3), ("permute", "sideways"), ("score", "mean"), ("heads", "all"), ("combine", "max"),
        ("forced", "none"), ("positions", "relative"), ("query_region_tokens", -8), ("merge", True),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigError, match=rf"{name} = {value!r}"):
        replace(OPTIONS, **{name: value})
