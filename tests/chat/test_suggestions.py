"""Suggested questions: found by rules, tried on the model, kept when it answers them."""

import pytest

from app.chat import DocumentChat, suggestions
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


def test_what_the_model_answers_with_the_words_of_the_text_is_suggested(chat, book, monkeypatch):
    answers = {q.question: q.answer for q in suggestions.candidates(chat.store.parts(book))}
    wrong = next(iter(answers))
    tried = says(monkeypatch, lambda question: "No idea." if question == wrong else f"It is {answers[question]}.")
    assert chat.library.suggestions([book]) == []
    list(chat.read(book))
    assert chat.library.suggestions([book]) == list(answers)[1:5] and tried == list(answers)[:5]
    list(chat.read(book))
    assert len(tried) == 5  # once


def test_a_model_that_answers_none_gets_none(chat, book, monkeypatch):
    tried = says(monkeypatch, lambda question: "The text does not say.")
    list(chat.read(book))
    assert chat.library.suggestions([book]) == [] == chat.library.suggestions([]) and tried


def test_trying_ends_with_a_stop_and_in_time(chat, book, monkeypatch):
    tried = says(monkeypatch, lambda question: chat.jobs.stop() or "No idea.")
    list(chat.read(book))
    assert len(tried) == 1 and chat.store.suggestions(book, chat.model.engine().recipe) is None
    monkeypatch.setattr(suggestions, "LONGEST_TRY_S", -1.0)
    sessions = chat.model.sessions()
    assert suggestions.answered(sessions, sessions.reader._kept[book], _Job()) == [] and len(tried) == 1


class _Job:
    cancelled = False
