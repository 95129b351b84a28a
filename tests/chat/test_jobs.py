"""Who has the model."""

import threading

from app.chat.jobs import Turns


def test_one_at_a_time() -> None:
    turns = Turns()
    assert turns.take() and not turns.take() and not turns.take(behind=True)
    turns.give_back()
    assert turns.take(behind=True) and not turns.take(behind=True)


def test_a_job_behind_is_asked_to_end_and_waited_for() -> None:
    turns, asked, after = Turns(), threading.Event(), []

    def behind() -> None:
        asked.wait(20)
        after.append(turns.wanted)
        turns.give_back()

    assert turns.take(behind=True, end=asked.set)
    thread = threading.Thread(target=behind)
    thread.start()
    assert turns.take()
    thread.join(20)
    assert after == [1] and turns.wanted == 0 and not turns.take(behind=True)


def test_the_end_of_another_job_may_be_waited_for() -> None:
    turns = Turns()
    assert turns.take() and not turns.take(wait_s=0.01)
    threading.Timer(0.01, turns.give_back).start()
    assert turns.take(wait_s=20)
