"""The script for a GPU runs whole on a CPU with a tiny model, and its figures can come out both ways."""

import json
from pathlib import Path

import pytest
import torch

from app.memory.pages import KVPages
from benchmarks import reading_gpu

CPU = torch.device("cpu")


@pytest.mark.bench
def test_its_tiny_twin_runs_whole(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    assert reading_gpu.main(["--tiny", "--output", str(output)]) == 0
    values = json.loads(output.read_text(encoding="utf-8"))
    rows = [(row["tokens"], row["reselect_every"]) for row in values["decode"]]
    assert rows == [(300, 1), (300, 8), (1500, 1), (1500, 8)]
    assert values["reading"]["tokens"] == values["reading"]["wanted"] == 1500
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 for row in values["decode"])
    assert values["settings"]["codec"] == "int8" and values["settings"]["tiny"]


@pytest.mark.bench
def test_reading_stops_when_the_minutes_are_over(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["--tiny", "--tokens", "20000", "--decode-at", "--minutes", "0", "--output", str(output)]
    assert reading_gpu.main(arguments) == 0
    values = json.loads(output.read_text(encoding="utf-8"))
    assert 0 < values["reading"]["tokens"] < 20_000 and not values["targets"][0]["met"] and not values["met"]


def test_a_wrong_model_is_not_measured(monkeypatch, capsys) -> None:
    assert reading_gpu.what_is_wrong(CPU) is None
    monkeypatch.setattr(reading_gpu, "exact_log_probs", lambda device, ids: torch.zeros(len(ids) - 1))
    monkeypatch.setattr(reading_gpu, "_measure", lambda *_: pytest.fail("measured"))
    assert reading_gpu.main(["--tiny"]) == 1
    assert "off those of transformers: nothing is measured" in capsys.readouterr().err


@pytest.mark.bench
def test_few_slots_must_not_change_the_answer(monkeypatch) -> None:
    """A hot slot that is used before its keys have come would say something else."""

    def leave_as_it_was(self, bundle, groups, packed):
        pool = self._hot_pools[bundle]
        pool.loose[self._claim(pool, self._hot[bundle], groups)] = True

    monkeypatch.setattr(KVPages, "_unpack", leave_as_it_was)
    assert "with few slots" in str(reading_gpu.what_is_wrong(CPU))


@pytest.mark.parametrize("last, slowest", [(4.0, 1.0), (4.5, 1.5)])
def test_stretches(last: float, slowest: float) -> None:
    marks = [(0, 0.0), (50, 3.0), (100, 2.0), (150, 2.5), (250, 3.5), (300, last)]
    assert reading_gpu.slowest_stretch(marks, 100) == slowest
    assert reading_gpu.slowest_stretch(marks[:4], 100) is None


@pytest.mark.parametrize("name, seconds, met", [("NVIDIA H200", 49, True), ("NVIDIA H200", 51, False)])
def test_targets(name: str, seconds: float, met: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    reading = {"tokens": 8, "wanted": 8, "seconds": seconds, "slowest_stretch": 1.05 if met else 1.2}
    rows = [{"tokens": 8, "share": share, "reselect_every": n} for share, n in ((0.7, 1), (0.8 if met else 0.6, 8))]
    found = reading_gpu.targets({"reading": reading, "decode": rows, "extra_gib": 7.9 if met else 8.1})
    assert [target["met"] for target in found] == [met] * 4
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert reading_gpu.targets({"reading": reading, "decode": [], "extra_gib": 1.0})[0]["aim"] == 120


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reading_gpu.main([]) == 2
    assert "--tiny" in capsys.readouterr().err
