"""Who has the model: answers beside each other, any other job alone. One that runs behind the others gives way."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from app.errors import InUseError

GIVE_WAY_S = 60.0  # a segment takes a second or two
MOST_BESIDE = 8  # answers at once
Kind = Literal["alone", "beside", "behind"]


class Turns:
    """A lock with three sorts of holders.

    Attributes:
        wanted: how many wait for a job behind to end.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._changed = threading.Condition()
        self._kind: Kind | None = None  # None: nobody has it
        self._holders = 0
        self._end: Callable[[], None] = lambda: None  # ends the job behind that has it

    def take(
        self, behind: bool = False, *, beside: bool = False, end: Callable[[], None] = lambda: None,
        wait_s: float = 0.0,
    ) -> bool:  # fmt: skip
        """Take the model; False when it cannot be had.

        Args:
            behind: the job gives way to others, and does not begin while one waits.
            beside: others of its sort may have it too, MOST_BESIDE of them.
            end: how a job behind is told to end, when another wants the model; its end is waited for.
            wait_s: how long the end of another job is waited for.
        """
        kind: Kind = "behind" if behind else "beside" if beside else "alone"
        with self._changed:
            if behind:
                if self._kind is not None or self.wanted:
                    return False
            elif not self._wait(kind, wait_s):
                return False
            self._kind, self._holders, self._end = kind, self._holders + 1, end
            return True

    def _wait(self, kind: Kind, wait_s: float) -> bool:
        """Wait until the model can be had, called by one that goes before those behind."""
        self.wanted += 1
        try:
            if self._kind == "behind":
                self._end()
                self._changed.wait_for(lambda: self._kind != "behind", max(wait_s, GIVE_WAY_S))
            return self._changed.wait_for(lambda: self._open_to(kind), wait_s)
        finally:
            self.wanted -= 1

    def _open_to(self, kind: Kind) -> bool:
        return self._kind is None or kind == self._kind == "beside" and self._holders < MOST_BESIDE

    def give_back(self) -> None:
        with self._changed:
            self._holders -= 1
            if not self._holders:
                self._kind = None
            self._changed.notify_all()


@dataclass(frozen=True)
class Job:
    """One claim on the model: since when, and whether it shall end."""

    cancel: threading.Event
    started: float

    @property
    def cancelled(self) -> bool:
        return self.cancel.is_set()


class Jobs:
    """The jobs of one data folder. Each claims the model, and `stop` ends them.

    Attributes:
        stops: how often `stop` was called.
    """

    def __init__(self) -> None:
        self.stops = 0
        self._turns = Turns()
        self._running: dict[threading.Event, str] = {}  # what ends each that runs, and what it does
        self._answered: set[str] = set()  # chats in which an answer is given
        self._closed = False

    def share(self, other: "Jobs") -> None:
        """Wait for the same turns as the jobs of another data folder over the same model."""
        self._turns = other._turns

    @contextmanager
    def claim(
        self, what: str, since: int | None = None, *, behind: bool = False, beside: bool = False
    ) -> Iterator[Job]:
        """Have the model for one job; `stop` sets its `cancel`.

        Args:
            since: `stops` when the job was asked for: a stop that came while it waited counts.
            behind: the job gives way to others, which wait until it is cancelled; it never waits itself.
            beside: others of this sort may run too; whatever they share they use with `Engine.floor`.

        Raises:
            InUseError: something else runs.
        """
        cancel = threading.Event()
        if self._closed or not self._turns.take(behind, beside=beside, end=cancel.set):
            raise InUseError(f"busy: {self.busy() or 'other work'}; wait until it ends, or stop it")
        if since is not None and self.stops != since:
            cancel.set()
        self._running[cancel] = what
        try:
            yield Job(cancel, time.monotonic())
        finally:
            del self._running[cancel]
            self._turns.give_back()

    @contextmanager
    def answering(self, chat: str) -> Iterator[None]:
        """One answer at a time is given in a chat.

        Raises:
            InUseError: another is given.
        """
        if chat in self._answered:
            raise InUseError("busy: answering; wait until it ends, or stop it")
        self._answered.add(chat)
        try:
            yield
        finally:
            self._answered.discard(chat)

    def stop(self) -> None:
        """End the running reading or answer within one segment, and those that wait; what is done is kept."""
        self.stops += 1
        for cancel in tuple(self._running):
            cancel.set()

    def busy(self) -> str | None:
        """What is running now."""
        return next(iter(tuple(self._running.values())), None)

    def close(self) -> bool:
        """Stop what runs and let nothing begin any more; False where that was done before."""
        before, self._closed = self._closed, True
        if not before:
            self.stop()
        return not before

    @contextmanager
    def ended(self, wait_s: float) -> Iterator[None]:
        """Wait for the end of what runs, so long and no longer; others over the same model wait for this block."""
        waited = self._turns.take(wait_s=wait_s)
        try:
            yield
        finally:
            if waited:
                self._turns.give_back()
