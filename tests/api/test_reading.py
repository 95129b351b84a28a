"""The queue of documents, over a real store and a tiny model, and over a chat without one."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.api.reading import KEPT, BackgroundReading
from app.memory.config import GenerationConfig
from app.records import Done
from tests.chat.opened import open_chat, write  # noqa: F401  a fixture
from tests.fake_chat import FakeDocumentChat

LONG_S = 20


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


@pytest.fixture
def fake(tmp_path: Path) -> FakeDocumentChat:
    return FakeDocumentChat(tmp_path / "home", pace_s=0.001)


@pytest.fixture
def queue(fake: FakeDocumentChat):
    made = BackgroundReading(fake)
    yield made
    made.close()


def three(fake: FakeDocumentChat, folder: Path) -> list[str]:
    return [fake.library.add_document(write(folder, f"{name}.txt")).id for name in ("one", "two", "three")]


def test_documents_are_read_in_order_and_counted(fake, queue, tmp_path):
    first, second, third = three(fake, tmp_path)
    queue.pause()
    for id in (first, second, third):
        queue.add(id)
    queue.add(third, first=True)
    assert queue.documents() == (third, first, second)
    seen = []
    queue.go_on()
    while (now := queue.queued()).documents:
        seen.append((now.documents[0].id, now.number, now.of))
        time.sleep(0.001)
    assert list(dict.fromkeys(seen)) == [(third, 1, 3), (first, 2, 3), (second, 3, 3)]
    assert queue.queued().finished == 3 and {info.state for info in fake.library.documents()} == {"read"}


def test_cancel_ends_the_one_that_is_read_and_the_next_goes_on(fake, queue, tmp_path):
    fake.pace_s = 0.02
    first, second, _ = three(fake, tmp_path)
    queue.add(first)
    queue.add(second)
    until(lambda: fake.library.document(first).state == "reading")
    queue.forget(first)
    until(lambda: fake.library.document(second).state == "read")
    assert fake.library.document(first).state == "new" and "stopped at" in fake.library.document(first).detail


def test_a_pause_holds_and_stop_does_not_empty_the_queue(fake, queue, tmp_path):
    fake.pace_s = 0.01
    first, *_ = three(fake, tmp_path)
    queue.add(first)
    until(lambda: fake.library.document(first).state == "reading")
    queue.pause()
    until(lambda: fake.library.document(first).state == "new")
    assert queue.documents() == (first,) and queue.queued().paused
    queue.go_on()
    until(lambda: fake.library.document(first).state == "reading")
    fake.jobs.stop()  # of a question
    until(lambda: fake.library.document(first).state == "read")


def test_the_list_is_taken_up_after_a_restart(fake, tmp_path):
    first, second, third = three(fake, tmp_path)
    list(fake.read(third))
    before = BackgroundReading(fake)
    before.pause()
    for id in (first, second, third):
        before.add(id)
    before.close()
    again = BackgroundReading(fake)
    again.take_up()
    assert again.documents() == (first, second) and again.paused
    again.go_on()
    until(lambda: not again.documents())
    again.close()
    assert json.loads((fake.settings.folder / KEPT).read_text()) == {"documents": [], "paused": False}


@pytest.mark.parametrize("kept", ["", "[]", '{"documents": 3, "paused": 1}', "\0"])
def test_a_list_that_is_none_is_left(fake, queue, kept):
    (fake.settings.folder / KEPT).write_text(kept)
    queue.take_up()
    assert queue.documents() == ()


def test_what_cannot_be_read_is_told_and_the_next_is_read(fake, queue, tmp_path, monkeypatch):
    first, second, _ = three(fake, tmp_path)
    read = fake.read

    def broken(id, policy="", *, behind=False):
        if id == first:
            raise OSError("gone wrong")
        return read(id, policy, behind=behind)

    monkeypatch.setattr(fake, "read", broken)
    queue.add(first)
    queue.add(second)
    until(lambda: fake.library.document(second).state == "read")
    assert [(id, title) for id, title, _ in queue.queued().problems] == [(first, "one")]
    queue.forget(first)
    assert queue.queued().problems == ()


def test_without_a_model_the_queue_waits(fake, queue, tmp_path):
    from tests.fake_chat import model_state

    first, second, _ = three(fake, tmp_path)
    fake.state = model_state(state="failed", detail="no weights")
    queue.add(first)
    queue.add(second)
    until(lambda: queue.paused)
    assert queue.documents() == (first, second)


# Over a real store and model


@pytest.fixture
def chat(open_chat):  # noqa: F811
    return open_chat()


def test_a_question_comes_before_reading_and_counts_what_is_read(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(chat.model.engine(), "most_segment_tokens", 64)
    monkeypatch.setattr(chat.model.engine(), "segment_tokens", 64)
    book = chat.library.add_document(write(tmp_path, words=150)).id
    steps = chat.read(book, behind=True)
    for _ in range(3):  # some of it is stored now
        next(steps)
    claimed = threading.Event()
    done: list[Done] = []

    def ask() -> None:
        claimed.set()
        *_, last = chat.ask("Which?", documents=[book], generation=GenerationConfig(max_new_tokens=4), so_far=[book])
        done.append(last)

    asking = threading.Thread(target=ask)
    asking.start()
    claimed.wait()
    with pytest.raises(Exception, match="stopped after"):  # it gives way
        for _ in steps:
            pass
    asking.join(LONG_S)
    note = done[0].stats.note
    assert "answered from the first" in note and "% of book" in note
    assert (
        0 < done[0].stats.tokens_reused < chat.library.document(book).tokens
        and chat.library.document(book).state == "new"
    )
    list(chat.read(book, behind=True))
    *_, last = chat.ask("And now?", chat=done[0].chat, generation=GenerationConfig(max_new_tokens=4), so_far=[book])
    assert "answered from the first" not in last.stats.note and chat.library.document(book).state == "read"


def test_reading_behind_goes_on_where_it_gave_way(chat, tmp_path):
    queue = BackgroundReading(chat)
    book = chat.library.add_document(write(tmp_path, words=100)).id
    queue.add(book)
    for _ in range(3):
        list(chat.ask("Who?", generation=GenerationConfig(max_new_tokens=2)))
    until(lambda: chat.library.document(book).state == "read" and not queue.documents())
    queue.close()
    assert queue.problems == {}
