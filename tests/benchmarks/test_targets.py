"""The targets benchmark at the size of a test, and figures that can come out both ways."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import targets, toy


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    toy.keep(toy.new_model(), tmp_path / "toy" / toy.BASE.name)
    output = str(tmp_path / "targets.json")
    return ["--quick", "--model", str(tmp_path / "toy"), "--work", str(tmp_path / "work"), "--output", output]


def test_targets(flags: list[str]) -> None:
    some = ("qkvo", "ko", "qkvo_alone")
    assert targets.main([*flags, "--seeds", "1", "--arms", ",".join(some)]) == 0
    told = json.loads(Path(flags[-1]).read_text(encoding="utf-8"))["attentions"]
    assert set(told["full"]["arms"]) == set(told["ms"]["arms"]) == set(some)
    assert told["full"]["arms"]["qkvo"]["over_qkvo"] == 0
    assert told["full"]["arms"]["ko"]["learning"] < told["full"]["arms"]["qkvo"]["learning"]
    assert told["full"]["arms"]["ko"]["nats"] != told["ms"]["arms"]["ko"]["nats"]


def parts(**nats: list[list[float]]) -> dict:
    return {
        f"full-{arm}-{seed}": {"nats": row, "learning": 1}
        for arm, rows in nats.items()
        for seed, row in enumerate(rows)
    }


def test_close_means_within_one_percent_with_certainty() -> None:
    base = [[3.0, 3.5, 2.5], [3.1, 3.6, 2.6]]

    def moved(by: float, noise: float = 0.0) -> list[list[float]]:
        return [[x + by + noise * (-1) ** i for i, x in enumerate(row)] for row in base]

    measured = parts(qkvo=base, ko=moved(0.005), qk=moved(0.02), qkvo_alone=moved(0.1), untuned=base)
    told = targets.finish(("full",), measured)["attentions"]["full"]
    assert told["within_1_percent"] == {"ko": True, "qk": False}
    assert told["arms"]["ko"]["over_qkvo"] == pytest.approx(0.00501, abs=1e-5)
    assert told["frozen_embeddings_over_half_the_targets"]["share"] == pytest.approx(0.09966, abs=1e-4)
    unsure = targets.finish(("full",), parts(qkvo=base, ko=moved(0.005, 0.05)))
    assert unsure["attentions"]["full"]["within_1_percent"] == {"ko": False}


def test_the_check_finds_pairs_that_are_no_half(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = targets._arguments(flags)
    assert targets.check(args) is None
    monkeypatch.setitem(targets.ARMS, "ko_alone", targets.ARMS["qkvo_alone"])
    assert "pairs are not half of four" in targets.check(args)
