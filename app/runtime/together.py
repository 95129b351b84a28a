"""Many answers at once: one thread has the model at a time, and tokens that wait for it are run as one batch."""

import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.runtime.step import Rows
from app.runtime.windows import Windows

T, R = TypeVar("T"), TypeVar("R")


class Floor:
    """A lock that is given in the order in which it is asked for. One thread may take it and another give it back."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked: deque[object] = deque()  # the first has it

    @property
    def taken(self) -> bool:
        return bool(self._asked)

    def take(self) -> None:
        """Wait for it."""
        mine = object()
        with self._changed:
            self._asked.append(mine)
            self._changed.wait_for(lambda: self._asked[0] is mine)

    def give(self) -> None:
        """Let the next have it."""
        with self._changed:
            self._asked.popleft()
            self._changed.notify_all()

    def during(self, steps: Generator[T, Any, R]) -> Generator[T, None, R]:
        """Run a generator with the floor; while its caller looks at what it yields, others have it."""
        self.take()
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
                    self.take()
        finally:
            steps.close()
            self.give()


class Together:
    """Runs the tokens of all answers that wait, one of each, as one batch: weights are read once for all of them.

    Attributes:
        batches, tokens: that were run since the start.
    """

    def __init__(self, floor: Floor, model: Any) -> None:
        self.floor, self.model = floor, model
        self.batches = self.tokens = 0
        self._rows: Rows | None = None  # when they are needed: weights may be kept otherwise meanwhile
        self._waiting: list[tuple[int, Windows, Future[Tensor]]] = []

    def step(self, token: int, windows: Windows) -> Tensor:
        """The logits [V] after a token that goes on with what its windows chose.

        Whoever has the floor gives it, so that other answers can add theirs; the one who comes first runs them all.
        """
        mine: Future[Tensor] = Future()
        self._waiting.append((token, windows, mine))
        if self.floor.taken:
            self.floor.give()
            self.floor.take()
        if not mine.done():
            self._run()
        return mine.result()

    @property
    def rows(self) -> Rows:
        self._rows = self._rows or Rows(self.model)
        return self._rows

    @torch.no_grad()
    def _run(self) -> None:
        batch, self._waiting = self._waiting, []
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
            return
        self.batches, self.tokens = self.batches + 1, self.tokens + len(batch)
        for future, row in zip(promised, logits, strict=True):
            future.set_result(row)
