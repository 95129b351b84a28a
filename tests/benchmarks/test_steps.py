"""What one step of tuning costs, and the model of Llama-2-7B's shapes at the size of a test."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from app.kernels.sf_attn import PATTERNS
from benchmarks import seven_b, sixtyfour, steps

CPU = torch.device("cpu")


def test_products_are_counted_and_half_of_causal_attention() -> None:
    a = torch.randn(100, 100, requires_grad=True)
    assert steps.counted(lambda: (a @ a).sum().backward())["flops"] == 3 * 2 * 100**3
    q = torch.randn(1, 4, 256, 32, requires_grad=True)
    whole, half = (
        steps.counted(lambda c=c: F.scaled_dot_product_attention(q, q, q, is_causal=c).sum().backward())["flops"]
        for c in (False, True)
    )
    assert whole == 2 * half == 3.5 * 4 * 4 * 256 * 256 * 32


def test_bytes_are_those_that_live_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.ones(1000)

    def together() -> None:
        kept = [torch.ones(1000) for _ in range(5)]
        assert len(kept) == 5

    held = torch.ones(1000)
    assert steps.counted(one_after_the_other)["peak_bytes"] <= 2 * 4000
    assert steps.counted(together)["peak_bytes"] == 5 * 4000
    assert steps.counted(lambda: held.view(10, 100).add_(1))["peak_bytes"] == 0


# --- 64 times


def test_sixtyfour(quick: list[str]) -> None:
    assert sixtyfour.main(quick) == 0
    values = json.loads(Path(quick[quick.index("--output") + 1]).read_text(encoding="utf-8"))
    assert values["full_fitted"]["measured_at"] == [64, 128, 192, 256] and values["full_fitted"]["tokens"] == 1024
    costs, ratios = values["parts"]["ms-1024"], values["step_ratio"]
    assert costs["flops"] > 0 and costs["peak_bytes"] > 0 and ratios["flops"] > 10
    assert values["step_ratio_at_equal_length"]["flops"] > 1  # less than half of all pairs are looked at


def test_a_fit_finds_what_costs_were_made_of() -> None:
    costs = {n: 3.0 * n + 0.01 * n * n for n in (100, 200, 400, 800)}
    found = sixtyfour.fitted(costs, 6400)
    assert found["a"] == pytest.approx(3) and found["b"] == pytest.approx(0.01) and found["worst_percent"] == 0
    assert found["value"] == pytest.approx(3 * 6400 + 0.01 * 6400**2)
    assert sixtyfour.fitted({**costs, 800: 2 * costs[800]}, 6400)["worst_percent"] > 10
    assert sixtyfour.lined({100: 9.0, 400: 50.0, 200: 30.0}, 1000)["value"] == pytest.approx(110)


def test_the_shapes_of_llama_2_7b() -> None:
    found = sixtyfour.seven_b(2**20, 4096)
    assert found["attention_pflop"] == {"full": 288.23, "ms": 2.25}
    assert found["attention_ratio"] == 128 and found["whole_model_ratio"] == pytest.approx(18.4, abs=0.1)


def test_the_length_ratio_needs_keys_and_perplexity(tmp_path: Path) -> None:
    def keep(right: int, rises: float) -> bool:
        parts = {
            "single-64": {"right": right, "trials": 20},
            "labelled-256": {"right": 0, "trials": 5},
            "control-random": {"right": 0, "trials": 20},
        }
        (tmp_path / "passkey.json").write_text(json.dumps({"parts": parts}))
        (tmp_path / "perplexity.json").write_text(json.dumps({"rises_percent": rises, "varies_percent": 2.0}))
        return sixtyfour.length_ratio(tmp_path)["met"]

    assert not sixtyfour.length_ratio(tmp_path)["met"]
    assert keep(20, 0.5) and not keep(19, 0.5) and not keep(20, 1.5)


# --- Llama-2-7B's twin


def tiny(tmp_path: Path, *more: str) -> dict:
    output = tmp_path / "seven_b.json"
    assert seven_b.main(["--tiny", "--steps", "2", "--tokens", "128", "--output", str(output), *more]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.bench
def test_every_arm_trains_under_its_cap(tmp_path: Path) -> None:
    values = tiny(tmp_path, "--cap-gb", "0.1")
    assert values["met"] and max(values["gradient_errors"].values()) <= 1e-4
    assert [(row["attention"], row["targets"]) for row in values["rows"]] == [
        (kind, targets) for kind in ("ms", "sf", "full") for targets in ("qkvo", "ko")
    ]
    assert all(row["fits"] and row["loss_falls"] and 0 < row["peak_gb"] < 0.01 for row in values["rows"])


@pytest.mark.bench
def test_a_cap_that_is_too_small_is_told_and_the_next_one_tried(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(seven_b, "ATTENTION", ("sf",))
    monkeypatch.setattr(seven_b, "TARGETS", ("ko",))
    values = tiny(tmp_path, "--cap-gb", "0.0001", "0.1")
    assert [(row["cap_gb"], row["fits"]) for row in values["rows"]] == [(0.0001, False), (0.1, True)]
    assert not values["met"]  # ms is missing, and sf did not fit under the first cap


@pytest.mark.parametrize("kind", ["ms", "sf", "full"])
def test_gradients_equal_the_reference_and_a_wrong_one_is_seen(kind: str, monkeypatch) -> None:
    assert seven_b.gradient_error(kind, CPU, tokens=100) <= 1e-4
    if kind == "sf":
        monkeypatch.setattr(seven_b, "PATTERNS", {"sf": PATTERNS["s2"]})  # the same without sinks
        assert seven_b.gradient_error(kind, CPU, tokens=100) > 1e-4


def test_nothing_is_measured_with_wrong_gradients_or_without_a_gpu(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(seven_b, "gradient_error", lambda kind, device: 0.01)
    output = tmp_path / "seven_b.json"
    assert seven_b.main(["--tiny", "--output", str(output)]) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert seven_b.main(["--output", str(output)]) == 2
    assert not output.exists() and "no GPU here" in capsys.readouterr().err
