"""Run the adding of a file where it can be watched and stopped."""

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from app.errors import CancelledError, InputError
from app.ingest.files import Cancelled, Progress, never

POLL_S = 0.1  # how soon progress and a cancel are seen
WAIT_S = 0.5  # for work that was cancelled; a longer call in it ends by itself, and nobody takes its result

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """How far the adding of a file is.

    Attributes:
        what: is being done, in words ("opening it").
        done, total: pages, files or characters; total is 0 until it is known.
    """

    what: str
    done: int = 0
    total: int = 0

    @property
    def words(self) -> str:
        """What is being done and its share in percent, where that is known."""
        return f"{self.what}, {100 * self.done // self.total}%" if self.total else self.what


class Watch:
    """Tells the one who waits what is done, and asks whether to go on."""

    def __init__(self, cancelled: Cancelled) -> None:
        self._cancelled, self._stopped, self.step = cancelled, False, Step("opening it")

    def cancelled(self) -> bool:
        """True when the work shall end."""
        return self._stopped or self._cancelled()

    def stop(self) -> None:
        """Nobody waits for the result any more."""
        self._stopped = True

    def progress(self, what: str) -> Progress:
        """A progress function that tells this of its figures."""

        def tell(done: int, total: int) -> None:
            self.step = Step(what, done, total)

        return tell


def in_steps(work: Callable[[Watch], T], cancelled: Cancelled = never) -> Generator[Step, None, T]:
    """Run work in a thread of its own, telling how far it is; returns what it returns.

    So Ctrl-C, a cancel and the closing of the generator are seen at once, whatever long call the work is in; the work
    then ends as soon as it asks its watch.

    Raises:
        InputError: the work ended with something that is no error of ours and that nobody else would catch (native
            libraries raise such), or without memory.
        CancelledError: `cancelled` said so.
    """
    watch, finished = Watch(cancelled), threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(watch))
        except BaseException as error:
            failures.append(error)
        finally:
            finished.set()

    thread = threading.Thread(target=run, name="adding", daemon=True)
    thread.start()
    shown = None
    try:
        while not finished.wait(POLL_S):
            if cancelled():
                raise CancelledError("adding the file was stopped")
            if watch.step is not shown:
                shown = watch.step
                yield shown
    finally:
        watch.stop()
        thread.join(None if finished.is_set() else WAIT_S)
    if failures:
        reason = as_reason(failures[0], "adding it")
        if reason is failures[0]:
            raise reason
        raise reason from failures[0]
    return results[0]


def as_reason(error: BaseException, doing: str) -> BaseException:
    """The error that a caller can show: itself, or a message in place of what nothing else would catch."""
    if isinstance(error, MemoryError):
        return InputError(f"{doing} needs more memory than there is; close other programs, or split the file")
    if isinstance(error, Exception | KeyboardInterrupt | SystemExit | GeneratorExit):
        return error
    return InputError(f"{doing} ended inside a library ({type(error).__name__}: {error}); split or change the file")


def returned(steps: Generator[Any, None, T]) -> T:
    """What a generator returns when it is run to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
