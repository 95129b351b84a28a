"""Questions to begin with."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.ui import examples
from tests.fake_chat import FakeDocumentChat

TEXT = """CHAPTER I. The Harbour

Mr. Bond, the harbour master, had four lanterns in the tower by the sea. Martha was born in Rye.

"The lamps must be lit before the tide turns," said Martha.

CHAPTER II. The Storm

Martha went to London with a dog named Rover. There were thirty ships in the harbour on that day.
"""


@pytest.fixture
def text(chat: FakeDocumentChat, tmp_path: Path) -> str:
    path = tmp_path / "coast.txt"
    path.write_text(TEXT, encoding="utf-8")
    return chat.add_document(path).id


def test_a_demonstration_model_is_asked_for_facts_of_the_text(chat: FakeDocumentChat, text: str) -> None:
    asked = examples.examples(chat, [text])
    assert len(asked) == examples.SHOWN == len(set(asked)) and not set(asked) & set(examples.GENERAL["text"])
    assert asked[0].startswith("Who is Mr. Bond")
    assert asked == examples.examples(chat, [text])


def test_other_models_are_asked_general_questions_too(chat: FakeDocumentChat, text: str) -> None:
    facts = examples.examples(chat, [text])
    chat.model = replace(chat.model, demonstration=False)
    assert examples.examples(chat, [text]) == (*facts[:2], *examples.GENERAL["text"][:2])


def test_where_the_rules_find_nothing_the_questions_are_general(chat: FakeDocumentChat, tmp_path: Path) -> None:
    path = tmp_path / "blank.txt"
    path.write_text("so it is and so it was\n" * 20, encoding="utf-8")
    assert examples.examples(chat, [chat.add_document(path).id]) == examples.GENERAL["text"]
    assert examples.examples(chat, []) == ()


def test_code_is_asked_about_its_names(chat: FakeDocumentChat, tmp_path: Path) -> None:
    path = tmp_path / "tool.py"
    path.write_text(
        "LIMIT = 12\n\n\nclass Harbour(Place):\n    def lamp(self):\n        return LIMIT\n", encoding="utf-8"
    )
    assert "To what is `LIMIT` set?" in examples.examples(chat, [chat.add_document(path).id])


def test_questions_are_short(chat: FakeDocumentChat, book: Path) -> None:
    asked = examples.examples(chat, [chat.add_document(book).id])
    assert asked and all(len(question) <= examples.LONGEST_CHARS for question in asked)
