"""The comparison of searches runs whole at the size of a test."""

import json
from pathlib import Path

import pytest

from benchmarks import tree

WAYS = [*tree.WAYS, "similar-128"]


def test_every_way_is_compared_with_the_exact_one(quick: list[str]) -> None:
    assert tree.main(quick) == 0
    values = json.loads(Path(quick[quick.index("--output") + 1]).read_text(encoding="utf-8"))
    rows = [row for part in values["parts"].values() for row in part["rows"]]
    ways = {(row["tokens"], row["queries"], row["way"]): row for row in rows}
    assert set(ways) == {(n, q, w) for n in (1024, 4096) for q in ("group", "word") for w in WAYS}
    for (_, _, way), row in ways.items():
        if way == "exact":
            assert row["recall"] == row["mass"] == row["overlap"] == 1 and row["needles"] in (None, 1)
        assert all(row[name] is None or 0 <= row[name] <= 1 for name in ("recall", "overlap"))
    assert any(row["overlap"] < 1 for row in rows)
    assert any(row["needles"] is not None for row in rows if row["queries"] == "word")
    assert values["parts"]["4096"]["index_bytes_per_token"]["similar"] > 0
    assert values["least_recall"]["exact"] == {"group": 1, "word": 1}


def test_the_shipped_way_decides() -> None:
    def parts(recall: float) -> dict:
        exact = {"way": "exact", "queries": "word", "recall": 1.0}
        return {"1024": {"rows": [exact, {"way": "shipped", "queries": "word", "recall": recall}]}}

    assert tree._finish(parts(0.99))["met"] and not tree._finish(parts(0.989))["met"]


def test_a_length_that_is_no_whole_number_of_groups_is_refused(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = [flag for flag in quick if flag != "--quick"]
    assert tree.main([*flags, "--lengths", "1000"]) == 1
    assert "--lengths 1000: must be multiples of 16" in capsys.readouterr().err
