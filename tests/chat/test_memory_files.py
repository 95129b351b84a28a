"""Documents and chats under policies that drop tokens: stored when complete, brought back as they were."""

import sqlite3

import pytest

from app.errors import InputError
from app.memory.config import GenerationConfig
from app.runtime.policies import H2O
from tests.chat.opened import finish, open_chat, write  # noqa: F401
from tests.runtime.test_policies import CAP_BYTES, HEAVY, Small, state

LONG = GenerationConfig(max_new_tokens=40)
POLICIES = {"h2o": H2O(HEAVY), "bounded": Small(CAP_BYTES, HEAVY)}


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


def held(chat):
    """Digests of the open chat's memories, the tail's last."""
    cache = chat.model.sessions().session.cache
    return [state(memory) for memory in (*cache.memories, cache.tail)]


def test_a_chat_goes_on_after_a_restart_as_if_never_stopped(open_chat, tmp_path, policy):  # noqa: F811
    """Also what is dropped after the restart is the same."""
    questions = ["who? " * 12, "what? " * 12, "why? " * 5]
    write(tmp_path, words=100)
    answers = []
    for home in ("unbroken", "restarted"):
        chat = open_chat(home, policy=policy)
        document = chat.library.add_document(tmp_path / "book.txt").id
        done = finish(chat.ask(questions[0], documents=[document], generation=LONG))
        assert done.stats.tokens_evicted > 0
        for question in questions[1:]:
            if home == "restarted":
                chat = open_chat(home, policy=policy)
            done = finish(chat.ask(question, chat=done.chat, generation=LONG))
            assert not done.stats.note and done.stats.tokens_reused > chat.library.document(document).tokens
        assert chat.model.sessions().session.cache.tail.dropped > 0
        answers.append((done.answer, held(chat)))
    assert answers[0] == answers[1]


def test_a_damaged_block_costs_a_reading(open_chat, tmp_path, policy):  # noqa: F811
    chat = open_chat(policy=policy)
    document = chat.library.add_document(write(tmp_path, words=100))
    list(chat.read(document.id))
    before = state(chat.model.sessions().reader._kept[document.id].memories[0])
    chat.close()
    with sqlite3.connect(next((tmp_path / "home").glob("*kv*.db"))) as db:
        db.execute("DELETE FROM block WHERE id = (SELECT min(id) FROM block)")
    chat = open_chat(policy=policy)
    assert list(chat.read(document.id))[0].reused == 0
    assert state(chat.model.sessions().reader._kept[document.id].memories[0]) == before


def test_going_back_runs_the_turns_again(open_chat, tmp_path, policy):  # noqa: F811
    chat = open_chat(policy=policy)
    document = chat.library.add_document(write(tmp_path, words=100))
    first = finish(chat.ask("who? " * 12, documents=[document.id], generation=LONG))
    finish(chat.ask("what? " * 12, chat=first.chat, generation=LONG))
    tail = chat.model.sessions().session.cache.tail
    assert tail.whole_from > chat.model.sessions().session.turns[0]
    again = finish(chat.retry(first.chat, generation=LONG))
    session = chat.model.sessions().session
    assert len(chat.saved.messages(first.chat)) == 4 and session.turns == [0, session.cache.tail.tokens]
    assert again.answer


def test_focus_is_refused(open_chat, tmp_path, policy):  # noqa: F811
    chat = open_chat(policy=policy)
    document = chat.library.add_document(write(tmp_path, words=100))
    with pytest.raises(InputError, match=f"policy {policy.name} drops some"):
        list(chat.ask("who?", documents=[document.id], focus=[document.title]))
