"""Adding runs in a thread that is watched, and ends with a reason whatever it ends with."""

import threading

import pytest

from app.errors import CancelledError, InputError
from app.ingest.stream import Step, in_steps


class Panic(BaseException):
    """As native libraries raise it: no Exception."""


def finish(steps):
    told = []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as end:
            return told, end.value


def test_steps_are_told_and_the_result_returned():
    may_end = threading.Event()

    def work(watch):
        watch.progress("counting")(1, 4)
        may_end.wait()
        return "done"

    steps = in_steps(work)
    assert next(steps).words == "counting, 25%"
    may_end.set()
    assert finish(steps) == ([], "done")
    assert Step("opening it").words == "opening it"


def test_a_cancel_and_a_closed_generator_end_the_work():
    ended = []

    def work(watch):
        while not watch.cancelled():
            pass
        ended.append(True)
        raise CancelledError("cancelled")

    with pytest.raises(CancelledError):
        finish(in_steps(work, lambda: True))
    steps = in_steps(work)
    next(steps)
    steps.close()
    assert len(ended) == 2


def test_work_that_does_not_ask_is_left_behind(monkeypatch):
    monkeypatch.setattr("app.ingest.stream.WAIT_S", 0.01)
    may_end = threading.Event()
    steps = in_steps(lambda watch: may_end.wait())
    next(steps)
    steps.close()
    assert not may_end.is_set()
    may_end.set()


@pytest.mark.parametrize(
    ("error", "message"),
    [(Panic("no Exception"), "adding it ended inside a library (Panic: no Exception)"), (MemoryError(), "more memory")],
)
def test_what_nobody_would_catch_is_a_message(error, message):
    def work(watch):
        raise error

    with pytest.raises(InputError) as told:
        finish(in_steps(work))
    assert message in str(told.value) and told.value.__cause__ is error


def test_other_errors_come_out_as_they_are():
    def work(watch):
        raise InputError("a.txt: empty")

    with pytest.raises(InputError, match="^a.txt: empty$"):
        finish(in_steps(work))
