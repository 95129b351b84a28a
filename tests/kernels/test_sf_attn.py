"""The masks of S2-Attn and SF-Attn: equal to a dense masked reference, and what each of them sees."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from app.errors import ConfigError
from app.kernels import sf_attn
from app.kernels.sf_attn import PATTERNS, GroupPattern, allowed, boundaries, sf_attention

DIM = 8
CAUSAL = ("block", "s2", "sf", "sf_fixed")
LEAKING = ("s2_published", "s2_wrap_sink")
OTHERS = {
    "a quarter moved": GroupPattern(shift_fraction=0.25, sinks=2),
    "all moved, half returned": GroupPattern(shift_fraction=1.0, return_ratio=0.5),
    "all moved and wrapped": GroupPattern(shift_fraction=1.0, wrap="wrap", sinks=1),
    "groups of eleven": GroupPattern(group_tokens=11, sinks=3),
    "groups of eleven, wrapped": GroupPattern(group_tokens=11, sinks=9, wrap="wrap"),
    "one group": GroupPattern(groups=1),
}
ALL = {**PATTERNS, **OTHERS}


def inputs(tokens, batch=1, heads=4, kv_heads=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(batch, h, tokens, DIM) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def sees(pattern, tokens, moved, query, key):
    """The patterns in words, for one query and key. The text is longer than a group."""
    group = pattern.group_tokens or -(-tokens // pattern.groups)
    if key < min(pattern.sinks, group // 2) and key <= query:
        return True
    shift = group // 2 if moved else 0

    def number(place):  # of the group; the half group at the start has the number 0, too
        return (place - shift) // group + 1 if shift else place // group

    if number(key) == number(query):
        return key <= query
    return bool(shift) and pattern.wrap == "wrap" and number(query) == 0 and number(key) == number(tokens - 1)


def dense(q, k, v, pattern, scale):
    tokens, heads = q.shape[2], q.shape[1]
    moved = round(heads * pattern.shift_fraction * (1 - pattern.return_ratio))
    group = pattern.group_tokens or -(-tokens // pattern.groups)
    outputs = []
    for head in range(heads):
        mask = torch.tensor(
            [
                [key <= t if tokens <= group else sees(pattern, tokens, head >= heads - moved, t, key)
                 for key in range(tokens)]
                for t in range(tokens)
            ]
        )  # fmt: skip
        assert torch.equal(mask, allowed(pattern, tokens, head, heads))
        kv = head // (heads // k.shape[1])
        logits = q[:, head] @ k[:, kv].transpose(-1, -2) * scale
        outputs.append(logits.masked_fill(~mask, float("-inf")).softmax(-1) @ v[:, kv])
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tokens", [1, 16, 63])
def test_outputs_and_gradients_equal_a_dense_masked_reference(tokens, name):
    given = inputs(tokens)
    weight = torch.randn(1, 4, tokens, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = sf_attention(*given, scale=0.3, pattern=ALL[name])
    expected = dense(*given, ALL[name], 0.3)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    found, wanted = (torch.autograd.grad((x * weight).sum(), given) for x in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (6, 3), (6, 2), (3, 1)])
def test_grouped_heads_may_be_cut_by_the_shift(heads, kv_heads):
    given = inputs(37, 2, heads, kv_heads)
    for name in ("sf", "s2_wrap_sink"):
        pattern = PATTERNS[name]
        expected = dense(*given, replace(pattern, shift_fraction=pattern.shifted_heads(heads) / heads), 0.3)
        torch.testing.assert_close(sf_attention(*given, scale=0.3, pattern=pattern), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near(dtype):
    given = [x.to(dtype) for x in inputs(63)]
    out = sf_attention(*given, scale=0.3, pattern=PATTERNS["sf"])
    expected = dense(*(x.double() for x in given), PATTERNS["sf"], 0.3)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


def reads(pattern, tokens):
    """[T, T] bool: whether the output of each query, in any head, depends on each token, by gradient."""
    given = inputs(tokens)
    out = sf_attention(*given, scale=0.3, pattern=pattern)
    found = []
    for t in range(tokens):
        gradients = torch.autograd.grad(out[:, :, t].sum(), given, retain_graph=True)
        found.append(sum((g != 0).any(-1).any(1)[0].int() for g in gradients) > 0)
    return torch.stack(found)


@pytest.mark.parametrize("name", [*CAUSAL, "a quarter moved", "all moved, half returned", "groups of eleven"])
@pytest.mark.parametrize("tokens", [64, 61])
def test_no_gradient_from_the_future(name, tokens):
    """Exactly zero, for every query."""
    assert not ALL[name].looks_ahead
    assert not reads(ALL[name], tokens).triu(1).any()


@pytest.mark.parametrize("name", LEAKING)
def test_the_wrapping_masks_leak_the_last_half_group_into_the_first(name):
    """LongLoRA's roll: of 64 tokens in groups of 16, the queries 0 to 7 read the tokens 56 to 63, their future."""
    assert ALL[name].looks_ahead
    future = reads(ALL[name], 64).triu(1)
    assert future.any(1).nonzero()[:, 0].tolist() == list(range(8))
    assert all(row.nonzero()[:, 0].tolist() == list(range(56, 64)) for row in future[:8])


def test_a_pattern_without_moved_heads_does_not_look_ahead():
    for changes in ({"shift_fraction": 0.0}, {"return_ratio": 1.0}):
        pattern = GroupPattern(wrap="wrap", **changes)
        assert not pattern.looks_ahead and not reads(pattern, 64).triu(1).any()


