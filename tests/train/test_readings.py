"""Rows of readings: each branch learns what it would alone, and the LoRA that runs merged learns what peft's does."""

import pytest
import torch

from app.train.attention import TrainingAttention, install
from app.train.pretrain.region_loss import RegionProbe
from app.train.reading_attention import ReadingAttention
from app.train.reading_layout import Piece, Reading, as_row
from app.train.tune.lora import add_adapter, causal_model, merged_lora
from app.train.tune.passes import TuningModel
from app.train.tune.recipe import LoraRecipe
from tests import tiny

HEADS = 2  # of the tiny model's KV heads


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(6, 262, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def branch(count: int, seed: int, answer: int = 3) -> Piece:
    return Piece(ids(count, seed), [0.0] * (count - answer) + [1.0] * answer, source=seed)


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    alone = Reading([ids(30, 1)], ids(4, 2), [branch(9, 3), branch(7, 4), branch(12, 5)])
    together = Reading([ids(3, 6), ids(20, 7), ids(11, 8)], ids(4, 2), [branch(8, 9), branch(10, 10)])
    return [alone, together]


def states(model, reading_row) -> torch.Tensor:
    attention = TrainingAttention("full")
    install(model, attention)
    attention.readings = ReadingAttention(reading_row, HEADS)
    return model.model(input_ids=reading_row["input_ids"], use_cache=False).last_hidden_state[0]


def test_a_branch_sees_its_text_and_itself_as_if_alone(readings, monkeypatch):
    monkeypatch.setattr("app.train.reading_attention.CHUNK_TOKENS", 16)  # branches fall into several chunks
    row, alone = as_row(readings), readings[0]
    found, stock = states(tiny.model(), row), tiny.model()
    for number, start in ((0, 34), (1, 43), (2, 50)):
        piece = alone.branches[number]
        text = torch.tensor([[*alone.parts[0], *alone.trunk, *piece.ids]])
        wanted = stock.model(input_ids=text).last_hidden_state[0, -len(piece.ids) :]
        torch.testing.assert_close(found[start : start + len(piece.ids)], wanted, atol=1e-5, rtol=1e-4)


def test_a_part_sees_the_first_and_itself_and_a_branch_sees_all(readings):
    row, second = as_row(readings), readings[1]
    start = readings[0].tokens
    model = tiny.model()
    before = states(model, row)
    changed = {name: values.clone() for name, values in row.items()}
    changed["input_ids"][0, start + 5] += 1  # in the second part
    after = states(model, changed)
    moved = (after - before).abs().amax(-1)[start:] > 1e-6
    sizes = [len(part) for part in second.parts]
    assert not moved[: sizes[0] + 2].any() and moved[sizes[0] + 2 : sizes[0] + sizes[1]].all()
    assert not moved[sum(sizes[:2]) : sum(sizes)].any(), "the third part does not see the second"
    assert moved[sum(sizes) :].all(), "what is asked does"


def test_long_first_parts_are_attended_by_halves_and_alike(readings, monkeypatch):
    row = as_row(readings)
    wanted = states(tiny.model(), row)
    monkeypatch.setattr("app.train.reading_attention.LONG_PART", 10)
    torch.testing.assert_close(states(tiny.model(), row), wanted, atol=1e-5, rtol=1e-4)


def test_positions_are_compact_and_no_branch_is_predicted_from_another(readings):
    row = as_row(readings)
    assert row["positions"][0, 34:46].tolist() == [*range(34, 43), 34, 35, 36]
    assert row["positions"][0, readings[0].tokens] == 0
    assert row["weights"].sum() == 15 and all(row["weights"][0, start] == 0 for start in (0, 34, 43, 50))


def learnt(readings, *, merged: bool, region_loss: float = 0.0) -> tuple[dict, list[torch.Tensor]]:
    adapted = add_adapter(tiny.model(), LoraRecipe("all", rank=4, embeddings=False, norms=False))
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    probe = RegionProbe(region_tokens=8, key_sub=2, weight=region_loss) if region_loss else None
    attention = TrainingAttention("full", probe=probe)
    install(causal_model(adapted), attention)
    model = TuningModel(adapted, attention, torch.float32)
    with merged_lora(adapted) if merged else torch.enable_grad() as count:
        found = model(**as_row(readings))
        (found["loss"] + region_loss * found.get("regions", 0)).backward()
    assert not merged or count == 14
    found["told"] = model.told
    return found, [p.grad for p in adapted.parameters() if p.requires_grad]


def test_merged_lora_learns_what_peft_learns(readings):
    ours, theirs = learnt(readings, merged=True), learnt(readings, merged=False)
    torch.testing.assert_close(ours[0]["loss"], theirs[0]["loss"])
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3)


def test_the_loss_is_that_of_its_sources(readings):
    found, _ = learnt(readings, merged=True)
    assert {source: tokens for source, (_, tokens) in found["told"].items()} == dict.fromkeys((3, 4, 5, 9, 10), 3)
    assert sum(nats for nats, _ in found["told"].values()) == pytest.approx(float(found["loss"]), rel=1e-5)


def test_the_region_loss_of_readings_moves_queries_and_keys_alone(readings):
    found, _ = learnt(readings, merged=True, region_loss=1.0)
    assert float(found["regions"]) > 0
    _, with_regions = learnt(readings, merged=True, region_loss=1.0)
    _, without = learnt(readings, merged=True)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(with_regions, without, strict=True))
