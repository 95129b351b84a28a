"""The tuning run: learns, counts rightly, goes on after a break, stops at what is not finite."""

import json
import logging
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from app.errors import ConfigError, InputError, TrainError
from app.models.rope import PositionConfig
from app.train.tune import tuner
from app.train.tune.lora import causal_model, trained_parameters
from app.train.tune.positions import PositionSampler
from app.train.tune.recipe import LoraRecipe
from app.train.loop import last_checkpoint
from app.train.tune.tuner import tune
from tests import tiny
from tests.train.tune.tuning import batches, recipe


def run(folder, given=None, source=None, **tune_values):
    given = given or recipe(**tune_values)
    return tune(given, source or partial(batches, tokens=given.tune.tokens), folder, model=tiny.model())


def test_the_loss_falls_on_what_repeats(tmp_path):
    made = run(tmp_path, source=lambda step, rows: batches(0, rows), steps=12, learning_rate=3e-2)
    assert len(made.losses) == len(made.grad_norms) == 12
    assert made.losses[-1] < made.losses[0] - 1
    assert made.tokens == 12 * 2 * 64 and made.peak_bytes > 0


def test_the_first_loss_is_that_of_the_base(tmp_path):
    """Of each document by itself, per token that is predicted."""
    made, rows = run(tmp_path, steps=1), batches(0, 2)["input_ids"]
    losses = []
    for part in (rows[:, :16], rows[:, 16:]):
        with torch.no_grad():
            logits = tiny.model()(part).logits
        losses += F.cross_entropy(logits[:, :-1].transpose(1, 2), part[:, 1:], reduction="none").flatten().tolist()
    assert made.losses[0] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


MS = {"attention": "ms", "tokens": 128, "tables": {"selection": replace(tiny.SMALL, budget_tokens=48)}}
CRD = {"tables": {"positions": PositionConfig("crd", (2, 4), 32, p_cyclic=0.7, p_truncated=0.5, seam="mask")}}


@pytest.mark.parametrize("kind", [{"attention": "sf"}, MS, CRD], ids=["sf", "ms", "crd"])
def test_checkpointing_and_accumulation_change_nothing(tmp_path, kind):
    """With everything that attention and positions draw."""
    plain = run(tmp_path / "a", **kind)
    full = run(tmp_path / "full", tokens=kind.get("tokens", 64))
    assert plain.losses[1:] != pytest.approx(full.losses[1:], abs=1e-4)
    for name, changes in {"b": {"checkpointing": True}, "c": {"batch": 1, "accumulation": 2}}.items():
        other = run(tmp_path / name, **kind, **changes)
        assert other.losses == pytest.approx(plain.losses, abs=1e-5)
        assert other.grad_norms == pytest.approx(plain.grad_norms, rel=1e-4)


def uneven(step, rows):
    """The first row has one token to learn, the others all."""
    drawn = batches(step, rows)
    drawn["weights"][0] = 0
    drawn["weights"][0, 5] = 3.0
    return drawn


def test_passes_count_by_their_tokens(tmp_path):
    """A pass with one token to learn weighs as one token, not as much as the other pass."""
    together, apart = run(tmp_path / "a", source=uneven), run(tmp_path / "b", source=uneven, batch=1, accumulation=2)
    assert apart.losses == pytest.approx(together.losses, abs=1e-5)
    assert apart.grad_norms == pytest.approx(together.grad_norms, rel=1e-4)


class Broken(Exception):
    pass


def test_a_broken_run_goes_on_with_the_same_losses(tmp_path):
    def breaking(step, rows):
        if step == 5:
            raise Broken
        return batches(step, rows)

    lora = LoraRecipe("ko", rank=4, dropout=0.3)  # its noise must go on too
    given = recipe(lora, steps=8, checkpointing=True)
    whole = run(tmp_path / "a", given)
    with pytest.raises(Broken):
        run(tmp_path / "b", given, breaking)
    assert last_checkpoint(tmp_path / "b").name == "checkpoint-4"
    seen = []
    resumed = run(tmp_path / "b", given, lambda step, rows: seen.append(step) or batches(step, rows))
    assert seen == [4, 5, 6, 7]
    assert resumed.losses == whole.losses and resumed.grad_norms == whole.grad_norms
    pairs = zip(trained_parameters(whole.model).items(), trained_parameters(resumed.model).values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, source=lambda step, rows: pytest.fail("drawn"))
    assert again.losses == first.losses and again.tokens == first.tokens
    a, b = (list(trained_parameters(made.model).values()) for made in (first, again))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_checkpoints_hold_what_learns_and_nothing_else(tmp_path):
    run(tmp_path, recipe(LoraRecipe("ko", rank=4, embeddings=False, norms=False)))
    stored = tuner.last_checkpoint(tmp_path) / "model.safetensors"
    assert stored.stat().st_size < 4 * 2 * 2 * 4 * (32 + 32) + 4000
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