@pytest.mark.parametrize("name", ALL)
def test_rows_of_a_batch_are_their_texts_and_padding_is_left_alone(name):
    """Padding on the right, on the left and in between; a row of nothing else."""
    given = inputs(40, 4)
    valid = torch.zeros(4, 40, dtype=torch.bool)
    valid[0, :] = True
    valid[1, 13:] = True
    valid[2, :21], valid[2, 30:] = True, True
    with torch.no_grad():
        for x in given:
            x.masked_fill_(~valid[:, None, :, None], float("nan"))
    out = sf_attention(*given, scale=0.3, pattern=ALL[name], valid=valid)
    for row in range(3):
        alone = sf_attention(*(x[row : row + 1, :, valid[row]] for x in given), scale=0.3, pattern=ALL[name])
        torch.testing.assert_close(out[row : row + 1, :, valid[row]], alone)
    assert (out.transpose(1, 2)[~valid] == 0).all()
    for gradient in torch.autograd.grad(out.sum(), given):
        assert (gradient.transpose(1, 2)[~valid] == 0).all() and gradient.isfinite().all()


def test_nothing_in_gives_nothing_out():
    for shape in ((0, 4, 9, DIM), (2, 4, 0, DIM)):
        q = torch.zeros(shape)
        assert sf_attention(q, q, q, scale=1.0, pattern=PATTERNS["sf"]).shape == shape


@pytest.mark.parametrize("name", ALL)
def test_boundaries_rise_and_cover_the_text(name):
    for tokens in range(1, 70):
        for shifted in (False, True):
            starts = boundaries(ALL[name], tokens, shifted=shifted)
            assert starts[0] == 0 and starts[-1] == tokens
            assert all(a < b for a, b in zip(starts, starts[1:], strict=False))
            assert max(b - a for a, b in zip(starts, starts[1:], strict=False)) <= ALL[name].group_for(tokens)


def test_the_groups_of_both_halves_of_the_heads():
    pattern = PATTERNS["sf"]
    assert boundaries(pattern, 64, shifted=False) == [0, 16, 32, 48, 64]
    assert boundaries(pattern, 64, shifted=True) == [0, 8, 24, 40, 56, 64]
    assert [pattern.shifted_heads(heads) for heads in (1, 2, 4, 32)] == [1, 1, 2, 16]
    assert PATTERNS["sf_fixed"].shifted_heads(32) == 0


@pytest.mark.parametrize("tokens", [1, 8, 11])
def test_a_text_within_one_group_is_seen_whole(tokens):
    for name in ("groups of eleven", "groups of eleven, wrapped"):
        for head in range(4):
            assert torch.equal(allowed(ALL[name], tokens, head, 4), torch.ones(tokens, tokens).tril().bool())


def test_sinks_are_columns_only():
    """Every later query sees them; they see no more than without."""
    with_sinks, without = (allowed(PATTERNS[name], 64, 0, 4) for name in ("sf", "s2"))
    assert with_sinks[4:, :4].all() and not without[16:, :4].any()
    assert torch.equal(with_sinks[:, 4:], without[:, 4:])
    assert not with_sinks[:4].triu(1).any()


@pytest.mark.parametrize("name", PATTERNS)
def test_no_tensor_grows_with_the_square_of_the_text(name):
    """Sixteen groups instead of four: what is kept for the gradient stays that of so many tokens."""

    def kept(tokens):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            pattern = replace(PATTERNS[name], group_tokens=32)
            sf_attention(*inputs(tokens, dtype=torch.float32), scale=0.3, pattern=pattern)
        return sum(sizes)

    assert kept(512) < 4.5 * kept(128)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift_fraction", 1.5), ("return_ratio", -0.1), ("wrap", "roll"), ("sinks", -1), ("sinks", 2.0),
        ("groups", 0), ("group_tokens", -4), ("groups", True),
    ],
)  # fmt: skip
def test_bad_patterns_are_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigError, match=rf"{name} = {value!r}"):
        GroupPattern(**{name: value})


def varlen(q, k, v, ends, key_ends, longest, longest_key, *, softmax_scale, causal):
    """Stands for flash-attn: text by text; the last query of each sees its last key."""
    assert causal and ends.dtype == key_ends.dtype == torch.int32
    parts = []
    for (a, b), (c, d) in zip(pairwise(ends.tolist()), pairwise(key_ends.tolist()), strict=True):
        assert b - a <= longest and d - c <= longest_key
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        rows = (x[None].transpose(1, 2) for x in (q[a:b], k[c:d], v[c:d]))
        part = torch.nn.functional.scaled_dot_product_attention(
            *rows, attn_mask=mask, scale=softmax_scale, enable_gqa=True
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tokens", [13, 63])
def test_flash_attn_is_told_the_same_groups(tokens, name, monkeypatch):
    given = inputs(tokens, batch=2)
    expected = sf_attention(*given, scale=0.3, pattern=ALL[name])
    monkeypatch.setattr(sf_attn, "_flash", lambda q, v: varlen)
    out = sf_attention(*given, scale=0.3, pattern=ALL[name])
    torch.testing.assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), given) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_flash_attn_is_left_out_where_it_cannot_run():
    assert sf_attn._flash(torch.zeros(1, 1, 4, 8, dtype=torch.float16), torch.zeros(1, 1, 4, 8)) is None
