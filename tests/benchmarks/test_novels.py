"""Questions about whole novels: the fixture, and the script at the size of a test."""

import hashlib
import json
import lzma
from pathlib import Path

import pytest

from benchmarks import novels

BOOK = "It was a quiet year by the sea. " * 60 + "Captain Orlov sold forty barrels in Malta. " + "Then it rained. " * 99


def test_the_fixture_has_a_hundred_questions_about_eight_novels() -> None:
    by_book = novels.load(novels.FIXTURE, None, None)
    asked = [q for here in by_book.values() for q in here]
    assert len(by_book) == 8 and len(asked) == 100 == len({q.id for q in asked})
    assert all(q.answers and 0 < q.end - q.start < 1000 and q.question.endswith("?") for q in asked)
    assert [len(here) for here in novels.load(novels.FIXTURE, 2, 3).values()] == [3, 3]


def test_an_answer_is_right_when_it_has_the_words_side_by_side() -> None:
    assert novels.right("It was 110,000 men.", ["110,000"])
    assert novels.right("In Thirty-sixth street.", ["Thirty-sixth Street"])
    assert not novels.right("It was 1110,000.", ["110,000"])
    assert novels.right("30 pounds", ["thirty pounds"]) and novels.right("He was twenty-five.", ["25"])
    assert not novels.right("twenty", ["twenty-five"]) and not novels.right("thirty", ["three"])
    assert not novels.right("Street thirty-sixth", ["Thirty-sixth Street"])


@pytest.fixture
def flags(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(novels, "ANSWER_TOKENS", 6)
    (tmp_path / "harbour.txt.xz").write_bytes(lzma.compress(BOOK.encode()))
    start = BOOK.index("Captain")
    values = {"id": "h-1", "book": "harbour.txt.xz", "start": start, "end": start + 42, "answers": ["forty"]}
    values["sha256"] = hashlib.sha256(BOOK[start : start + 42].encode()).hexdigest()[:16]
    values["question"] = "How many barrels did Orlov sell?"
    (tmp_path / "asked.jsonl").write_text(json.dumps(values) + "\n")
    return [*quick, "--books-folder", str(tmp_path), "--fixture", str(tmp_path / "asked.jsonl")]


def test_novels(flags: list[str]) -> None:
    assert novels.main(flags) == 0
    values = json.loads(Path(flags[flags.index("--output") + 1]).read_text(encoding="utf-8"))
    assert list(values["ways"]) == list(novels.WAYS)
    assert values["ways"]["words"] == {"asked": 1, "shown_1": 1, "shown_3": 1, "shown_8": 1}
    assert all(row["asked"] == 1 for row in values["ways"].values())
    assert values["ways"]["words-only"]["seconds"] > 0 and "right" in values["ways"]["pasted"]


def test_a_book_that_is_another_one_is_told(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "harbour.txt.xz").write_bytes(lzma.compress(b"Another book altogether. " * 300))
    assert novels.main([*flags, "--only", "words-1"]) == 1
    assert "is about another edition" in capsys.readouterr().err