def test_half_written_checkpoints_are_passed_over(tmp_path):
    run(tmp_path)
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4, "log')
    (tmp_path / "checkpoint-9").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    assert last_checkpoint(tmp_path / "none") is None


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ConfigError, match=r"another recipe \(\[tune\] learning_rate = 0.01, now 0.02\); go on with"):
        run(tmp_path, learning_rate=2e-2)
    run(tmp_path, save_steps=4)  # changes nothing of the result
    with pytest.raises(ConfigError, match=r"\[run\] processes = 1, now 2"):
        tuner.claim(tmp_path, recipe(), 2)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json: cannot be used .* another folder with --run"):
        run(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    def poisoned(step, rows):
        drawn = batches(step, rows)
        drawn["weights"][0, 5] = float("inf") if step == 3 else 1.0
        return drawn

    with pytest.raises(TrainError) as stopped:
        run(tmp_path, source=poisoned, steps=6, save_steps=1)
    message = str(stopped.value)
    assert message.startswith("step 4: the loss is nan") and "checkpoint-3. Lower learning_rate (now 0.01)" in message
    assert last_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_gradient_that_is_no_number_is_not_saved(tmp_path):
    model = tiny.model()
    poison = model.model.layers[0].post_attention_layernorm
    poison.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * float("nan"),))
    with pytest.raises(TrainError, match="step 1: the gradient norm is nan; no checkpoint was saved yet"):
        tune(recipe(save_steps=1), batches, tmp_path, model=model)
    assert last_checkpoint(tmp_path) is None


def test_a_step_without_anything_to_learn(tmp_path):
    with pytest.raises(InputError, match="step 1: its texts hold nothing to learn; check the data"):
        run(tmp_path, source=lambda step, rows: {**batches(step, rows), "weights": torch.zeros(rows, 64)})


def test_all_weights_may_learn(tmp_path):
    made = run(tmp_path, recipe(LoraRecipe(full=True), steps=2))
    assert len(trained_parameters(made.model)) == len(list(tiny.model().parameters()))
    assert made.model.lm_head.weight is not made.model.model.embed_tokens.weight  # as the tiny base has it


def test_bfloat16_learns_in_float32(tmp_path):
    made = run(tmp_path, dtype="bfloat16", checkpointing=True, schedule="cosine", steps=8, save_steps=8)
    exact = run(tmp_path / "exact", steps=3, save_steps=3)
    assert made.losses[:2] != exact.losses[:2] and made.losses[:2] == pytest.approx(exact.losses[:2], abs=0.05)
    assert causal_model(made.model).model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert {p.dtype for p in trained_parameters(made.model).values()} == {torch.float32}


def test_progress_is_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "app.train.loop"):
        run(tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name == "app.train.loop"]
    assert lines[0].startswith("step 1 of 4, loss ") and lines[-1].startswith("step 4 of 4, loss ")
    assert all(word in lines[0] for word in (" tokens/s, ", " left, peak ", " GB"))


def test_positions_are_drawn_once_a_step(tmp_path, monkeypatch):
    """The length is cut for all passes of a step alike, and counted."""
    drawn, draw = [], PositionSampler.draw

    def shorter(self, step, steps, tokens, seed):
        drawn.append((step, steps, tokens, seed))
        return draw(self, step, steps, 64 if step else 40, seed)

    monkeypatch.setattr(PositionSampler, "draw", shorter)
    made = run(tmp_path, batch=1, accumulation=2, steps=3)
    assert drawn == [(step, 3, 64, 0) for step in range(3)]
    assert made.tokens == 2 * (40 + 64 + 64)


def test_the_run_names_its_recipe(tmp_path):
    run(tmp_path)
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["tune"]["steps"] == 4 and written["lora"]["targets"] == "ko" and "base" not in written["tune"]


def test_several_gpus_want_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(tuner.TrainingArguments, "n_gpu", property(lambda self: 4))
    with pytest.raises(TrainError, match="4 GPUs are visible to one process; .* CUDA_VISIBLE_DEVICES=0"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "^step 3: the GPU's memory is full, .* make tokens or batch smaller",
        ),
        (OSError(28, "No space left on device"), "a checkpoint cannot be written or read .*No space left.*; make room"),
    ],
)
def test_what_the_machine_refuses_is_told(tmp_path, error, message):
    def failing(step, rows):
        if step == 2:
            raise error
        return batches(step, rows)

    with pytest.raises(TrainError, match=message):
        run(tmp_path, source=failing)
