"""Documents that wait to be read: one queue for the page and the endpoint, read behind all other work on the model."""

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import CancelledError, InUseError, LecternError
from app.records import DocumentInfo, Reading

if TYPE_CHECKING:
    from app.chat import DocumentChat

log = logging.getLogger(__name__)
PAUSE_S = 0.05
BESIDE = ("reading ", "trying ", "answering")  # what the model may be busy with while it reads
CLOSE_S = 5.0
KEPT = "reading.json"  # in the data folder
WENT_WRONG = "Something went wrong inside Lectern; its log has the details."


@dataclass(frozen=True)
class Waiting:
    """A document of the queue.

    Attributes:
        tokens, done: all of it, and those that are read; `done` is None where nothing is known yet.
        eta_s: what is left, at the speed measured last; 0 where there is none.
    """

    id: str
    title: str
    tokens: int
    done: int | None
    eta_s: float

    @property
    def percent(self) -> int:
        """100 only when all is read."""
        return min(99 if (self.done or 0) < self.tokens else 100, 100 * (self.done or 0) // max(1, self.tokens))


@dataclass(frozen=True)
class Queued:
    """What the queue holds at one moment.

    Attributes:
        documents: in the order in which they are read; the first is being read unless `paused`.
        number, of: the first is number `number` of `of` since the queue was empty.
        finished: how many documents were read since the start.
        suggested: how many questions about documents were found since the start.
        held: what has the model instead; "" when nothing does.
        problems: by title, why a document could not be read.
    """

    documents: tuple[Waiting, ...] = ()
    number: int = 0
    of: int = 0
    finished: int = 0
    suggested: int = 0
    paused: bool = False
    held: str = ""
    tokens_per_s: float = 0.0
    problems: tuple[tuple[str, str, str], ...] = ()  # (document, title, why)

    @property
    def eta_s(self) -> float:
        """Of all of them."""
        return sum(document.eta_s for document in self.documents)


class BackgroundReading:
    """The queue. What is read is stored, so that ending anywhere loses at most one segment.

    Where nothing waits, questions about what was read are tried, to be suggested. The list is kept in the data folder:
    `take_up` goes on with it after a restart.

    Attributes:
        problems: by document, why it could not be read.
        paused: nothing is read until `go_on`.
    """

    def __init__(self, chat: "DocumentChat") -> None:
        self.chat = chat
        self.problems: dict[str, str] = {}
        self.paused = False
        self.finished = self.suggested = 0
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._untried: OrderedDict[str, None] = OrderedDict()  # read, and questions about it are left to be tried
        self._told: dict[str, Reading] = {}  # the last of each document
        self._speed = 0.0
        self._batch = 0  # read since the queue was empty
        self._changed = threading.Condition()
        self._holds = 0
        self._ended = False
        self._thread: threading.Thread | None = None

    # --- what users do

    def add(self, document: str, *, first: bool = False) -> None:
        """Read a document when the model is free, before all others or after them."""
        with self._changed:
            self.problems.pop(document, None)
            if not self._waiting:
                self._batch = 0
            self._waiting.setdefault(document)
            if first:
                self._waiting.move_to_end(document, last=False)
            self._begin()

    def suggest(self, document: str) -> None:
        """Try questions about a document when nothing else is wanted."""
        with self._changed:
            if document not in self._waiting and self.chat.trials.untried(document):
                self._untried.setdefault(document)
                self._start()

    def forget(self, document: str) -> None:
        """Take a document out; what of it was read stays."""
        with self._changed:
            self._waiting.pop(document, None)
            self.problems.pop(document, None)
            self._keep()

    def pause(self) -> None:
        with self._changed:
            self.paused = True
            self._keep()

    def go_on(self) -> None:
        """End a pause."""
        with self._changed:
            self.paused = False
            self._begin()

    def take_up(self) -> None:
        """Go on with what an earlier process was reading; what it had paused stays so."""
        kept = _read(self._file)
        known = {info.id: info.state for info in self.chat.library.documents()} if kept.documents else {}
        with self._changed:
            self.paused = kept.paused
            self._waiting |= {id: None for id in kept.documents if known.get(id, "read") != "read"}
            if self._waiting:
                self._begin()

    def close(self) -> None:
        """End reading within one segment; the list stays kept."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Read nothing meanwhile."""
        with self._changed:
            self._holds += 1
        try:
            yield
        finally:
            with self._changed:
                self._holds -= 1
                self._changed.notify_all()

    # --- what users see

    def waits(self, document: str) -> bool:
        """Whether it is in the queue still, or read right now."""
        with self._changed:
            return document in self._waiting

    def documents(self) -> tuple[str, ...]:
        """The queue, in order."""
        with self._changed:
            return tuple(self._waiting)

    def queued(self) -> Queued:
        """Everything that a page tells of it."""
        with self._changed:
            ids, problems = list(self._waiting), dict(self.problems)
            told = dict(self._told)
            now = Queued((), self._batch + 1, self._batch + len(ids), self.finished, self.suggested, self.paused)
        if not ids and not problems:
            return now
        known = {info.id: info for info in self.chat.library.documents()}
        busy = self.chat.jobs.busy() or ""
        return replace(
            now,
            documents=tuple(self._described(known[id], told.get(id)) for id in ids if id in known),
            held="" if busy.startswith(BESIDE) else busy,
            tokens_per_s=self._speed,
            problems=tuple((id, known[id].title, why) for id, why in problems.items() if id in known),
        )

    def _described(self, info: DocumentInfo, told: Reading | None) -> Waiting:
        tokens = told.tokens_total if told else info.tokens
        left = tokens - (told.tokens_done if told else 0)
        return Waiting(
            info.id, info.title, tokens, told.tokens_done if told else None, left / self._speed if self._speed else 0.0
        )

    # --- the thread

    def _begin(self) -> None:
        """Keep the list and see that it is read; called with the lock held."""
        self._keep()
        self._start()

    def _start(self) -> None:
        """See that the thread runs and looks; called with the lock held."""
        if self._thread is None and not self._ended:
            self._thread = threading.Thread(target=self._run, name="reading", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    @property
    def _held(self) -> bool:
        return self._holds > 0 or self._ended or self.paused

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ended and (self._held or not (self._waiting or self._untried)):
                    self._changed.wait()
                if self._ended:
                    return
                document = next(iter(self._waiting or self._untried))
                waits = document in self._waiting
            if not waits:
                self._try_question(document)
                continue
            try:
                done = self._read(document)
            except (InUseError, CancelledError):  # something else has the model, or wants it
                with self._changed:
                    self._changed.wait(PAUSE_S)
            except LecternError as error:
                self._failed(document, str(error))
            except Exception:
                log.exception("reading %s failed", document)
                self._failed(document, WENT_WRONG)
            else:
                if done:
                    self._finish(document)

    def _read(self, document: str) -> bool:
        """Read until the end, or until something else comes first; returns whether all is read."""
        steps = self.chat.read(document, behind=True)
        try:
            for event in steps:
                self._told[document] = event
                self._speed = event.tokens_per_s or self._speed
                if self._held or self._first() != document:
                    return False
        finally:
            steps.close()
        return True

    def _try_question(self, document: str) -> None:
        """Try one, until none is left."""
        left = False
        try:
            if self.chat.trials.untried(document):
                self.suggested += self.chat.trials.try_question(document)
                left = self.chat.trials.untried(document)
        except (InUseError, CancelledError):
            left = True
            with self._changed:
                self._changed.wait(PAUSE_S)
        except LecternError as error:  # a full disk, or the document is gone
            log.warning("questions about a document are not tried: %s", error)
        except Exception:
            log.exception("trying questions about %s failed", document)
        if not left:
            with self._changed:
                self._untried.pop(document, None)

    def _first(self) -> str | None:
        with self._changed:
            return next(iter(self._waiting), None)

    def _finish(self, document: str) -> None:
        with self._changed:
            self._told.pop(document, None)
            if document in self._waiting:
                self.finished += 1
                self._batch += 1
                self._untried.setdefault(document)
            self._waiting.pop(document, None)
            self._keep()

    def _failed(self, document: str, why: str) -> None:
        """A document that cannot be read is told and left out; without a model all of them wait."""
        with self._changed:
            self.problems[document] = why
            if self.chat.model.model_state().state == "failed":
                self.paused = True
            else:
                self._waiting.pop(document, None)
            self._keep()

    # --- kept over a restart

    @property
    def _file(self) -> Path:
        return self.chat.settings.folder / KEPT

    def _keep(self) -> None:
        """Write the list down; without room for it, it is lost at the end of the process only."""
        fresh = self._file.with_suffix(".new")
        try:
            value = {"documents": list(self._waiting), "paused": self.paused}
            fresh.write_text(json.dumps(value), encoding="utf-8")
            os.replace(fresh, self._file)
        except OSError as error:
            log.warning("the list of documents to be read cannot be kept: %s", error)


@dataclass(frozen=True)
class _Kept:
    documents: tuple[str, ...] = ()
    paused: bool = False


def _read(file: Path) -> _Kept:
    """The list that an earlier process kept; nothing where there is none, or none that can be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return _Kept(tuple(map(str, value["documents"])), bool(value["paused"]))
    except FileNotFoundError:
        return _Kept()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: the list of documents to be read is no such list: %s", file, error)
        return _Kept()
