"""A thread that applies queued writes in order, many to a transaction."""

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from sqlite_utils import Database

from app.errors import StoreError

Operation: TypeAlias = Callable[[Database], None]

QUEUED_BYTES = 64 << 20
BATCH_BYTES = 16 << 20


class Writer:
    """One thread and a bounded queue.

    A batch that fails is dropped as a whole; the next `raise_failure` or `flush` says so, and later work is tried.
    """

    def __init__(self, apply: Callable[[list[Operation]], None], name: str) -> None:
        """Start the thread; `apply` runs a batch in one transaction."""
        self._apply = apply
        self._queue: deque[tuple[Operation, int]] = deque()
        self._queued_bytes = 0
        self._submitted = 0
        self._finished = 0
        self._failure: Exception | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, operation: Operation, size_bytes: int = 0) -> None:
        """Queue a write. One that has a size waits while QUEUED_BYTES or more are queued.

        Raises:
            StoreError: the writer is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: not size_bytes or self._queued_bytes < QUEUED_BYTES or self._closing)
            if self._closing:
                raise StoreError("the store is closed; start Lectern again")
            self._queue.append((operation, size_bytes))
            self._queued_bytes += size_bytes
            self._submitted += 1
            self._changed.notify_all()

    def raise_failure(self) -> None:
        """Raise what went wrong since the last call, if anything did."""
        with self._changed:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def flush(self) -> None:
        """Wait until all that was queued before is committed; raises like `raise_failure`."""
        with self._changed:
            target = self._submitted
            self._changed.wait_for(lambda: self._finished >= target)
        self.raise_failure()

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be written."""
        with self._changed:
            return self._queued_bytes

    @property
    def submitted(self) -> int:
        """How many writes were queued so far."""
        with self._changed:
            return self._submitted

    def wait_for(self, submitted: int) -> None:
        """Wait until the first so many writes are committed, or have failed, which a later call says."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished >= submitted)

    def close(self) -> None:
        """Finish the queue and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            failure = None
            try:
                self._apply([operation for operation, _ in batch])
            except Exception as error:  # Kept for the caller: a dead thread would leave every later put waiting.
                failure = error
            with self._changed:
                self._failure = failure or self._failure
                self._finished += len(batch)
                self._queued_bytes -= sum(size for _, size in batch)
                self._changed.notify_all()

    def _next_batch(self) -> list[tuple[Operation, int]]:
        """Wait for work; empty when closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            batch: list[tuple[Operation, int]] = []
            batch_bytes = 0
            while self._queue and batch_bytes < BATCH_BYTES:
                batch.append(self._queue.popleft())
                batch_bytes += batch[-1][1]
            return batch
