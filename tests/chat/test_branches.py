"""Forks and edited questions: nothing is read for them, nothing is lost by them."""

import shutil
import time
from pathlib import Path

import pytest

from app.chat import DocumentChat
from app.errors import InputError, LecternError, NotFoundError
from app.memory.config import GenerationConfig
from app.settings import Settings
from tests import tiny
from tests.chat.opened import SHORT, Open, finish, open_chat, write

__all__ = ["open_chat"]


@pytest.fixture(scope="module")
def three_turns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data folder and its chat of three turns over a book, made once: tests begin with copies of it."""
    folder = tmp_path_factory.mktemp("begun")
    engine = tiny.engine()
    engine.segment_tokens = engine.most_segment_tokens = 1024  # a long book in a moment
    chat = DocumentChat.open(Settings(home=folder / "home"), engine=engine)
    document = chat.library.add_document(write(folder, words=1_500))
    id = finish(chat.ask("who is it?", documents=[document.id], generation=SHORT)).chat
    for question in ("and what then?", "why?"):
        finish(chat.ask(question, chat=id, generation=SHORT))
    chat.close()
    return folder / "home", id


@pytest.fixture
def first(three_turns: tuple[Path, str], tmp_path: Path) -> str:
    """The chat of three turns, in the data folder that `open_chat` opens."""
    home, id = three_turns
    shutil.copytree(home, tmp_path / "home")
    return id


def test_a_fork_goes_on_as_the_chat_would_have(open_chat: Open, first: str) -> None:
    chat = open_chat()
    for turn in (1, 2, 3):
        expected = finish(chat.ask("next?", chat=first, generation=SHORT)) if turn == 3 else None
        fork = chat.saved.fork(first, turn)
        done = finish(chat.ask("next?", chat=fork, generation=SHORT))
        assert done.stats.tokens_read < 40 and done.stats.note == ""
        if expected:
            assert done.answer == expected.answer
    texts = [m.content for m in chat.saved.messages(chat.saved.chats()[0].id)]
    assert texts[:2] == [m.content for m in chat.saved.messages(first)][:2]


def test_a_fork_at_an_early_turn_answers_as_that_turn_did(open_chat: Open, first: str) -> None:
    chat = open_chat()
    chat = open_chat()  # from the store, not from RAM
    fork = chat.saved.fork(first, 1)
    done = finish(chat.ask("and what then?", chat=fork, generation=SHORT))
    assert done.answer == chat.saved.messages(first)[3].content
    assert done.stats.tokens_read < 40 and done.stats.note == ""


def test_ten_forks_cost_under_a_hundredth(open_chat: Open, first: str, tmp_path: Path) -> None:
    chat = open_chat()
    chat.store.collect_garbage()
    blocks = chat.store.stats()["blocks"]
    chat = open_chat()
    before = _bytes(tmp_path / "home")
    started = time.perf_counter()
    forks = [chat.saved.fork(first, turn % 4) for turn in range(10)]
    elapsed_s = time.perf_counter() - started
    assert chat.store.stats()["blocks"] == blocks
    chat = open_chat()
    assert _bytes(tmp_path / "home") < before * 1.01, elapsed_s
    assert len(set(forks)) == 10


def _bytes(home: Path) -> int:
    return sum((home / name).stat().st_size for name in ("library.db", "kv.db"))


def test_deleting_the_parent_leaves_the_child_whole(open_chat: Open, first: str) -> None:
    chat = open_chat()
    fork, twin = chat.saved.fork(first), chat.saved.fork(first)
    expected = finish(chat.ask("next?", chat=twin, generation=SHORT))
    chat.saved.delete_chat(first)
    chat.saved.delete_chat(twin)
    chat.store.collect_garbage()
    chat = open_chat()
    done = finish(chat.ask("next?", chat=fork, generation=SHORT))
    assert done.answer == expected.answer and done.stats.note == ""
    assert done.stats.tokens_read == expected.stats.tokens_read < 40


def test_a_fork_from_just_read_reads_nothing(open_chat: Open, first: str) -> None:
    chat = open_chat()
    fork = chat.saved.fork(first, 0)
    done = finish(chat.ask("who is it?", chat=fork, generation=SHORT))
    assert done.answer == chat.saved.messages(first)[1].content and done.stats.tokens_read < 40
    assert chat.saved.chat(fork).title == "who is it?"


def test_a_fork_that_cannot_be_is_refused_by_value(open_chat: Open, first: str) -> None:
    chat = open_chat()
    with pytest.raises(InputError, match="turn -1"):
        chat.saved.fork(first, -1)
    with pytest.raises(NotFoundError, match="turn 9"):
        chat.saved.fork(first, 9)


def test_an_early_question_is_edited_without_reading_the_documents(open_chat: Open, first: str) -> None:
    chat = open_chat()
    fresh = finish(chat.ask("where?", chat=chat.saved.fork(first, 1), generation=SHORT))
    chat = open_chat()
    done = finish(chat.edit(first, 2, " where? ", generation=SHORT))
    assert done.answer == fresh.answer and done.stats.tokens_read == fresh.stats.tokens_read < 40
    texts = [m.content for m in chat.saved.messages(first)]
    assert texts[0] == "who is it?" and texts[2:] == ["where?", fresh.answer]
    chat = open_chat()
    assert finish(chat.ask("and?", chat=first, generation=SHORT)).stats.tokens_read < 40
    edited = finish(chat.edit(first, 1, "where?", generation=SHORT))
    assert edited.stats.tokens_read < 40 and len(chat.saved.messages(first)) == 2


def test_turns_stay_until_the_edited_one_is_answered(open_chat: Open, first: str) -> None:
    chat = open_chat()
    before = chat.saved.messages(first)
    events = chat.edit(first, 1, "a long question " * 20, generation=GenerationConfig(max_new_tokens=50))
    next(events)
    chat.jobs.stop()
    *_, done = events
    assert done.stats.stopped and not done.stats.saved and chat.saved.messages(first) == before
    assert finish(chat.ask("next?", chat=first, generation=SHORT)).stats.tokens_read < 40
    with pytest.raises(InputError, match="empty"):
        list(chat.edit(first, 1, "  "))
    with pytest.raises(NotFoundError, match="question 7"):
        list(chat.edit(first, 7, "x"))


def test_a_retry_that_is_stopped_or_left_keeps_the_old_answer(open_chat: Open, first: str) -> None:
    chat = open_chat()
    before = chat.saved.messages(first)
    for leave in (False, True):
        events = chat.retry(first, generation=GenerationConfig(max_new_tokens=50, temperature=1.0, seed=3))
        next(events)
        if leave:
            events.close()
        else:
            chat.jobs.stop()
            *_, done = events
            assert done.stats.stopped and not done.stats.saved and "stays" in done.stats.note
        assert chat.saved.messages(first) == before
    assert finish(chat.ask("next?", chat=first, generation=SHORT)).stats.tokens_read < 40


def test_another_version_goes_on_after_the_turns_that_both_share(open_chat: Open, first: str) -> None:
    chat = open_chat()
    whole = chat.saved.messages(first)
    fresh = finish(chat.ask("and then?", chat=chat.saved.fork(first), generation=SHORT))
    finish(chat.edit(first, 2, "another one?", generation=SHORT))
    (versions,) = chat.saved.versions(first).values()
    chat.saved.show_version(first, versions.turns[0])
    assert chat.saved.messages(first) == whole
    done = finish(chat.ask("and then?", chat=first, generation=SHORT))
    assert done.stats.saved and "another version" in done.stats.note
    assert len(chat.saved.messages(first)) == len(whole) + 2 and done.stats.tokens_read > fresh.stats.tokens_read
    assert "another one?" not in chat.transfers.export_chat(first)
    with pytest.raises(NotFoundError, match="version 7777"):
        chat.saved.show_version(first, 7777)


def test_a_retry_that_breaks_leaves_the_old_answer(open_chat: Open, first: str, monkeypatch) -> None:
    chat = open_chat()
    before = chat.saved.messages(first)
    with monkeypatch.context() as broken:
        broken.setattr(chat.store, "save_turn", lambda *_, **__: _raise(LecternError("no")))
        with pytest.raises(LecternError, match="no"):
            list(chat.retry(first, generation=SHORT))
    assert chat.saved.messages(first) == before
    again = finish(chat.retry(first, generation=SHORT))
    assert again.answer == before[-1].content and len(chat.saved.messages(first)) == 6


def _raise(error: Exception) -> None:
    raise error


def test_sizes_are_known_before_and_after_reading(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    before = chat.library.disk_space()
    assert document.tokens > 1000 and before.documents == {} and before.expected[document.id] > 100 * document.tokens
    list(chat.read(document.id))
    after = chat.library.disk_space()
    assert after.expected == {} and 0.5 < before.expected[document.id] / after.documents[document.id] < 2
    chat.library.pin(document.title)
    assert chat.library.disk_space().pinned == {document.id}
    chat.library.evict(document.id)
    assert chat.library.disk_space().used_bytes < after.used_bytes  # at once: the page shows it next
    chat.store.collect_garbage()
    assert chat.library.disk_space().documents == {} and chat.library.document(document.id).state == "new"
    done = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    assert done.stats.tokens_read > document.tokens


def test_what_the_disk_budget_takes_is_read_again(open_chat: Open, tmp_path: Path) -> None:
    chat = open_chat()
    first = chat.library.add_document(write(tmp_path, "first.txt"))
    list(chat.read(first.id))
    size = chat.library.disk_space().documents[first.id]
    second = chat.library.add_document(write(tmp_path, "second.txt"))
    chat = open_chat(disk_budget_gb=1.2 * size / 1e9)
    list(chat.read(second.id))
    assert any("made room on the disk" in note for note in chat.notes())
    gone = chat.library.document(first.id)
    assert (gone.state, gone.detail) == ("new", "its memory made room on the disk")
    assert chat.library.document(second.id).state == "read"
    done = finish(chat.ask("who?", documents=[first.id], generation=SHORT))
    assert done.answer is not None and chat.library.document(first.id).state == "read"
