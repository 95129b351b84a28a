"""Questions hidden in long texts, at the size of a test."""

import json
from pathlib import Path

from app.eval import qa
from benchmarks import hidden

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"


def test_hidden(quick: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(qa, "ANSWER_TOKENS", 4)
    entries = []
    for name in ("harbour", "lantern"):
        asked_of = {"id": name, "question": f"Who is the {name} keeper?", "answers": ["Martha"]}
        entries.append({"text": f"The {name} keeper is Martha of Rye.", "qas": [asked_of]})
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert hidden.main([*quick, "--questions", str(asked), "--file", str(BOOK)]) == 0
    values = json.loads(Path(quick[quick.index("--output") + 1]).read_text(encoding="utf-8"))
    assert set(values["scores"]) == {"alone", "400"} and set(values["scores"]["400"]) == {*hidden.OURS, *hidden.RIVALS}
    assert all(scores["n"] == 2 for scores in values["scores"]["400"].values())
