"""The loss on texts that were kept back, as the tuned model will be read."""

import pytest
import torch
import torch.nn.functional as F

from app.models.rope import PositionConfig
from app.train.tune.recipe import LoraRecipe
from app.train.tune.tuner import tune
from app.train.tune.passes import validate
from tests import tiny
from tests.train.tune.tuning import batches, recipe


def in_order(rows):
    """Three batches of rows that are one document each."""
    for step in (100, 101, 102):
        drawn = batches(step, rows)
        yield {name: drawn[name] for name in ("input_ids", "weights")}


def stock(model, rows=2):
    ids = torch.cat([batch["input_ids"] for batch in in_order(rows)])
    with torch.no_grad():
        logits = model(ids).logits
    return float(F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:]))


@pytest.mark.parametrize("positions", [PositionConfig(), PositionConfig("linear", (2,)), PositionConfig("ntk", (4,))])
def test_it_is_what_transformers_says_of_the_merged_model(tmp_path, positions):
    """Trained inside groups, measured with full attention and the positions of inference."""
    given = recipe(attention="sf", tables={"positions": positions}, steps=3)
    made = tune(given, batches, tmp_path, model=tiny.model(), in_order=in_order)
    assert made.validation.base == pytest.approx(stock(tiny.model()), abs=1e-5)
    assert made.validation.tokens == 3 * 2 * 63
    merged = made.model.merge_and_unload()
    rotary = merged.model.rotary_emb
    if positions.method == "linear":
        rotary.inv_freq = rotary.inv_freq / 2
    if positions.method == "ntk":
        rotary.inv_freq = 1 / (10_000 * 4 ** (8 / 6)) ** (torch.arange(0, 8, 2) / 8)
    assert made.validation.nats == pytest.approx(stock(merged), abs=1e-5)
    assert made.validation.nats != pytest.approx(made.validation.base, abs=1e-3)


def test_all_weights(tmp_path):
    made = tune(recipe(LoraRecipe(full=True), steps=1), batches, tmp_path, model=tiny.model(), in_order=in_order)
    assert made.validation.base is None
    assert made.validation.nats == pytest.approx(stock(made.model), abs=1e-5)
    again = validate(made.model, recipe(), in_order, torch.bfloat16)
    assert again.nats == pytest.approx(made.validation.nats, abs=0.05) and again.nats != made.validation.nats
