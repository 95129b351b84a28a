"""The benchmark of region summaries: every arm trains and is asked under every score."""

import json
from pathlib import Path

from benchmarks import summaries
from tests.train.conftest import data, write_lines  # noqa: F401

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"


def test_every_arm_is_asked_under_every_score(quick: list[str], shipped_model: Path, data: Path) -> None:  # noqa: F811
    flags = [*quick, "--start", str(shipped_model), "--data", str(data), "--file", str(BOOK)]
    assert summaries.main(flags) == 0
    parts = json.loads(Path(quick[quick.index("--output") + 1]).read_text(encoding="utf-8"))["parts"]
    assert list(parts) == ["start", "dense", "region-loss", "ms"]
    assert all(list(values["scores"]) == list(summaries.SCORES) for values in parts.values())
    assert all(found["trials"] == 1 for values in parts.values() for found in values["scores"].values())
