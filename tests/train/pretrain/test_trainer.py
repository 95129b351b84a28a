"""The training loop on a model of a few thousand parameters."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from app.errors import ConfigError
from app.train import loop
from app.train.loop import last_checkpoint
from app.train.pretrain import trainer
from app.train.pretrain.trainer import (
    PretrainingRecipe,
    Stage,
    StagedSamples,
    new_model,
    pretrain,
    thinned,
    weighted_losses,
)

TINY = {"hidden": 16, "intermediate": 24, "layers": 1, "heads": 2, "kv_heads": 1, "warmup_steps": 2, "induction": False}
SHARES = {"text": 1.0, "passkey": 1.0}


def config(steps=6, **changes):
    stages = (Stage(tokens=64, batch=2, steps=steps // 2), Stage(tokens=128, batch=1, steps=steps - steps // 2))
    return PretrainingRecipe(**{**TINY, "shares": SHARES, "stages": stages, **changes})


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Save and report every second step."""
    arguments = loop.TrainingArguments
    monkeypatch.setattr(
        loop, "TrainingArguments", lambda **given: arguments(**{**given, "save_steps": 2, "logging_steps": 2})
    )


class Interrupted(Exception):
    pass


class Counting:
    """Passes samples on, remembers them, and breaks down where it is told to."""

    def __init__(self, maker, fail_at=None):
        self.maker, self.fail_at, self.drawn = maker, fail_at, []

    def draw(self, rng, tokens, shares):
        if len(self.drawn) == self.fail_at:
            raise Interrupted
        sample = self.maker.draw(rng, tokens, shares)
        self.drawn.append(sample.token_ids.tolist())
        return sample


def test_a_few_steps_lower_the_loss(maker, tokenizer, tmp_path):
    """Measured on text that was not drawn for training."""
    stages = (Stage(tokens=64, batch=8, steps=24),)
    wanted = config(stages=stages, shares={"text": 1.0}, hidden=32, learning_rate=1e-2, decay_share=0.2)
    ids = torch.from_numpy(maker.draw(random.Random("unseen"), 512, {"text": 1.0}).token_ids)[None]

    def loss(model):
        with torch.no_grad():
            return float(model(ids, labels=ids).loss)

    before = loss(new_model(wanted, tokenizer))
    model = pretrain(wanted, maker, tokenizer, tmp_path)
    assert model.dtype == torch.float32
    assert loss(model) < before - 1.0


def test_a_broken_run_goes_on_with_the_same_steps_and_ends_the_same(maker, tokenizer, tmp_path):
    whole, broken, rest = Counting(maker), Counting(maker, fail_at=5), Counting(maker)
    unbroken = pretrain(config(), whole, tokenizer, tmp_path / "whole")
    with pytest.raises(Interrupted):
        pretrain(config(), broken, tokenizer, tmp_path / "broken")
    assert last_checkpoint(tmp_path / "broken").name == "checkpoint-2"
    resumed = pretrain(config(), rest, tokenizer, tmp_path / "broken")
    assert len(whole.drawn) == 9  # three steps of two, three of one
    assert rest.drawn == whole.drawn[4:]
    for (name, a), b in zip(unbroken.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_finished_run_is_not_trained_again(maker, tokenizer, tmp_path):
    first = pretrain(config(2), maker, tokenizer, tmp_path)
    again = pretrain(config(2), Counting(maker, fail_at=0), tokenizer, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (200, 1000, 800):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (tmp_path / "checkpoint-1200").mkdir()  # the process died while it was written
    assert last_checkpoint(tmp_path).name == "checkpoint-1000"


def test_samples_depend_on_seed_and_step_alone(maker):
    def ids(config, first=0):
        return [batch["input_ids"].tolist() for batch in StagedSamples(maker, config, first)]

    everything = ids(config())
    assert ids(config(), first=4) == everything[4:]
    assert [len(batch) for batch in everything] == [2, 2, 2, 1, 1, 1]
    assert [len(batch[0]) for batch in everything] == [64, 64, 64, 128, 128, 128]
    assert ids(config(seed=1))[0] != everything[0]


def test_workers_and_processes_share_the_same_rows(maker):
    """Two workers of each of two processes make what one does alone, in its order."""
    stages = (Stage(tokens=64, batch=2, steps=5),)
    alone = [batch["input_ids"] for batch in StagedSamples(maker, config(stages=stages), 1)]
    shared = []
    for process in range(2):
        rows = StagedSamples(maker, config(stages=stages), 1, process, 2)
        shared.append([batch["input_ids"] for batch in DataLoader(rows, batch_size=None, num_workers=2)])
    assert len(alone) == 4
    for whole, *parts in zip(alone, *shared, strict=True):
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"probe_steps": 0}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"workers = .*, probe_steps = .*: must be at least 0 and at least 1"):
        config(**wrong)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_of_the_text_that_makes_no_sense_is_refused(share):
    with pytest.raises(ConfigError, match=f"text_share = {share}: must lie above 0"):
        config(text_share=share)


