"""The comparison of searches runs whole at the size of a test."""

import json

import pytest

from app.errors import ConfigError
from benchmarks import tree
from tests import tiny


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "load_engine", lambda settings: tiny.engine())
    output = tmp_path / "tree.json"

    def measured(*flags):
        monkeypatch.setattr("sys.argv", ["tree.py", "--output", str(output), *flags])
        assert tree.main() == 0
        return json.loads(output.read_text(encoding="utf-8"))

    return measured


def test_every_way_is_compared_with_the_exact_one(run):
    values = run("--lengths", "1024", "4096", "--needles", "2", "--groups", "1")
    ways = {(row["tokens"], row["queries"], row["way"]): row for row in values["ways"]}
    assert set(ways) == {(n, q, w) for n in (1024, 4096) for q in ("group", "word") for w in tree.WAYS}
    for (_, _, way), row in ways.items():
        if way == "exact":
            assert row["mass"] == row["overlap"] == 1 and row["needles"] in (None, 1)
        assert row["overlap"] is None or 0 <= row["overlap"] <= 1
    assert any(row["overlap"] < 1 for row in values["ways"])
    assert any(row["needles"] is not None for row in values["ways"] if row["queries"] == "word")
    assert values["index_bytes_per_token"]["similar"] > 0


def test_a_length_that_is_no_whole_number_of_groups_is_refused(run):
    with pytest.raises(ConfigError, match="--lengths 1000: must be multiples of 16"):
        run("--lengths", "1000")
