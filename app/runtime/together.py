"""Many answers at once: one thread has the model at a time, and tokens that wait for it are run as one batch."""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.runtime.step import Rows
from app.runtime.windows import Windows

T, R = TypeVar("T"), TypeVar("R")
GATHERING_SHARE = 8  # of the time of a batch, for which the next one waits until all have come
QUESTIONS_S = 1.0  # for which a token waits for the questions of other answers
LOOK_S = 0.02
BEFORE_READING = 8  # times as long as a segment took, others go before the next one


class _Place(threading.Event):
    """Where one waits for the floor; set when it has it."""

    behind = False


class Floor:
    """A lock that is given in the order in which it is asked for. One thread may take it and another give it back.

    Those behind have it when nobody is before them, or when as much time has gone by as a share of theirs asks for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has: _Place | None = None
        self._since = 0.0
        self._asked: deque[_Place] = deque()
        self._behind: deque[_Place] = deque()
        self._due = 0.0  # when those behind may have it all the same
        self._first = 0  # jobs that go before those behind

    @property
    def taken(self) -> bool:
        return self._has is not None

    @property
    def behind(self) -> bool:
        """Whether one of those behind has it."""
        return self._has is not None and self._has.behind

    @property
    def jobs(self) -> int:
        """How many run that go before those behind."""
        return self._first

    @contextmanager
    def first(self) -> Iterator[None]:
        """While a job runs that goes before those behind, also where it does not ask at the moment."""
        with self._lock:
            self._first += 1
        try:
            yield
        finally:
            with self._lock:
                self._first -= 1
                self._next()

    def take(self, behind: bool = False) -> None:
        """Wait for it."""
        mine = _Place()
        mine.behind = behind
        with self._lock:
            (self._behind if behind else self._asked).append(mine)
            self._next()
        while not mine.wait(max(self._due - time.monotonic(), LOOK_S) if behind else None):
            with self._lock:
                self._next()

    def give(self) -> None:
        """Let the next have it."""
        with self._lock:
            assert self._has is not None
            if self._has.behind:
                now = time.monotonic()
                self._due = now + BEFORE_READING * (now - self._since)
            self._has = None
            self._next()

    def _next(self) -> None:
        """Let somebody have it, if nobody has; called with the lock held."""
        if self._has is not None:
            return
        due = bool(self._behind) and (not (self._asked or self._first) or time.monotonic() >= self._due)
        waits = self._behind if due else self._asked
        if waits:
            self._has, self._since = waits.popleft(), time.monotonic()
            self._has.set()

    def during(self, steps: Generator[T, Any, R], behind: bool = False) -> Generator[T, None, R]:
        """Run a generator with the floor; while its caller looks at what it yields, others have it."""
        self.take(behind)
        try:
            while True:
                try:
                    value = next(steps)
                except StopIteration as end:
                    return end.value
                self.give()
                try:
                    yield value
                finally:
                    self.take(behind)
        finally:
            steps.close()
            self.give()


class Together:
    """Runs the tokens of all answers that wait, one of each, as one batch: weights are read once for all of them.

    Attributes:
        batches, tokens: that were run since the start.
        answers: that are being given: so many tokens may come together.
    """

    def __init__(self, floor: Floor, model: Any) -> None:
        self.floor, self.model = floor, model
        self.batches = self.tokens = self.answers = 0
        self._took_s = 0.0  # the last batch
        self._patient_from = 0.0  # when questions may be waited for again
        self._changed = threading.Condition()
        self._rows: Rows | None = None  # when they are needed: weights may be kept otherwise meanwhile
        self._waiting: list[tuple[int, Windows, Future[Tensor]]] = []

    def step(self, token: int, windows: Windows) -> Tensor:
        """The logits [V] after a token that goes on with what its windows chose.

        Whoever has the floor gives it, so that other answers can add theirs; the one who comes first runs them all.
        """
        mine: Future[Tensor] = Future()
        with self._changed:
            self._waiting.append((token, windows, mine))
            self._changed.notify_all()
        if self.floor.taken:
            behind = self.floor.behind
            self.floor.give()
            self._gather(mine)
            self.floor.take(behind)
        if not mine.done():
            self._run()
        return mine.result()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While an answer is given; called with the floor."""
        self.answers += 1
        try:
            yield
        finally:
            self.answers -= 1
            self._tell()

    def _gather(self, mine: "Future[Tensor]") -> None:
        """Wait until all answers have a token here, or those that have none took their time.

        Questions go before the next tokens of answers that have begun, for half of the time at most.
        """
        began = time.monotonic()
        patient, waited = began >= self._patient_from, False
        with self._changed:
            while not mine.done():
                asked = patient and self.floor.jobs > self.answers
                left_s = began + (QUESTIONS_S if asked else self._took_s / GATHERING_SHARE) - time.monotonic()
                if left_s <= 0 or (len(self._waiting) >= self.answers and not asked):
                    break
                waited |= asked
                self._changed.wait(min(left_s, LOOK_S))
        if waited:
            now = time.monotonic()
            self._patient_from = 2 * now - began

    @property
    def rows(self) -> Rows:
        self._rows = self._rows or Rows(self.model)
        return self._rows

    @torch.no_grad()
    def _run(self) -> None:
        with self._changed:
            batch, self._waiting = self._waiting, []
        began = time.monotonic()
        tokens, windows, promised = zip(*batch, strict=True)
        try:
            with ExitStack() as stack:
                for token, its in zip(tokens, windows, strict=True):
                    stack.enter_context(its.stepping(token))
                hidden = self.rows(tokens, windows)
            logits = self.rows.logits(hidden)
        except BaseException as error:
            for future in promised:
                future.set_exception(error)
            self._tell()
            return
        self._took_s = time.monotonic() - began
        self.batches, self.tokens = self.batches + 1, self.tokens + len(batch)
        for future, row in zip(promised, logits, strict=True):
            future.set_result(row)
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
