"""Suggested questions: found by rules, tried on the model, kept when it answers them."""

import time

import pytest

from app.api.reading import BackgroundReading
from app.chat import DocumentChat, suggestions
from app.errors import CancelledError, InUseError
from app.records import Done, Part
from app.settings import Settings
from tests import tiny

TEXT = """CHAPTER I. The Harbour

Mr. Bond, the harbour master, had four lanterns in the tower by the sea. Martha was born in Rye.

"The lamps must be lit before the tide turns," said Martha.

CHAPTER II. The Storm

Martha went to London with a dog named Rover. There were thirty ships in the harbour on that day.
"""


@pytest.fixture
def chat(tmp_path):
    opened = DocumentChat.open(Settings(home=tmp_path / "home"), engine=tiny.engine())
    yield opened
    opened.close()


@pytest.fixture
def book(chat, tmp_path):
    path = tmp_path / "coast.txt"
    path.write_text(TEXT, encoding="utf-8")
    return chat.library.add_document(path).id


def says(monkeypatch, answer):
    """Let every question be answered by a function of it; returns the questions that were tried."""
    from app.chat.sessions import Sessions

    tried = []

    def generate(self, session, history, question, generation, job):
        tried.append(question)
        yield Done(answer(question), "", (), None)

    monkeypatch.setattr(Sessions, "generate", generate)
    return tried


def test_candidates_are_facts_of_the_text_one_of_each_kind_first():
    asked = suggestions.candidates([Part(1, "1", TEXT)])
    assert asked == suggestions.candidates([Part(1, "1", TEXT)]) and len(asked) >= suggestions.SHOWN
    assert asked[0].question.startswith("Who is Mr. Bond") and len({q.kind for q in asked[:4]}) == 4
    assert all(len(q.question) <= suggestions.LONGEST_CHARS for q in asked)
    code = "LIMIT = 12\n\n\nclass Harbour(Place):\n    def lamp(self):\n        return LIMIT\n"
    assert "To what is `LIMIT` set?" in [q.question for q in suggestions.candidates([Part(1, "tool.py", code)])]
    assert suggestions.candidates([Part(1, "1", "so it is and so it was\n" * 20)]) == []


def try_all(chat: DocumentChat, book: str) -> None:
    list(chat.read(book))
    while chat.trials.untried(book):
        chat.trials.try_question(book)


def test_what_the_model_answers_with_the_words_of_the_text_is_suggested(chat, book, monkeypatch):
    answers = {q.question: q.answer for q in suggestions.candidates(chat.store.parts(book))}
    wrong = next(iter(answers))
    tried = says(monkeypatch, lambda question: "No idea." if question == wrong else f"It is {answers[question]}.")
    assert not chat.trials.untried(book)  # it is not read
    list(chat.read(book))
    assert chat.trials.untried(book) and not chat.trials.try_question(book) and chat.library.suggestions([book]) == []
    assert chat.trials.try_question(book) and chat.library.suggestions([book]) == list(answers)[1:2]  # told at once
    try_all(chat, book)
    assert chat.library.suggestions([book]) == list(answers)[1:5] and tried == list(answers)[:5]
    try_all(chat, book)
    assert len(tried) == 5  # once


def test_a_model_that_answers_none_gets_none(chat, book, monkeypatch):
    tried = says(monkeypatch, lambda question: "The text does not say.")
    try_all(chat, book)
    assert chat.library.suggestions([book]) == [] == chat.library.suggestions([]) and tried
    assert chat.store.suggestions(book, chat.model.engine().recipe) == []


def test_other_work_comes_first_and_the_question_is_tried_again(chat, book, monkeypatch):
    tried = says(monkeypatch, lambda question: chat.jobs.stop() or "No idea.")
    list(chat.read(book))
    with pytest.raises(CancelledError):
        chat.trials.try_question(book)
    with chat.jobs.claim("answering"), pytest.raises(InUseError):
        chat.trials.try_question(book)
    assert len(tried) == 1 and chat.trials.untried(book)
    again = says(monkeypatch, lambda question: "No idea.")
    chat.trials.try_question(book)
    assert again == tried


def test_the_queue_tries_what_it_has_read_when_nothing_waits(chat, book, monkeypatch):
    answers = {q.question: q.answer for q in suggestions.candidates(chat.store.parts(book))}
    says(monkeypatch, lambda question: f"It is {answers[question]}.")
    queue = BackgroundReading(chat)
    queue.add(book)
    end = time.monotonic() + 20
    while queue.queued().suggested < suggestions.SHOWN:
        assert time.monotonic() < end, "they did not come"
        time.sleep(0.01)
    queue.close()
    assert chat.library.suggestions([book]) == list(answers)[: suggestions.SHOWN] and not queue.problems
