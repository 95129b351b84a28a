"""The tuning benchmark at the size of a test, its toy world, and figures that can come out both ways."""

import json
import math
from pathlib import Path

import pytest
import torch

from app.kernels.sf_attn import GroupPattern
from app.train.attention import TrainingAttention, install
from benchmarks import toy, tuning


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    return ["--quick", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "tuning.json")]


def test_tuning(flags: list[str]) -> None:
    assert tuning.main([*flags, "--tried", "sf_alternating,sf_spread_4"]) == 0
    values = json.loads(Path(flags[-1]).read_text(encoding="utf-8"))
    assert set(values["arms"]) == {*tuning.ARMS, "sf_alternating", "sf_spread_4"}
    assert values["arms"]["full"]["r_perplexity"] == 1 and values["arms"]["block"]["r_nats"] == 0
    assert set(values["effects"]) == set(tuning.EFFECTS) and values["gate"]["met"] in (True, False)
    assert len(values["parts"]["sf-1"]["nats"]) == 3 and values["parts"]["untuned"]["at_its_own_length"] < math.log(64)
    found = {name: tuple(part["nats"]) for name, part in values["parts"].items()}
    assert found["ms-0"] == found["full-0"] != found["full-1"]  # 64 tokens fit its budget
    assert len(set(found.values())) == len(found) - 2


def test_nothing_is_measured_where_full_attention_is_no_better(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    assert tuning.main([*flags, "--only", "full-0,block-0"]) == 0
    args = tuning._arguments(flags)
    assert tuning.beats_block(args) is None
    args.gap = 5.0
    assert "5.0 are needed" in tuning.beats_block(args)


def test_an_unknown_arm_is_refused(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        tuning.main([*flags, "--tried", "sf_sideways"])
    assert "sf_sideways: not known; there are sf_returned_half" in capsys.readouterr().err


def parts(**nats: list[list[float]]) -> dict:
    return {
        f"{arm}-{seed}": {"arm": {}, "nats": row, "own": 1.0}
        for arm, rows in nats.items()
        for seed, row in enumerate(rows)
    }


def test_r_is_the_share_of_the_gain() -> None:
    noise = [0.0, 0.2, -0.1]
    rows = {
        name: [[level + x + 0.01 * seed for x in noise] for seed in range(2)]
        for name, level in {"full": 1.0, "block": 2.0, "sf": 1.25, "s2_published": 1.5, "s2": 1.75}.items()
    }
    found = tuning.finish(parts(**rows))
    arms = found["arms"]
    assert [arms[name]["r_nats"] for name in ("full", "sf", "s2_published", "s2", "block")] == [1, 0.75, 0.5, 0.25, 0]
    assert arms["sf"]["r_nats_95"] == [0.75, 0.75]  # what arms share falls out
    e = math.exp
    assert arms["sf"]["r_perplexity"] == pytest.approx((e(2) - e(1.25)) / (e(2) - e(1)), abs=1e-4)
    assert found["gate"]["met"] and not found["gate"]["r_sf_at_least_0.8"] == (arms["sf"]["r_perplexity"] < 0.8)
    assert found["effects"]["leak (s2 to s2_published)"]["nats_less"] == pytest.approx(0.25)
    assert found["effects"]["sinks on s2"]["by_seed"] == [0.5, 0.5]
    assert found["ms_read_with_ms"] is None
    rows["ms"] = rows["block"]
    assert tuning.finish(parts(**rows))["ms_read_with_ms"]["r_nats"] == pytest.approx(1.0383, abs=1e-4)  # own is 1.0
    rows["sf"] = [[1.6 + x for x in noise], [1.4 + x for x in noise]]  # better than s2_published in one seed of two
    assert not tuning.finish(parts(**rows))["gate"]["met"]


def test_documents_repeat_their_own_phrases() -> None:
    one, other = toy.documents(2, 600, torch.Generator().manual_seed(0)).tolist()

    def grams(ids: list[int]) -> set[tuple[int, ...]]:
        return {tuple(ids[i : i + toy.PHRASE]) for i in range(len(ids) - toy.PHRASE)}

    # 24 phrases at most, and 11 windows across each seam: of 588 windows most come again.
    assert len(grams(one)) < 588 - 600 / toy.PHRASE + 24 and not grams(one) & grams(other)
    assert len(set(one)) > 40 and 0 <= min(one) and max(one) < toy.SYMBOLS


@pytest.mark.bench
def test_the_base_can_be_made_and_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "base.safetensors"
    assert toy.main(["--steps", "2", "--output", str(path)]) == 0
    assert [p.name for p in path.parent.iterdir()] == ["base.safetensors"] and path.stat().st_size < 1.5e6
    made, ids = toy.base_model(path), toy.documents(1, 40, torch.Generator().manual_seed(0))
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert 4 < toy.losses(made, ids).mean().item() < 5


def test_the_kept_base_reads_its_own_length() -> None:
    """What was seen before is continued, near or far: the second half of a document costs half as much."""
    model = toy.base_model()
    assert sum(p.numel() for p in model.parameters()) < 240_000 and toy.BASE.stat().st_size < 1.5e6
    ids = toy.documents(8, toy.BASE_TOKENS, torch.Generator().manual_seed(5))
    with torch.no_grad():
        losses = toy.losses(model.eval(), ids)
    assert losses[:, :24].mean() > 3.5 and losses[:, 128:].mean() < 2.5


@pytest.mark.bench
@pytest.mark.parametrize("name", tuning.TRIED)
def test_what_was_tried_sees_no_future(name: str) -> None:
    model, attention = toy.new_model(), tuning.TRIED[name].attention()
    attention.table = tuning.interpolated(model, 64)
    install(model, attention)
    ids = toy.documents(1, 64, torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 40:] = 63 - changed[:, 40:]
    with torch.no_grad():
        before, after = (model(x, use_cache=False).logits for x in (ids, changed))
    torch.testing.assert_close(after[:, :40], before[:, :40])
    assert not torch.allclose(after[:, 40:], before[:, 40:])


def test_further_arms_see_what_they_say() -> None:
    """Through one layer each, which keys a query depends on, of 64 tokens in groups of 16."""
    q, k, v = (torch.randn(1, 4, 64, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    inv_freq = torch.ones(4)

    def seen(attention: TrainingAttention, layer: int, query: int) -> list[int]:
        attention.table = tuning.rope_table(inv_freq, 64, 1.0, torch.float32)
        values = v.clone().requires_grad_()
        attention.attend(layer, q, k, values, 1.0)[:, :, query].sum().backward()
        return values.grad.abs().sum((0, 1, 3)).nonzero()[:, 0].tolist()

    plain = GroupPattern(sinks=0)
    assert seen(tuning.Alternating(plain), 0, 50) == list(range(48, 51))
    assert seen(tuning.Alternating(plain), 1, 50) == list(range(40, 51))
    assert seen(tuning.Spread(plain, 2), 0, 50) == [0, 1, 16, 17, 32, 33, *range(40, 51)]
