"""Answers beside each other: the same text as one by one, each in its chat, and one that ends frees the others."""

import threading
import time
from contextlib import closing

import pytest

from app.errors import InUseError
from app.memory.config import GenerationConfig
from app.records import Delta
from app.runtime import together
from app.runtime.together import Floor
from tests.chat.opened import finish, open_chat, write  # noqa: F401  a fixture

LONG = GenerationConfig(max_new_tokens=24)
WAIT_S = 60


@pytest.fixture
def chat(open_chat):  # noqa: F811
    made = open_chat()
    made.model.engine().reselect_every = 8  # tokens that go on with a choice
    return made


def at_once(work, arguments):
    """Run work with each argument in a thread of its own; returns what each gave."""
    found, threads = [None] * len(arguments), []
    gate = threading.Barrier(len(arguments))

    def one(place, argument):
        gate.wait(WAIT_S)
        found[place] = work(argument)

    for pair in enumerate(arguments):
        threads.append(threading.Thread(target=one, args=pair))
        threads[-1].start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    return found


def test_eight_answers_at_once_are_those_that_come_one_by_one(chat, tmp_path):
    books = [chat.library.add_document(write(tmp_path, f"book{n}.txt", 60)).id for n in range(3)]
    asked = [([], "Who?"), ([books[0]], "Which word?"), ([books[1]], "And here?"), (books[:2], "Both?")] * 2

    def answer(about):
        documents, question = about
        return finish(chat.ask(question, documents=documents, generation=LONG))

    alone = [answer(about).answer for about in asked]
    together = chat.model.engine().together
    before, batches = together.tokens, together.batches
    answers = at_once(answer, asked)
    assert [done.answer for done in answers] == alone
    assert len({done.chat for done in answers}) == len(asked)
    for (_, question), done in zip(asked, answers, strict=True):
        assert [m.content for m in chat.saved.messages(done.chat)] == [question, done.answer]
    assert together.batches - batches < together.tokens - before  # some of them were run in one batch
    # and each goes on from what it left in memory
    again = at_once(lambda done: finish(chat.ask("And then?", chat=done.chat, generation=LONG)), answers)
    assert all(a.stats.tokens_reused > 0 and "read again" not in a.stats.note for a in again)


def test_one_that_is_closed_leaves_the_others_alone(chat):
    with closing(chat.ask("Who?", generation=LONG)) as left:
        assert isinstance(next(left), Delta)
        other = finish(chat.ask("Who?", generation=LONG))
    assert other.answer and not other.stats.stopped and chat.jobs.busy() is None
    assert finish(chat.ask("Who?", generation=LONG)).answer == other.answer


def test_other_jobs_wait_for_answers_and_a_chat_has_one_answer_at_a_time(chat, tmp_path):
    book = chat.library.add_document(write(tmp_path)).id
    done = finish(chat.ask("Who?", generation=LONG))
    with closing(chat.ask("And?", chat=done.chat, generation=LONG)) as steps:
        next(steps)
        with pytest.raises(InUseError, match="busy: answering"):
            chat.library.delete_document(book)
        with pytest.raises(InUseError, match="busy: answering"):
            list(chat.ask("Now?", chat=done.chat, generation=LONG))
        chat.jobs.stop()
        assert finish(steps).stats.stopped
    chat.library.delete_document(book)


def line_up(floor, *behind):
    """Threads that wait for the floor, in this order, and what they were called when they had it."""
    had, threads = [], []
    for number, kind in enumerate(behind):

        def work(number=number, kind=kind):
            floor.take(kind)
            had.append(number)
            floor.give()

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        while len(floor._asked) + len(floor._behind) < number + 1:
            time.sleep(0.001)
    return had, threads


def test_the_floor_is_had_in_the_order_of_asking():
    floor = Floor()
    floor.take()
    had, threads = line_up(floor, False, False, False, False)
    floor.give()
    for thread in threads:
        thread.join(WAIT_S)
    assert had == [0, 1, 2, 3] and not floor.taken


def test_those_behind_have_the_floor_last_or_when_their_share_is_due(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(together.time, "monotonic", lambda: now[0])
    floor = Floor()
    floor.take(behind=True)
    now[0] += 1  # a segment of a second
    had, threads = line_up(floor, True, False, False)
    floor.give()
    for thread in threads:
        thread.join(WAIT_S)
    assert had == [1, 2, 0]
    floor.take()
    now[0] += together.BEFORE_READING  # after so long it is their turn
    had, threads = line_up(floor, False, True)
    floor.give()
    for thread in threads:
        thread.join(WAIT_S)
    assert had == [1, 0] and not floor.taken


def test_those_behind_wait_also_while_an_answer_does_not_ask(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(together.time, "monotonic", lambda: now[0])
    floor = Floor()
    with floor.first():
        floor.take(behind=True)  # nothing was had yet: it is due
        now[0] += 1
        had, threads = line_up(floor, True)
        floor.give()
        assert not floor.taken and had == []
    for thread in threads:
        thread.join(WAIT_S)
    assert had == [0]
