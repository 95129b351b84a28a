"""Stretched positions: the numbers of the algorithm, draws that repeat, and checkpoints that stay plain."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.errors import ConfigError, ModelError
from app.kernels.rope import rotate
from app.models import checkpoint, folder
from app.models import rope as stretch
from app.models.rope import PositionConfig, ntk_base, rope_entry, rope_parameters
from app.runtime import load
from app.settings import Settings
from app.train.tune.positions import Draw, PositionSampler, frequencies, part_at
from tests import tiny

BASE = {"rope_type": "default", "rope_theta": 10_000.0}
DIM = 16
CRD = PositionConfig("crd", (4, 8), pretrained_tokens=64)


def sampler(config: PositionConfig = CRD) -> PositionSampler:
    return PositionSampler(config, BASE, DIM)


@pytest.mark.parametrize(("factor", "base"), [(4, 40_890), (8, 82_685), (16, 167_199), (64, 683_675), (256, 2_795_542)])
def test_ntk_bases(factor, base):
    assert round(ntk_base(1e4, factor, 128)) == base


def test_bad_configurations_are_refused():
    for values, message in (
        ({"method": "yarn"}, "method = 'yarn': not known"),
        ({"method": "crd", "factors": (4,), "seam": "cut"}, "seam = 'cut': not known"),
        ({"method": "ntk"}, r"factors = \[\]: method ntk takes one factor"),
        ({"method": "linear", "factors": [2, 4]}, r"factors = \[2, 4\]: method linear takes one"),
        ({"method": "none", "factors": [2]}, "method none takes no factors"),
        ({"method": "crd"}, "method crd needs at least one factor"),
        ({"method": "crd", "factors": [8, 4]}, "must not become smaller"),
        ({"method": "crd", "factors": "48"}, "factors = '48': must be numbers"),
        ({"method": "crd", "factors": [0.5]}, "must be numbers of at least 1"),
        ({"method": "crd", "factors": [4], "p_cyclic": 1.5}, "p_cyclic = 1.5: must lie between 0 and 1"),
        ({"method": "crd", "factors": [4], "p_truncated": "often"}, "p_truncated = 'often'"),
        ({"pretrained_tokens": -1}, "pretrained_tokens = -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            PositionConfig(**values)
    with pytest.raises(ConfigError, match="needs the range"):
        PositionSampler(PositionConfig("crd", (4,)), BASE, DIM)
    for config in (PositionConfig("ntk", (4,)), PositionConfig("linear", (4,))):
        for use in (rope_parameters, PositionSampler):
            with pytest.raises(ConfigError, match=r"stretches its positions already \(llama3\)"):
                use(config, {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}, DIM)


# --- draws


def test_without_shift_and_cut_crd_is_plain_ntk_bit_for_bit():
    plain = sampler(PositionConfig("ntk", (4,), 64)).draw(0, 10, 200, seed=3)
    still = sampler(PositionConfig("crd", (4,), 64, p_cyclic=0, p_truncated=0)).draw(0, 10, 200, seed=3)
    assert torch.equal(still.cos, plain.cos) and torch.equal(still.sin, plain.sin)
    assert (still.shift, still.seam, still.tokens, plain.tokens) == (0, None, 200, 200)


def attend(draw, q, k, v):
    cos, sin = draw.cos, draw.sin
    return F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)


def drawn(config: PositionConfig, tokens: int, wanted) -> Draw:
    found = (sampler(config).draw(step, 1000, tokens, seed=0) for step in range(1000))
    return next(draw for draw in found if wanted(draw))


def test_a_shift_alone_cannot_be_seen_and_a_wrap_can():
    q, k, v = torch.randn(3, 1, 4, 64, DIM, generator=torch.Generator().manual_seed(0))
    config = PositionConfig("crd", (4,), 64, p_cyclic=1, p_truncated=0)  # a table of 256
    plain = attend(sampler(replace(config, p_cyclic=0)).draw(0, 1, 64, 0), q, k, v)
    inside = drawn(config, 64, lambda draw: 100 < draw.shift <= 192)
    assert (attend(inside, q, k, v) - plain).abs().max() < 1e-4
    across = drawn(config, 64, lambda draw: draw.shift > 200)
    turned, seam = attend(across, q, k, v), 256 - across.shift
    assert (turned[:, :, :seam] - plain[:, :, :seam]).abs().max() < 1e-4
    assert (turned[:, :, seam:] - plain[:, :, seam:]).abs().max() > 0.05
    assert torch.equal(across.cos[seam], torch.ones(DIM))  # the table begins again


def test_a_masked_seam_parts_the_text_and_says_so():
    """With the rolled table, tokens of either side attend among themselves as they do with the unrolled one."""
    wrap = PositionConfig("crd", (4,), 64, p_cyclic=1, p_truncated=0)
    rolled = drawn(wrap, 64, lambda draw: draw.shift > 200)
    parted = drawn(replace(wrap, seam="mask"), 64, lambda draw: draw.shift > 200)
    assert parted.shift == rolled.shift and parted.seam == 256 - rolled.shift and rolled.seam is None
    q, k, v = torch.randn(3, 1, 4, 64, DIM, generator=torch.Generator().manual_seed(0))
    for side in (slice(0, parted.seam), slice(parted.seam, 64)):
        ours, theirs = (
            attend(Draw(draw.cos[side], draw.sin[side], 64), q[:, :, side], k[:, :, side], v[:, :, side])
            for draw in (parted, rolled)
        )
        assert (ours - theirs).abs().max() < 1e-4
    whole = part_at(parted.seam, None, 2, 64)
    assert whole.shape == (2, 64) and len(whole[1, : parted.seam].unique()) == 1
    assert whole[1, parted.seam] != whole[1, parted.seam - 1]
    packed = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, 0, 0]])
    assert part_at(2, packed, 2, 6).tolist() == [[0, 0, 1, 3, 3, -1], [0, 0, 1, 1, 1, 1]]
    assert part_at(None, packed, 2, 6) is packed and part_at(None, None, 2, 6) is None


def test_draws_follow_their_shares():
    used = sampler()
    draws = [used.draw(step, 1000, 256, seed=1) for step in range(1000)]
    assert [draws[0].factor, draws[499].factor, draws[500].factor, draws[999].factor] == [4, 4, 8, 8]
    assert 0.45 < sum(draw.shift > 0 for draw in draws) / 1000 < 0.55
    assert 0.21 < sum(draw.tokens < 256 for draw in draws) / 1000 < 0.29
    assert min(draw.tokens for draw in draws) >= 64 and all(len(draw.cos) == draw.tokens for draw in draws)
    assert max(draw.shift for draw in draws[:500]) < 256 <= max(draw.shift for draw in draws[500:]) < 512


def test_a_stage_trains_on_no_more_than_its_range():
    config = replace(CRD, p_truncated=0)
    assert [sampler(config).draw(step, 2, 500, seed=0).tokens for step in (0, 1)] == [256, 500]
    assert sampler(PositionConfig()).draw(0, 1, 5000, seed=0).tokens == 5000  # the control may leave its range


def test_draws_are_equal_in_every_process_and_in_any_order():
    used = sampler()
    ours = [(d.shift, d.tokens, float(d.cos.sum())) for d in (used.draw(step, 8, 200, 5) for step in range(8))]
    again = [sampler().draw(step, 8, 200, 5) for step in reversed(range(8))]
    assert [(d.shift, d.tokens, float(d.cos.sum())) for d in reversed(again)] == ours
    assert ours != [(d.shift, d.tokens, float(d.cos.sum())) for d in (used.draw(step, 8, 200, 6) for step in range(8))]
    script = (
        "from app.train.tune.positions import PositionConfig, PositionSampler\n"
        "made = PositionSampler(PositionConfig('crd', (4, 8), 64), {'rope_theta': 10000.0}, 16)\n"
        "draws = [made.draw(step, 8, 200, 5) for step in range(8)]\n"
        "print([(d.shift, d.tokens, float(d.cos.sum())) for d in draws])"
    )
    root = Path(__file__).resolve().parents[3]
    out = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(ours)


# --- inference


def test_one_factor_per_recipe_that_of_the_last_stage():
    configs = (PositionConfig(), PositionConfig("linear", (4,)), PositionConfig("ntk", (4,)), CRD)
    assert [config.inference_factor for config in configs] == [1, 4, 4, 8]


@pytest.mark.parametrize("config", [PositionConfig(), PositionConfig("linear", (4,)), PositionConfig("ntk", (4,)), CRD])
def test_config_json_alone_gives_stock_transformers_the_trained_frequencies(tmp_path, config):
    """What the last step trained with is what a plain checkpoint rotates with."""
    base = tiny.model()
    made = PositionSampler.of(config, base)
    base.config.rope_parameters = rope_parameters(config, base.config.rope_parameters, 8)
    base.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    inv_freq = made._own if config.method == "none" else frequencies(stock.config.rope_parameters, 8)
    assert torch.equal(stock.model.rotary_emb.inv_freq, inv_freq)
    steps = (made.draw(step, 100, 40, 0) for step in range(99, 0, -1))
    last = next(draw for draw in steps if draw.shift == 0 and draw.tokens == 40)
    cos, _ = stock.model.rotary_emb(torch.zeros(1), torch.arange(40)[None])
    torch.testing.assert_close(cos[0], last.cos, atol=1e-5, rtol=0)


def saved(path, entry, rope=None, **recipe) -> Path:
    model = tiny.model()
    model.config.rope_parameters = rope or model.config.rope_parameters
    model.config.max_position_embeddings = 2048
    model.save_pretrained(path)
    tiny.byte_tokenizer().save_pretrained(path)
    recipe = {"format": 1, "trained_tokens": 512, "rope": entry, **recipe}
    (path / "lectern.json").write_text(json.dumps(recipe))
    return path


def test_a_checkpoint_with_its_rope_entry_loads(tmp_path):
    config = PositionConfig("crd", (4, 8), 128)
    path = saved(tmp_path, rope_entry(config, BASE, 8), rope_parameters(config, BASE, 8))
    made = load.load_engine(Settings(model=str(path), device="cpu", threads=1))
    assert made.spec.inv_freq[1].item() == pytest.approx(ntk_base(1e4, 8, 8) ** -0.25)
    with pytest.raises(ConfigError, match="budget_tokens = 640: the model was trained to attend to 512"):
        checkpoint.read_recipe(path, folder.read_config(path), Settings(budget_tokens=640))


def test_the_range_of_the_factor_bounds_the_budget(tmp_path):
    config = PositionConfig("ntk", (2,), 128)
    path = saved(tmp_path, rope_entry(config, BASE, 8), rope_parameters(config, BASE, 8), trained_tokens=2048)
    with pytest.raises(ConfigError, match="budget_tokens = 384: the model was trained to attend to 256"):
        checkpoint.read_recipe(path, folder.read_config(path), Settings(budget_tokens=384))


NTK4 = rope_entry(PositionConfig("ntk", (4,), 128), BASE, 8)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (NTK4, r"rope.theta = 63496.0\d+, but config.json says rope_theta = 10000.0"),
        ({"type": "linear", "factor": 4.0}, "rope.type = 'linear', but config.json says rope_type = 'default'"),
        ({"colour": 1}, "rope.colour is not known to this version"),
        ([1], "rope is not a table"),
        ({"theta": "10000"}, "rope.theta = '10000' is no positive number"),
        ({"theta": 1e4, "method": "yarn"}, "rope: positions method = 'yarn': not known"),
        ({"theta": 1e4, "method": "crd", "factors": [4], "seam": "x"}, "rope: positions seam = 'x'"),
    ],
)
def test_a_rope_entry_that_cannot_be_used_is_refused(tmp_path, entry, message):
    path = saved(tmp_path, entry)
    with pytest.raises(ModelError, match=message):
        checkpoint.read_recipe(path, folder.read_config(path), Settings())


def test_older_ways_to_state_positions_are_understood():
    assert stretch.stated_rope({}) == {"rope_type": "default", "rope_theta": 10_000.0}
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert stretch.refusal({"type": "linear", "theta": 500_000, "factor": 4}, old) is None
    assert "config.json says factor = 4.0" in stretch.refusal({"type": "linear", "theta": 5e5, "factor": 8.0}, old)


@pytest.mark.parametrize("config", [PositionConfig("ntk", (4,), 128), PositionConfig("linear", (4,), 128)])
def test_an_adapter_brings_its_positions_with_it(tmp_path, config):
    import peft

    base_path, path = saved(tmp_path / "base", {"theta": 1e4}), tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(base_path)
    made = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["k_proj"], task_type="CAUSAL_LM"))
    made.save_pretrained(path)
    recipe = {"format": 1, "trained_tokens": 448, "rope": rope_entry(config, BASE, 8), "steps": 30}
    (path / "lectern.json").write_text(json.dumps(recipe))
    settings = Settings(model=str(base_path), adapter=str(path), device="cpu", threads=1)
    found = load.load_engine(settings)
    expected = frequencies(rope_parameters(config, BASE, 8), 8)
    assert torch.equal(found.spec.inv_freq, expected) and found.trained_tokens == 448
    (path / "lectern.json").write_text(json.dumps({**recipe, "rope": {"colour": 1}}))
    with pytest.raises(ModelError, match="adapter/lectern.json: rope.colour is not known"):
        load.load_engine(settings)
    (path / "lectern.json").write_text(json.dumps({**recipe, "format": 2}))
    with pytest.raises(ModelError, match="adapter/lectern.json: format is not known"):
        load.load_engine(settings)


def test_no_position_beyond_32k_is_ever_offered(tmp_path):
    config = {"model_type": "llama", "max_position_embeddings": 131_072}
    with pytest.raises(ConfigError, match="no token is placed beyond position 32768"):
        checkpoint.read_recipe(tmp_path, config, Settings(budget_tokens=65_536))
    assert checkpoint.read_recipe(tmp_path, config, Settings(budget_tokens=32_768)).attention.budget_tokens == 32_768


def test_compact_positions_stay_below_the_budget_at_any_length():
    """Every position from the budget on is poisoned: whoever uses one gets NaN."""
    made, ids = tiny.engine(), tiny.token_ids(700)
    budget = made.spec.attention.budget_tokens
    clean = made.log_probs(ids, counted_from=1)
    made = tiny.engine()
    cos, sin = made.spec.rope(4096, torch.zeros(1))
    cos[budget:], sin[budget:] = torch.nan, torch.nan
    assert torch.equal(made.log_probs(ids, counted_from=1), clean)
    cache = made.open_chat([made.read(ids)])
    with torch.no_grad():
        for token in (7, 8, 9):
            out = made.model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
            assert torch.isfinite(out).all()
    cos[budget - 1] = torch.nan
    assert not torch.isfinite(made.log_probs(ids, counted_from=1)).all()  # the poison is seen where it is reached


def test_grouped_models_with_a_head_dimension_of_their_own():
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    made = PositionSampler.of(PositionConfig("crd", (2,)), LlamaForCausalLM(config))
    assert made.config.pretrained_tokens == 64 and made.draw(0, 1, 100, 0).cos.shape[1] == 16
