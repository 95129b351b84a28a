"""Questions to begin with: those that the model answered when it tried them."""

import time
from pathlib import Path

from app.api.reading import BackgroundReading
from app.ui import examples
from tests.fake_chat import FakeDocumentChat


def test_the_questions_of_the_first_picked_document_are_shown(chat: FakeDocumentChat, tmp_path: Path) -> None:
    path = tmp_path / "coast.txt"
    path.write_text("Mr. Bond, the harbour master, had four lanterns in the tower by the sea. Martha was born in Rye.")
    id = chat.library.add_document(path).id
    asked = examples.examples(chat, BackgroundReading(chat), ["gone", id])
    assert asked == tuple(chat.library.suggestions([id])) and 0 < len(asked) <= examples.SHOWN


def test_without_a_document_or_before_it_was_tried_there_are_none(chat: FakeDocumentChat, book: Path) -> None:
    id = chat.library.add_document(book).id
    queue = BackgroundReading(chat)
    assert examples.examples(chat, queue, []) == () == examples.examples(chat, queue, ["gone"])
    chat.suggestions = lambda documents: []
    assert examples.examples(chat, queue, [id]) == ()


def test_what_is_picked_is_tried_from_then_on(chat: FakeDocumentChat, book: Path) -> None:
    id, asked = chat.library.add_document(book).id, []
    chat.trials.untried = lambda document: document == id and not asked
    chat.trials.try_question = lambda document: asked.append(document) or True
    queue = BackgroundReading(chat)
    examples.examples(chat, queue, [id])
    while not queue.queued().suggested:
        time.sleep(0.005)
    queue.close()
    assert asked == [id]
