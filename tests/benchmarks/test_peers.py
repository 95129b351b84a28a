"""Ours beside the peers, at the size of a test; llama.cpp is in no requirement, so it is left out."""

import json
from pathlib import Path

import pytest

from benchmarks import peers, plot

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"


def test_everybody_reads_and_decodes(quick: list[str]) -> None:
    assert peers.main([*quick, "--no-llama", "--file", str(BOOK)]) == 0
    values = json.loads(Path(quick[quick.index("--output") + 1]).read_text(encoding="utf-8"))
    side = values["parts"]["read-512"]["contenders"]
    assert list(side) == ["lectern", "transformers bfloat16", "transformers float32"]
    assert all(found["read_processor_s"] > 0 and found["step_ms"] > 0 for found in side.values())
    assert all(0 <= found["grown_bytes"] < found["peak_bytes"] for found in side.values())
    assert [row["tokens"] for row in values["parts"]["flat"]["rows"]] == [1_024, 2_048]
    rows = values["parts"]["budgets-1024"]["rows"]
    held = {row["cache"]: row["memory_bytes"] for row in rows}
    assert len(rows) == 7 and held["heavy hitters 20%"] < held["heavy hitters 50%"] < held["full"]
    assert set(values["met"]) == {"decode_within_20_percent", "reading_flat_within_10_percent"}


def made(read: float, step: float, peak: int) -> dict:
    return {"read_processor_s": read, "step_processor_ms": step, "peak_bytes": peak}


@pytest.mark.parametrize(("read", "peak", "met"), [(9.0, 100, True), (11.0, 100, False), (9.0, 101, False)])
def test_verdicts_can_come_out_both_ways(read: float, peak: int, met: bool) -> None:
    side = {"lectern": made(read, 5, peak), "transformers bfloat16": made(60, 50, 300), "llama.cpp": made(50, 10, 100)}
    parts = {
        "read-131072": {"tokens": 131_072, "contenders": side},
        "decode": {"rows": [{"of_first": 1}, {"of_first": 0.79}]},
        "flat": {"rows": [{"processor_ms": 10}, {"processor_ms": 10.9}]},
    }
    found = peers._finish(parts)
    assert found["met"]["reads_128k_5_times_faster"] is met
    assert not found["met"]["decode_within_20_percent"] and found["met"]["reading_flat_within_10_percent"]
    assert found["ratios"][0]["decode_times_faster"] == {"transformers bfloat16": 10, "llama.cpp": 2}


def test_lengths_that_peers_did_not_read_are_foretold() -> None:
    def side(tokens: int) -> dict:
        dense = made(2e-3 * tokens + 1e-5 * tokens**2, 5 + 1e-3 * tokens, 100 + tokens)
        return {
            "tokens": tokens,
            "contenders": {"lectern": made(1, 5, 100), "llama.cpp": dense | {"grown_bytes": tokens}},
        }

    parts = {f"read-{n}": side(n) for n in (1_000, 2_000, 4_000)}
    del parts["read-4000"]["contenders"]["llama.cpp"]
    found = peers.side_by_side(parts)[4_000]["llama.cpp"]
    wanted = side(4_000)["contenders"]["llama.cpp"]
    assert found.pop("fitted_from") == [1_000, 2_000] and found == pytest.approx(wanted)


def test_the_picture_shows_one_variant_of_each_kind(tmp_path: Path) -> None:
    side = {"lectern": made(1, 8, 1), "transformers bfloat16": made(2, 20, 1), "transformers float32": made(3, 10, 1)}
    parts = {
        "read-8192": {"tokens": 8_192, "contenders": side},
        "read-512": {"tokens": 512, "contenders": {"lectern": made(0.1, 8, 1)}},
        "decode": {"rows": [{"tokens": 4_096, "processor_ms": 8.0}]},
    }
    reading, decode = plot.lines({"parts": parts})
    assert reading == {"lectern": [(512, 0.1, True), (8_192, 1, True)], "transformers": [(8_192, 2, True)]}
    assert decode == {"lectern": [(4_096, 125.0, True)], "transformers": [(8_192, 50.0, True)]}
    reading["transformers"].append((32_768, 30.0, False))
    pytest.importorskip("matplotlib")
    plot.draw(reading, decode, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
