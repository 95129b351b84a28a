"""MSA-1 for training, all groups at once: the oracle's outputs and gradients, and memory that does not grow."""

from dataclasses import replace

import pytest
import torch

from app.errors import ConfigError
from app.kernels import ms_groups
from app.kernels.ms_attn import ms_attention
from app.kernels.ms_groups import check_options, ms_attention_groups
from app.kernels.options import SelectionOptions
from app.kernels.rope import rope_table
from tests.kernels import naive_msa
from tests.kernels.naive_msa import DIM, INV_FREQ, text
from tests.kernels.paged import relative

OPTIONS = SelectionOptions(budget_tokens=64, region_tokens=8, merge=2, query_sub=2, key_sub=2)
VARIANTS = {
    "default": {},
    "plain averages": {"query_sub": 8, "key_sub": 8},
    "short query regions": {"query_region_tokens": 4, "merge": 4},
    "long query regions": {"query_region_tokens": 16},
    "bounds": {"score": "minmax"},
    "one angle": {"score_angle": 40},
    "shared heads": {"heads": "shared"},
    "raw sum": {"combine": "raw_sum"},
    "raw sum of shared heads": {"combine": "raw_sum", "heads": "shared"},
    "own only": {"forced": "own"},
    "more sinks, no local": {"sink_regions": 2, "local_regions": 0},
    "original positions": {"positions": "original"},
    "one query region": {"merge": 1, "query_sub": 1, "key_sub": 1},
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several pieces in the shortest text."""
    monkeypatch.setattr(ms_groups, "SCORES_AT_ONCE", {"cpu": 2000})
    monkeypatch.setattr(ms_groups, "KEYS_AT_ONCE", {"cpu": 4 * 64 * DIM})


def run(function, inputs, options=OPTIONS):
    cos, sin = rope_table(INV_FREQ.to(inputs[0].device), max(inputs[0].shape[-2], 64) + 16, 1.0, inputs[0].dtype)
    return function(*inputs, cos, sin, scale=DIM**-0.5, options=options)


def batch(tokens, count=2, dtype=torch.float32, heads=4, kv_heads=2):
    texts = [text(tokens, heads, kv_heads, seed=seed) for seed in range(count)]
    return [torch.stack(x).to(dtype).requires_grad_() for x in zip(*texts, strict=True)]


def gradients(out, inputs):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    return torch.autograd.grad((out * weight).sum(), inputs)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tokens", [1, 103])
def test_equals_the_oracle_in_outputs_and_gradients(tokens, name):
    options, inputs = replace(OPTIONS, **VARIANTS[name]), batch(tokens)
    out, expected = (run(function, inputs, options) for function in (ms_attention_groups, ms_attention))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_equals_the_loops_of_the_paper_in_gradients():
    """The oracle of the oracle, number by number: gradients to 1e-4 through selections that leave most regions out."""
    options, inputs = replace(OPTIONS, budget_tokens=48), batch(75, 1, torch.float64, 2, 1)
    out = run(ms_attention_groups, inputs, options)
    expected = naive_msa.attend(*(x[0] for x in inputs), options)[None]
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, tokens", [("default", 63), ("default", 130), ("original positions", 100), ("own only", 100)]
)
def test_kernels_equal_the_oracle_in_outputs_and_gradients(tokens, name, request):
    options = replace(OPTIONS, **VARIANTS[name])
    oracle = batch(tokens, 1, torch.float64, 2, 1)
    expected = run(ms_attention, oracle, options)
    expected_gradients = gradients(expected, oracle)
    device = request.getfixturevalue("kernels")
    inputs = [x.detach().to(device, torch.float32).requires_grad_() for x in oracle]
    out = run(ms_attention_groups, inputs, options)
    for mine, theirs in zip((out, *gradients(out, inputs)), (expected, *expected_gradients), strict=True):
        assert relative(mine, theirs) <= 1e-5


def test_kernels_give_no_gradient_from_the_future(kernels):
    inputs = [x.detach().to(kernels).requires_grad_() for x in batch(100, 1, heads=2, kv_heads=1)]
    out = run(ms_attention_groups, inputs)
    for t in (1, 79, 98):
        for gradient in torch.autograd.grad(out[:, :, t].sum(), inputs, retain_graph=True):
            assert (gradient[:, :, t + 1 :] == 0).all() and gradient[:, :, : t + 1].abs().sum() > 0


def test_no_gradient_from_the_future():
    inputs = batch(150, 1)
    out = run(ms_attention_groups, inputs)
    for t in range(1, 150, 7):
        for gradient in torch.autograd.grad(out[:, :, t].sum(), inputs, retain_graph=True):
            assert (gradient[:, :, t + 1 :] == 0).all() and gradient[:, :, : t + 1].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_chooses_the_same_and_keeps_its_type(dtype):
    inputs = batch(200, dtype=dtype)
    out, expected = (run(function, inputs) for function in (ms_attention_groups, ms_attention))
    assert out.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    assert [g.dtype for g in gradients(out, inputs)] == [dtype] * 3


def test_under_autocast_queries_and_values_may_differ_in_type():
    """transformers' layers give float32 queries and bfloat16 values there, and backward runs outside of it."""
    q, k, v = batch(200)
    expected = gradients(run(ms_attention_groups, (q, k, v)), (q, k, v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(ms_attention_groups, (q, k, v.bfloat16()))
    assert out.dtype == torch.bfloat16
    for a, b in zip(gradients(out, (q, k, v)), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


def test_kernels_under_autocast(kernels):
    inputs = [x.detach().to(kernels).requires_grad_() for x in batch(80, 1, heads=2, kv_heads=1)]
    expected = gradients(run(ms_attention, inputs), inputs)
    q, k, v = inputs
    with torch.autocast(kernels, dtype=torch.float16):
        out = run(ms_attention_groups, (q, k, v.half()))
    assert out.dtype == torch.float16
    for a, b in zip(gradients(out, inputs), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


def test_what_is_kept_for_backward_does_not_hold_the_gathered_keys():
    """Four times the text keeps four times as much, and never more than a few copies of it."""

    def kept(tokens):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            run(ms_attention_groups, batch(tokens, 1))
        return sum(sizes)

    assert kept(1088) - kept(320) < 8 * 768 * 8 * DIM  # q, k, v, the output: 16 of 8 heads' rows


def test_nothing_in_gives_nothing_out():
    for shape in ((0, 2, 80, DIM), (2, 2, 0, DIM)):
        x = torch.zeros(shape)
        assert run(ms_attention_groups, (x, x, x)).shape == shape


@pytest.mark.parametrize(
    "changes", [{"permute": "stride"}, {"score": "infllm"}, {"positions": "one_distance"}], ids=str
)
def test_options_that_only_the_oracle_has_are_refused(changes):
    check_options(OPTIONS)
    ((name, value),) = changes.items()
    with pytest.raises(ConfigError, match=f"{name} = {value!r}: not for training"):
        check_options(replace(OPTIONS, **changes))
