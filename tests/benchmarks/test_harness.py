import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.errors import ConfigError
from benchmarks import harness
from benchmarks.harness import Benchmark, Part


def benchmark(calls: list[str], settings: dict | None = None, **options) -> Benchmark:
    def part(name: str) -> Part:
        return Part(name, 30.0, lambda: calls.append(name) or {"figure": len(calls)})

    return Benchmark(
        "made",
        settings or {"file": [Path("/somewhere/book.txt")]},
        [part("one"), part("two-a"), part("two-b")],
        lambda parts: (["part", "figure"], [[name, values["figure"]] for name, values in parts.items()]),
        lambda parts: {"sum": sum(values["figure"] for values in parts.values())},
        **options,
    )


def arguments(quick: list[str], *more: str):
    return harness.flags("Test.", "made").parse_args([*quick, *more])


def test_parts_are_kept_and_merged_when_all_are_there(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    calls: list[str] = []
    args = arguments(quick, "--only", "one")
    assert harness.main(benchmark(calls), args) == 0
    assert calls == ["one"] and not args.output.exists()
    assert "not measured yet: two-a, two-b" in capsys.readouterr().err
    assert harness.main(benchmark(calls), arguments(quick, "--only", "two-*")) == 0
    assert calls == ["one", "two-a", "two-b"]
    result = json.loads(args.output.read_text())
    assert result["sum"] == 6 and result["parts"]["two-b"]["figure"] == 3
    assert result["settings"] == {"file": ["book.txt"]} and {"cpu", "torch", "date", "commits"} <= set(result)
    assert harness.main(benchmark(calls), arguments(quick)) == 0 and len(calls) == 3
    assert harness.main(benchmark(calls), arguments(quick, "--only", "one", "--again")) == 0 and len(calls) == 4


def test_other_settings_are_not_merged(quick: list[str]) -> None:
    calls: list[str] = []
    assert harness.main(benchmark(calls), arguments(quick, "--only", "one")) == 0
    assert harness.main(benchmark(calls, {"seed": 2}), arguments(quick, "--only", "two-*")) == 0
    assert not arguments(quick).output.exists()


def test_a_failed_check_measures_nothing(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    calls: list[str] = []
    assert harness.main(benchmark(calls, check=lambda: "it is wrong"), arguments(quick)) == 1
    assert calls == [] and "it is wrong: nothing is measured" in capsys.readouterr().err


def test_a_stop_loses_one_part(quick: list[str]) -> None:
    calls: list[str] = []
    stopped = benchmark(calls)
    parts = [stopped.parts[0], Part("two-a", 1.0, lambda: 1 / 0), stopped.parts[2]]
    with pytest.raises(ZeroDivisionError):
        harness.main(Benchmark("made", stopped.settings, parts, stopped.table), arguments(quick))
    assert harness.main(benchmark(calls), arguments(quick)) == 0
    assert calls == ["one", "two-a", "two-b"]


def test_estimate_measures_nothing(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    calls: list[str] = []
    assert harness.main(benchmark(calls), arguments(quick, "--estimate")) == 0
    assert calls == [] and "1.5" in capsys.readouterr().out.splitlines()[-1]


def test_an_unknown_part_is_named(quick: list[str], capsys: pytest.CaptureFixture) -> None:
    assert harness.main(benchmark([]), arguments(quick, "--only", "three")) == 1
    assert "--only three: no such part; there are one" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        harness._chosen(benchmark([]).parts, "tw")


def test_variants_change_the_recipe(quick: list[str]) -> None:
    args = arguments(quick)
    assert harness.trained_tokens(args) == 64
    assert harness.engine(args, merge=1).shape.attention.merge == 1
    assert harness.engine(args, "streaming").policy == "streaming"


def test_the_check_knows_a_wrong_model(quick: list[str], tmp_path: Path) -> None:
    args = arguments(quick)
    assert harness.same_as_transformers(args) is None
    load = AutoModelForCausalLM.from_pretrained

    def spoiled(*names, **options):
        model = load(*names, **options)
        if isinstance(model, tuple):  # the engine's
            return model
        with torch.no_grad():
            model.lm_head.weight += 0.2 * torch.randn_like(model.lm_head.weight)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", spoiled)
        assert "nats off" in harness.same_as_transformers(args)


def test_prose_joins_books(quick: list[str], tmp_path: Path) -> None:
    books = []
    for name in ("a", "b"):
        books.append(tmp_path / f"{name}.txt")
        books[-1].write_text(f"Book {name} is short.\n", encoding="utf-8")
    from app.eval import texts

    assert texts.lines_of(harness.prose(arguments(quick), books)) == ["Book a is short.", "Book b is short."]
