"""Two versions of a text compared."""

import random
from pathlib import Path

from app.records import DocumentInfo, Part
from app.tasks.listing import Gone, listing
from app.tasks.versions import changes
from app.tasks.whole import Task

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"


def parts(*texts: str, **more) -> list[Part]:
    return [Part(number, str(number), text, **more) for number, text in enumerate(texts, 1)]


def words(before, after) -> list[tuple[str | None, str | None]]:
    return [(c.before and c.before.words, c.after and c.after.words) for c in changes(before, after)]


def test_changed_added_and_taken_out() -> None:
    before = parts("One stays. Two goes. Three stays.", "Four is old. Five stays.")
    after = parts("One stays. Three\nstays. Six is new.", "Four is young. Five stays.")
    assert words(before, after) == [
        ("Two goes.", None),
        (None, "Six is new."),
        ("Four is old.", "Four is young."),
    ]
    assert words(before, before) == []


def test_code_is_compared_by_lines() -> None:
    before, after = (parts(f"a.py (Python)\nx = {n}\n\ny = 2\n", first_line=0) for n in (1, 3))
    assert words(before, after) == [("x = 1", "x = 3")]


def test_changes_planted_in_a_book_are_found_however_parts_are_cut() -> None:
    text = BOOK.read_text(encoding="utf-8")[:60_000]
    paragraphs, rng = text.split("\n\n"), random.Random(1)
    planted = rng.sample([n for n, p in enumerate(paragraphs) if len(p) > 80], 20)
    changed = [p.replace(" ", " verily ", 1) if n in planted else p for n, p in enumerate(paragraphs)]
    found = changes(parts("\n\n".join(paragraphs)), parts("\n\n".join(changed[:50]), "\n\n".join(changed[50:])))
    assert len(found) == 20 and all("verily" in change.after.words for change in found)


def test_both_places_are_cited() -> None:
    infos = [DocumentInfo(id, f"Version {id}", "text", 1, 9, "read", "", "") for id in "12"]
    texts = "It was red. It stays.", "It was blue. It stays."
    found = [Gone(info, {1: parts(text)[0]}, [], 1) for info, text in zip(infos, texts, strict=True)]
    made = listing(Task("compare"), found, lambda info, part, start, end: "here")
    assert made.text.startswith("Version 1 and Version 2 differ in 1 place, in 1 of 1 parts of the first:")
    assert "- before: here: It was red.\n- after: here: It was blue." in made.text
    assert [(p.document, p.text) for p in made.passages] == [("1", "It was red."), ("2", "It was blue.")]
    assert "Two documents" in listing(Task("compare"), found[:1], lambda *_: "").text
