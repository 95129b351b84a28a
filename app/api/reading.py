"""Reads documents behind the answers, one after another; an answer that wants the model goes first."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.errors import CancelledError, InUseError, LecternError

if TYPE_CHECKING:
    from app.chat import DocumentChat

log = logging.getLogger(__name__)
PAUSE_S = 0.05


class BackgroundReading:
    """Documents that wait to be read. What is read is stored, so stopping anywhere loses at most one segment.

    Attributes:
        problems: by document, why it could not be read.
    """

    def __init__(self, chat: "DocumentChat") -> None:
        self.chat = chat
        self.problems: dict[str, str] = {}
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._changed = threading.Condition()
        self._answers = 0
        self._ended = False
        self._thread: threading.Thread | None = None

    def add(self, document: str) -> None:
        """Read a document when the model is free."""
        with self._changed:
            self.problems.pop(document, None)
            self._waiting[document] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="reading", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def waits(self, document: str) -> bool:
        """Whether it is in the queue still, or read right now."""
        with self._changed:
            return document in self._waiting

    def forget(self, document: str) -> None:
        with self._changed:
            self._waiting.pop(document, None)

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @contextmanager
    def answer_first(self) -> Iterator[None]:
        """Hold reading back while an answer is wanted."""
        with self._changed:
            self._answers += 1
        try:
            yield
        finally:
            with self._changed:
                self._answers -= 1
                self._changed.notify_all()

    @property
    def _held(self) -> bool:
        return self._answers > 0 or self._ended

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ended and (not self._waiting or self._answers):
                    self._changed.wait()
                if self._ended:
                    return
                document = next(iter(self._waiting))
            try:
                done = self._read(document)
            except InUseError:  # the page has the model
                time.sleep(PAUSE_S)
                continue
            except CancelledError:  # Stop on the page means all that runs
                done = True
            except LecternError as error:
                self.problems[document] = str(error)
                done = True
            except Exception:
                log.exception("reading %s failed", document)
                self.problems[document] = "Something went wrong inside Lectern; its log has the details."
                done = True
            if done:
                self.forget(document)

    def _read(self, document: str) -> bool:
        """Read until the end, or until an answer wants the model; returns whether all is read."""
        steps = self.chat.read(document)
        try:
            for _ in steps:
                if self._held or not self.waits(document):
                    return False
        finally:
            steps.close()
        return True
