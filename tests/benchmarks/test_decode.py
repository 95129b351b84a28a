"""Decode speed by length, at the size of a test."""

import json
from pathlib import Path

from app.models.checkpoint import SHARED_TOKENS
from benchmarks import decode

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"


def test_each_length_has_a_row(quick: list[str]) -> None:
    assert decode.main([*quick, "--file", str(BOOK)]) == 0
    values = json.loads(Path(quick[quick.index("--output") + 1]).read_text(encoding="utf-8"))
    rows = [(row["reselect_every"], row["tokens"]) for row in values["rows"]]
    assert rows == [(every, tokens) for every in (SHARED_TOKENS, 1, 4) for tokens in (2_048, 8_192)]
    assert [row["of_shortest"] for row in values["rows"][::2]] == [1, 1, 1]
    assert [row["tokens"] for row in values["answers"]] == [2_048, 8_192]
    assert all(row["processor_ms"] > 0 for row in values["rows"] + values["answers"])
