"""Readings behind answers: both go on, an answer first; those of two libraries take turns."""

import threading
import time
from contextlib import closing

import pytest

from app.chat import document_chat
from app.errors import CancelledError, InUseError
from app.memory.config import GenerationConfig
from app.records import Delta
from tests.chat.opened import finish, open_chat, write  # noqa: F401  a fixture

LONG = GenerationConfig(max_new_tokens=24)
WAIT_S = 300


@pytest.fixture
def chat(open_chat):  # noqa: F811
    made = open_chat()
    engine = made.model.engine()
    engine.reselect_every = 8
    engine.segment_tokens = engine.most_segment_tokens = engine.shape.attention.group_tokens
    return made


def test_a_reading_and_an_answer_go_on_beside_each_other(chat, tmp_path):
    alone = finish(chat.ask("Who?", generation=LONG)).answer
    book = chat.library.add_document(write(tmp_path, words=150)).id
    with closing(chat.read(book, behind=True)) as reading:
        first = next(reading)
        with closing(chat.ask("Who?", generation=LONG)) as answer:
            assert isinstance(next(answer), Delta)
            second = next(reading)  # while the answer is given
            assert first.tokens_done < second.tokens_done < second.tokens_total
            assert finish(answer).answer == alone
        assert [*reading][-1].tokens_done == second.tokens_total
    assert chat.library.document(book).state == "read"
    apart = chat.library.add_document(write(tmp_path, "apart.txt", 150)).id
    list(chat.read(apart))
    answers = [finish(chat.ask("Which word?", documents=[id], generation=LONG)) for id in (book, apart)]
    assert all(answer.stats.tokens_reused >= chat.library.document(book).tokens for answer in answers)


def test_while_a_segment_is_read_an_answer_waits_for_no_more_than_that(chat, tmp_path):
    book, floor = chat.library.add_document(write(tmp_path, words=150)).id, chat.model.engine().floor
    had = []

    def read():
        for event in chat.read(book, behind=True):
            had.append(event.tokens_done)

    floor.take()  # so that both ask before one of them has it
    reading, asking = threading.Thread(target=read), threading.Thread(
        target=lambda: had.append(next(iter(chat.ask("Who?", generation=GenerationConfig(max_new_tokens=1)))))
    )  # fmt: skip
    reading.start()
    while not floor._behind:
        time.sleep(0.001)
    asking.start()
    while not floor._asked:
        time.sleep(0.001)
    floor._due = time.monotonic() + 1000  # nothing is due to those behind
    floor.give()
    for thread in (asking, reading):
        thread.join(WAIT_S)
    assert isinstance(had[0], Delta) and len(had) > 3


def test_readings_of_two_libraries_take_turns(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(document_chat, "READING_TURN_S", 0.0)
    other = chat.beside(tmp_path / "other")
    order = []

    def read(one, name):
        book = one.library.add_document(write(tmp_path, f"{name}.txt", 40)).id
        gate.wait(WAIT_S)
        while one.library.document(book).state != "read":
            try:
                for _ in one.read(book, behind=True):
                    order.append(name)
            except (CancelledError, InUseError):
                pass

    gate = threading.Barrier(2)
    threads = [threading.Thread(target=read, args=pair) for pair in ((chat, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    changes = sum(one != next_one for one, next_one in zip(order, order[1:], strict=False))
    assert changes > 2 and {info.state for one in (chat, other) for info in one.library.documents()} == {"read"}
    other.close()


def test_a_chat_over_the_text_that_is_read_comes_before_its_reading(chat, tmp_path):
    book = chat.library.add_document(write(tmp_path, words=150)).id
    reading = chat.read(book, behind=True)
    next(reading)
    done = []
    asking = threading.Thread(target=lambda: done.append(finish(chat.ask("Which?", documents=[book], generation=LONG))))
    asking.start()
    with pytest.raises(CancelledError):
        while True:
            next(reading)
    asking.join(WAIT_S)
    assert done[0].stats.tokens_read > 0 and chat.library.document(book).state == "read"
    events = [*chat.read(book, behind=True)]
    assert events[-1].reused == events[-1].tokens_total  # nothing twice
