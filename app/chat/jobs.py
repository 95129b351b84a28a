"""Who has the model: answers beside each other, a reading behind them, any other job alone."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from app.errors import CancelledError, InUseError

GIVE_WAY_S = 60.0  # a segment takes a second or two
MOST_BESIDE = 8  # answers at once
BEHIND_WAIT_S = 1.0  # a reading waits for another one, then looks whether it is wanted still
LOOK_S = 0.1
Kind = Literal["alone", "beside", "behind"]


class Turns:
    """A lock with three sorts of holders.

    Attributes:
        wanted: how many wait for a job behind to end.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._changed = threading.Condition()
        self._alone = False
        self._beside = 0
        self._behind = False
        self._end: Callable[[], None] = lambda: None  # ends the job behind that has it
        self._line: deque[object] = deque()  # jobs behind that wait for one behind to end

    @property
    def waits_behind(self) -> bool:
        """Whether another job behind waits for the one that has the model."""
        return bool(self._line)

    def take(self, kind: Kind = "alone", *, end: Callable[[], None] = lambda: None, wait_s: float = 0.0) -> bool:
        """Take the model; False when it cannot be had.

        Args:
            kind: `beside`, MOST_BESIDE of them, go on while one `behind` does; that ends for one that wants it `alone`,
                and none begins while one waits.
            end: how a job behind is told to end; its end is waited for.
            wait_s: how long the end of another job is waited for. Those behind have it in the order of asking.
        """
        with self._changed:
            if not (self._wait_behind(wait_s) if kind == "behind" else self._wait(kind, wait_s)):
                return False
            if kind == "behind":
                self._behind, self._end = True, end
            self._beside += kind == "beside"
            self._alone |= kind == "alone"
            return True

    def _wait_behind(self, wait_s: float) -> bool:
        ticket = object()
        self._line.append(ticket)
        try:
            return self._changed.wait_for(lambda: self._line[0] is ticket and self._open_to("behind"), wait_s)
        finally:
            self._line.remove(ticket)
            self._changed.notify_all()

    def _wait(self, kind: Kind, wait_s: float) -> bool:
        """Wait until the model can be had, called by one that goes before those behind."""
        if kind == "beside":
            return self._changed.wait_for(lambda: self._open_to(kind), wait_s)
        if not self._changed.wait_for(lambda: not self._alone and not self._beside, wait_s):
            return False
        self.wanted += 1
        try:
            if self._behind:
                self._end()
                self._changed.wait_for(lambda: not self._behind, max(wait_s, GIVE_WAY_S))
            return self._changed.wait_for(lambda: self._open_to(kind), wait_s)
        finally:
            self.wanted -= 1
            self._changed.notify_all()

    def _open_to(self, kind: Kind) -> bool:
        if self._alone:
            return False
        if kind == "beside":
            return self._beside < MOST_BESIDE
        return not self._behind and (not self.wanted if kind == "behind" else not self._beside)

    def give_back(self, kind: Kind = "alone") -> None:
        with self._changed:
            self._alone &= kind != "alone"
            self._beside -= kind == "beside"
            self._behind &= kind != "behind"
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
        most_beside: answers at once of this data folder.
        before: entered while an answer is given; what has the floor of the model knows of it.
    """

    def __init__(self) -> None:
        self.stops = 0
        self._turns = Turns()
        self._running: dict[threading.Event, str] = {}  # what ends each that runs, and what it does
        self._answered: set[str] = set()  # chats in which an answer is given
        self.most_beside = MOST_BESIDE
        self.before: Callable[[], AbstractContextManager[None]] = nullcontext
        self._reads = threading.Condition()
        self._read_behind: dict[str, threading.Event] = {}  # documents, and what ends the reading of each
        self._opened = Counter[str]()  # documents of chats that are being opened
        self._closed = False

    def share(self, other: "Jobs") -> None:
        """Wait for the same turns as the jobs of another data folder over the same model."""
        self._turns = other._turns

    @contextmanager
    def claim(
        self,
        what: str,
        since: int | None = None,
        *,
        behind: bool = False,
        beside: bool = False,
        cancel: threading.Event | None = None,
    ) -> Iterator[Job]:
        """Have the model for one job; `stop` sets its `cancel`.

        Args:
            since: `stops` when the job was asked for: a stop that came while it waited counts.
            behind: answers may run beside it, and other jobs end it and wait for that.
            beside: others of this sort may run too; whatever they share they use with `Engine.floor`.
            cancel: what ends the job, when somebody else has to know it.

        Raises:
            InUseError: something else runs.
        """
        cancel = cancel or threading.Event()
        kind: Kind = "behind" if behind else "beside" if beside else "alone"
        full = beside and len(self._answered) >= self.most_beside
        if self._closed or full or not self._turns.take(kind, end=cancel.set, wait_s=BEHIND_WAIT_S * behind):
            raise InUseError(f"busy: {self.busy() or 'other work'}; wait until it ends, or stop it")
        if since is not None and self.stops != since:
            cancel.set()
        self._running[cancel] = what
        try:
            with self.before() if beside else nullcontext():
                yield Job(cancel, time.monotonic())
        finally:
            del self._running[cancel]
            self._turns.give_back(kind)

    @property
    def waits_behind(self) -> bool:
        """Whether the reading of another data folder waits for the one that runs."""
        return self._turns.waits_behind

    @contextmanager
    def undisturbed(self, document: str, job: Job) -> Iterator[None]:
        """While a document is read behind; a chat that is opened over it ends that.

        Raises:
            CancelledError: such a chat is being opened.
        """
        with self._reads:
            if self._opened[document]:
                raise CancelledError("a chat over the document comes first")
            self._read_behind[document] = job.cancel
        try:
            yield
        finally:
            with self._reads:
                del self._read_behind[document]
                self._reads.notify_all()

    @contextmanager
    def without_reading(self, documents: Sequence[str], job: Job) -> Iterator[None]:
        """While nobody reads these documents behind.

        Raises:
            CancelledError: the job was stopped before.
        """
        with self._reads:
            self._opened.update(documents)
        try:
            with self._reads:
                while reading := [self._read_behind[id] for id in documents if id in self._read_behind]:
                    for cancel in reading:
                        cancel.set()
                    self._reads.wait(LOOK_S)
                    if job.cancelled:
                        raise CancelledError("stopped before the chat was opened")
            yield
        finally:
            with self._reads:
                self._opened.subtract(documents)
                self._opened += Counter()

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