def test_a_stage_may_have_shares_of_its_own(maker):
    stages = (Stage(tokens=64, batch=2, steps=1), Stage(tokens=64, batch=2, steps=1, shares={"copying": 1.0}))
    first, second = StagedSamples(maker, config(stages=stages, shares={"text": 1.0}), 0)
    assert (first["weights"] == 1.0).all()
    assert any(all(row[n:] == row[:-n] for row in [second["input_ids"][0, 1:].tolist()]) for n in range(4, 64))


@pytest.mark.parametrize("chunk", [4096, 7])
def test_the_loss_is_plain_cross_entropy_for_equal_weights(monkeypatch, chunk):
    monkeypatch.setattr(trainer, "LOSS_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 20, 8, generator=generator, requires_grad=True)
    head = torch.randn(30, 8, generator=generator, requires_grad=True)
    ids = torch.randint(0, 30, (2, 20), generator=generator)
    logits = F.linear(hidden, head)[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, ids[:, 1:].flatten())
    losses = weighted_losses(hidden, head, ids, torch.full((2, 20), 0.3))
    assert losses.shape == (2,)
    found = losses.sum() / (0.3 * ids[:, 1:].numel())
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, head)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_say_what_counts():
    generator = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(1, 6, 8, generator=generator), torch.randn(30, 8, generator=generator)
    ids = torch.randint(0, 30, (1, 6), generator=generator)
    weights = torch.tensor([[9.0, 0.0, 1.0, 0.0, 3.0, 0.0]])  # the first token is predicted by nothing
    losses = F.cross_entropy(F.linear(hidden, head)[0, :-1], ids[0, 1:], reduction="none")
    torch.testing.assert_close(weighted_losses(hidden, head, ids, weights)[0], losses[1] + 3 * losses[3])


@pytest.mark.parametrize("stage", [{"tokens": 0}, {"batch": 0}, {"steps": -1}, {"shares": {"poems": 1.0}}])
def test_stages_that_make_no_sense_are_refused(stage):
    with pytest.raises(ConfigError, match="must be positive|poems = 1.0; tasks are text"):
        Stage(**{"tokens": 64, "batch": 1, "steps": 1, **stage})


def test_the_model_is_a_plain_llama_with_grouped_heads(tokenizer):
    model = new_model(config(), tokenizer)
    assert model.config.num_key_value_heads == 1 and model.config.max_position_embeddings == 128
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)


def test_ms_attention_trains_through_its_selection(maker, tokenizer, tmp_path):
    """At 512 tokens with a budget of 384 something is left out, so the weights come out otherwise than dense ones."""
    stages = (Stage(tokens=512, batch=2, steps=2),)
    models = [
        pretrain(config(stages=stages, attention=kind, budget_tokens=384), maker, tokenizer, tmp_path / kind)
        for kind in ("dense", "ms")
    ]
    dense, ms = (model.model.layers[0].self_attn.o_proj.weight for model in models)
    assert torch.isfinite(ms).all() and not torch.allclose(dense, ms, atol=1e-6)
    assert models[1].config._attn_implementation == "sdpa"


@pytest.mark.parametrize("wrong", [{"attention": "sparse"}, {"attention": "ms", "stages": (Stage(64, 1, 1, {}, 0.3),)}])
def test_attention_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="attention ="):
        config(**wrong)


def test_thinned_text_weighs_the_same_and_answers_stay():
    torch.manual_seed(0)
    weights = torch.cat([torch.full((2, 4000), 0.3), torch.full((2, 50), 8.0), torch.zeros(2, 50)], dim=1)
    left = thinned(weights, 0.25)
    assert torch.equal(left[:, 4000:], weights[:, 4000:])
    assert (left[:, :4000] > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert left[:, :4000].sum().item() == pytest.approx(weights[:, :4000].sum().item(), rel=0.1)
    assert thinned(weights, 1.0) is weights
