"""Who has the model."""

import threading

from app.chat.jobs import MOST_BESIDE, Turns


def test_one_alone_keeps_all_others_out() -> None:
    turns = Turns()
    assert turns.take() and not any(turns.take(kind) for kind in ("alone", "beside", "behind"))
    turns.give_back()
    assert turns.take("behind") and not turns.take("behind")


def test_answers_go_on_beside_each_other_and_beside_a_reading() -> None:
    turns, asked = Turns(), threading.Event()
    assert turns.take("behind", end=asked.set)
    assert all(turns.take("beside") for _ in range(MOST_BESIDE)) and not turns.take("beside")
    assert not turns.take() and not asked.is_set()  # the reading does not end for one that cannot be
    turns.give_back("behind")
    assert turns.take("behind") and not turns.take()
    turns.give_back("beside")
    assert turns.take("beside")


def test_a_job_behind_is_asked_to_end_and_waited_for() -> None:
    turns, asked, after = Turns(), threading.Event(), []

    def behind() -> None:
        asked.wait(20)
        after.append(turns.wanted)
        turns.give_back("behind")

    assert turns.take("behind", end=asked.set)
    thread = threading.Thread(target=behind)
    thread.start()
    assert turns.take()
    thread.join(20)
    assert after == [1] and turns.wanted == 0 and not turns.take("behind")


def test_the_end_of_another_job_may_be_waited_for() -> None:
    turns = Turns()
    assert turns.take() and not turns.take(wait_s=0.01)
    threading.Timer(0.01, turns.give_back).start()
    assert turns.take(wait_s=20)


def test_readings_have_the_model_in_the_order_of_asking() -> None:
    turns, had = Turns(), []
    assert turns.take("behind") and not turns.waits_behind

    def read(name: str) -> None:
        assert turns.take("behind", wait_s=20)
        had.append(name)
        turns.give_back("behind")

    threads = []
    for number, name in enumerate("abc", 1):
        threads.append(threading.Thread(target=read, args=(name,)))
        threads[-1].start()
        while len(turns._line) < number:
            pass
    assert turns.waits_behind
    turns.give_back("behind")
    for thread in threads:
        thread.join(20)
    assert had == ["a", "b", "c"] and not turns.waits_behind
