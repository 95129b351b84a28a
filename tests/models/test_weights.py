"""Weights in float16 and int8: near the exact ones, several layers in one product, taken only where they are faster."""

import pytest
import torch
from torch import nn

from app.errors import ConfigError
from app.models import weights
from app.runtime.step import Rows
from tests import tiny

IDS = torch.tensor([tiny.token_ids(40)])
needs_half = pytest.mark.skipif(not weights.offered(), reason="this PyTorch has no such products for this CPU")


@needs_half
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_over_the_same_input_are_multiplied_together(count, bias):
    layers, x = [nn.Linear(24, 8 * (i + 1), bias=bias) for i in range(count)], torch.randn(2, 5, 24)
    wanted = torch.cat([layer(x) for layer in layers], dim=-1)
    made = weights.HalfLinear(layers)
    torch.testing.assert_close(made(x), wanted, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(made(x[0, 0]), wanted[0, 0], atol=2e-3, rtol=2e-3)


@needs_half
def test_a_converted_model_says_nearly_the_same():
    model = tiny.model()
    exact = model(IDS).logits
    assert weights.settle(model, "float16") == "float16"
    near = model(IDS).logits
    assert 0 < (near - exact).abs().max() < 0.02 * exact.abs().max()
    assert not any(type(module) is nn.Linear for module in model.modules())
    torch.testing.assert_close(model(IDS).logits, near, atol=0, rtol=0)  # nothing is left over from the run before


def test_float32_is_left_as_it_is():
    model = tiny.model()
    exact = model(IDS).logits
    assert weights.settle(model, "float32") == "float32"
    assert torch.equal(model(IDS).logits, exact)


@pytest.mark.parametrize("taken, kind", [(0.5, "float16"), (0.99, "float32"), (float("inf"), "float32")])
def test_it_is_taken_where_it_is_faster_and_near_enough(taken, kind, monkeypatch):
    monkeypatch.setattr(weights, "offered", lambda kind: True)
    monkeypatch.setattr(weights, "_compared", lambda layers, rows, kind: taken)
    known = {}
    assert weights.fastest(tiny.model(), known, "here") == "float32" and known == {"here": "float32"}  # small
    monkeypatch.setattr(weights, "LEAST_BYTES", 0)
    assert weights.fastest(tiny.model(), {}, "here") == kind
    assert weights.fastest(tiny.model(), {"here": "float16"}, "here") == "float16"  # found before


@needs_half
def test_what_float16_cannot_hold_is_refused_or_left():
    model = tiny.model()
    model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(ConfigError, match="beyond float16's range; take --weights float32"):
        weights.settle(model, "float16")
    assert weights.settle(model, "auto", {"": "float16"}) == "float32"
    assert type(model.lm_head) is nn.Linear and type(model.model.layers[0].mlp.up_proj) is nn.Linear


@needs_half
def test_a_bfloat16_model_refuses_it():
    with pytest.raises(ConfigError, match="runs in bfloat16 on cpu"):
        weights.settle(tiny.model().bfloat16(), "float16")


@pytest.mark.skipif(not weights.offered("int8"), reason="this PyTorch has no such products for this CPU")
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_for_single_rows_alone(bias):
    layers = [nn.Linear(64, 32 * (i + 1), bias=bias).bfloat16() for i in range(2)]
    made, x = weights.ByteLinear(layers), torch.randn(weights.FEW_ROWS + 1, 64)
    exact = torch.cat([layer(x.bfloat16()) for layer in layers], dim=-1)
    assert torch.equal(made(x.bfloat16()), exact) and torch.equal(made.few(x), exact)  # as it was loaded
    near = made.few(x[:1])
    assert not torch.equal(near, exact[:1])
    torch.testing.assert_close(near, exact[:1], atol=0.03, rtol=0.03)


@pytest.mark.skipif(not weights.offered("int8"), reason="this PyTorch has no such products for this CPU")
def test_a_model_with_int8_for_answers_reads_as_before():
    model = tiny.model().bfloat16()
    exact, few = model(IDS).logits, Rows(model)
    assert weights.settle(model, "int8") == "int8"
    assert torch.equal(model(IDS).logits, exact)
    near, hidden = Rows(model), torch.randn(1, model.config.hidden_size)
    wanted = few.logits(hidden)
    assert 0 < (near.logits(hidden) - wanted).abs().max() < 0.05 * wanted.abs().max()
    with pytest.raises(ConfigError, match="--weights int8: this model runs in float32"):
        weights.settle(tiny.model(), "int8")


@pytest.mark.parametrize(
    "wanted, loaded", [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float32"), ("int8", "bfloat16")]
)
def test_a_model_is_loaded_in_what_its_weights_are_made_from(wanted, loaded):
    assert weights.loaded_in(wanted, torch.device("cpu"), torch.bfloat16) == getattr(torch, loaded)
    assert weights.loaded_in(wanted, torch.device("cuda"), torch.bfloat16) == torch.bfloat16
