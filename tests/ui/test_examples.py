"""Questions to begin with: those that the model answered when it tried them."""

from pathlib import Path

from app.ui import examples
from tests.fake_chat import FakeDocumentChat


def test_the_questions_of_the_first_picked_document_are_shown(chat: FakeDocumentChat, tmp_path: Path) -> None:
    path = tmp_path / "coast.txt"
    path.write_text("Mr. Bond, the harbour master, had four lanterns in the tower by the sea. Martha was born in Rye.")
    id = chat.library.add_document(path).id
    asked = examples.examples(chat, ["gone", id])
    assert asked == tuple(chat.library.suggestions([id])) and 0 < len(asked) <= examples.SHOWN


def test_without_a_document_or_before_it_was_tried_there_are_none(chat: FakeDocumentChat, book: Path) -> None:
    id = chat.library.add_document(book).id
    assert examples.examples(chat, []) == () == examples.examples(chat, ["gone"])
    chat.suggestions = lambda documents: []
    assert examples.examples(chat, [id]) == ()
