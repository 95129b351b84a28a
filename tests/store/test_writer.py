"""The writer thread: order, back pressure, failures that surface once."""

import threading

import pytest
from sqlite_utils import Database

from app.errors import StoreError
from app.store import writer as writer_module
from app.store.writer import Operation, Writer


def run_all(operations: list[Operation]) -> None:
    for operation in operations:
        operation(Database(memory=True))


def test_operations_run_in_order_and_flush_waits_for_them() -> None:
    done: list[int] = []
    writer = Writer(run_all, "test")
    for number in range(100):
        writer.submit(lambda db, number=number: done.append(number))
    writer.flush()
    assert done == list(range(100))
    writer.close()


def test_close_finishes_what_was_queued_and_refuses_more() -> None:
    done: list[int] = []
    started = threading.Event()
    writer = Writer(run_all, "test")
    writer.submit(lambda db: started.wait(10) and None)
    writer.submit(lambda db: done.append(1))
    started.set()
    writer.close()
    assert done == [1]
    with pytest.raises(StoreError, match="closed"):
        writer.submit(lambda db: None)
    writer.flush()


def test_a_failure_surfaces_once_and_later_work_runs() -> None:
    def fail(db: Database) -> None:
        raise StoreError("disk full")

    done: list[int] = []
    writer = Writer(run_all, "test")
    writer.submit(fail)
    with pytest.raises(StoreError, match="disk full"):
        writer.flush()
    writer.submit(lambda db: done.append(1))
    writer.flush()
    writer.raise_failure()
    assert done == [1]
    writer.close()


def test_a_full_queue_holds_the_producer_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "QUEUED_BYTES", 10)
    gate = threading.Event()
    passed = threading.Event()
    writer = Writer(run_all, "test")
    writer.submit(lambda db: gate.wait(10) and None, 10)

    def produce() -> None:
        writer.submit(lambda db: None, 10)
        passed.set()

    thread = threading.Thread(target=produce)
    thread.start()
    assert not passed.wait(0.1)
    gate.set()
    assert passed.wait(10)
    thread.join()
    writer.close()
