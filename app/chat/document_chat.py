"""DocumentChat: read, ask, save, resume. The one object behind UI, CLI and tests, made of parts that have names."""

import gc
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.chat.allowance import Allowance
from app.chat.fetching import Fetching
from app.chat.focus import Sight
from app.chat.jobs import Job, Jobs
from app.chat.library import DocumentPages, Library
from app.chat.loaded_model import LoadedModel
from app.chat.model_shelf import ModelShelf
from app.chat.saved import SavedChats
from app.chat.suggestions import Trials
from app.chat.transfers import Transfers
from app.chat.whole_text import WholeText, kept
from app.errors import CancelledError, InputError, NotFoundError
from app.ingest.stream import returned
from app.memory.config import GenerationConfig
from app.records import Delta, Done, Reading, Removal, Working, turns_of
from app.settings import Settings
from app.store.users import Limits
from app.tasks.whole import Task, chosen, recognise
from app.wellformed import whole

if TYPE_CHECKING:
    from app.chat.sessions import Session, Sessions
    from app.runtime.engine import Engine

CLOSE_WAIT_S = 5
LOOK_S = 0.1
READING_TURN_S = 20.0  # after which a reading lets that of another data folder go on


class DocumentChat:
    """Documents, chats and the model of one data folder. Answers may run beside each other, any other job runs alone.

    Attributes:
        lock: the data folder's lock; the server writes its URL there.
        store: what is kept in the data folder.
        jobs: what runs now; every job claims the model there, and can be stopped there.
        model: the model that answers; `shelf` has the others of this computer, `fetching` those that can be had.
        library: the documents; `pages` shows them as pictures, `trials` finds questions about them.
        saved: the chats; `transfers` makes files of them.
        allowance: what may be taken here; of an owner everything.
        guest: whether the model is somebody else's.
    """

    guest = False
    _model_kind, _shelf_kind = LoadedModel, ModelShelf

    def __init__(self, settings: Settings, store, lock, limits: Limits | None = None) -> None:
        self.store, self.lock = store, lock
        self.jobs, self.fetching = Jobs(), Fetching()
        self.allowance = Allowance(limits)
        if limits:
            self.jobs.most_beside = limits.answers
        self.model = self._model_kind(settings, store, self.jobs)
        self.shelf = self._shelf_kind(self.model, store, self.fetching)
        self.library = Library(store, self.model, self.jobs, lambda: self.allowance.room(self))
        self.pages = DocumentPages(store)
        self.trials = Trials(store, self.model, self.jobs)
        self.saved = SavedChats(store, self.model, self.jobs, self.library)
        self.transfers = Transfers(store, self.model, self.jobs, lambda: self.allowance.room(self))
        self._opening = threading.Lock()

    @property
    def settings(self) -> Settings:
        """With the model that is loaded, or will be."""
        return self.model.settings

    @classmethod
    def open(
        cls, settings: Settings, *, load: bool = True, engine: "Engine | None" = None, limits: Limits | None = None
    ) -> "DocumentChat":
        """Take the data folder, open the store and start loading the model behind it.

        Args:
            load: start loading now; otherwise the first need of the model loads it.
            engine: one that is loaded already.
            limits: of the user whose folder it is; None for an owner.

        Raises:
            BusyError: another process owns the folder.
            StoreError: the folder cannot be used.
        """
        from app.store.home import acquire
        from app.store.store import Store

        lock = acquire(settings.folder)
        try:
            store = Store(settings.folder, disk_budget_bytes=int(settings.disk_budget_gb * 1e9))
        except BaseException:
            lock.release()
            raise
        chat = cls(settings, store, lock, limits)
        if engine:
            chat.model.use(engine)
        elif load:
            chat.model.start()
        return chat

    def close(self) -> None:
        """Stop what runs, write what is queued, give the folder back."""
        if not self.jobs.close():
            return
        self.library.stop_adding()
        self.fetching.stop()
        with self.jobs.ended(CLOSE_WAIT_S):  # a generator that nobody closed must not keep us
            self.pages.close()
            self.store.close()
            self.lock.release()
        gc.unfreeze()  # what `load.settle` set aside

    # --- several data folders over one model

    def beside(
        self, home: Path, kind: "type[DocumentChat] | None" = None, limits: Limits | None = None, **changes: Any
    ) -> "DocumentChat":
        """Another data folder over the model that is loaded; jobs in both wait for the same turns.

        Args:
            kind, limits: of a user.
            changes: of the settings.
        """
        settings, engine = replace(self.settings, home=home, **changes), self.model.engine()
        made = (kind or DocumentChat).open(settings, engine=engine, limits=limits)
        made.jobs.share(self.jobs)
        return made

    def notes(self) -> list[str]:
        """What the user should know about the data folder: files set aside, housekeeping or writing that failed."""
        return [*self.store.notes, *self.model.notes]

    def read(self, document: str, policy: str = "", *, behind: bool = False) -> Iterator[Reading]:
        """Read a document once under a policy, "" for the one at the start; what is stored is not read again.

        Args:
            behind: go on beside answers, which come first, and give way to every other job.

        Raises:
            CancelledError: `stop` was called, or another job came before; the next reading goes on from there.
            ConfigError: see `engine_under`.
        """
        since = self.jobs.stops
        self.model.engine()
        info = self.library.document(document)
        with self.jobs.claim(f"reading {info.title}", since, behind=behind) as job:
            if not behind:
                sessions = self.model.sessions_under(policy or self.model.policy_of())
                yield from sessions.reader.read(info.id, job.cancel.is_set)
                return
            with self.jobs.undisturbed(info.id, job):
                yield from self._read_behind(info.id, policy or self.model.policy_of(), job)
            if job.cancelled:
                raise CancelledError(f"reading {info.title}: gave way")

    def _read_behind(self, document: str, policy: str, job: Job) -> Iterator[Reading]:
        """Read with the floor between answers; after a while the reading of another data folder has its turn."""

        def steps() -> Iterator[Reading]:
            yield from self.model.sessions_under(policy).reader.read(document, job.cancel.is_set)

        begun: int | None = None
        with closing(self.model.engine().floor.during(steps(), behind=True)) as shared:
            for event in shared:
                begun = event.tokens_done if begun is None else begun
                turn_over = event.tokens_done > begun and time.monotonic() > job.started + READING_TURN_S
                if turn_over and self.jobs.waits_behind:
                    job.cancel.set()
                yield event

    def take_turns(self, chat: str, turns: Sequence[tuple[str, str]], *, cancel: threading.Event | None = None) -> int:
        """Let a chat go on with turns that were had elsewhere: they are run and kept as if answered here.

        Args:
            cancel: ends it when set.

        Returns:
            the tokens that were run for it, of documents that were not read yet too.

        Raises:
            CancelledError: stopped; the turns before stay.
        """
        self.model.engine()
        id = self.store.chat(chat).id
        with self.jobs.claim("reading turns", beside=True, cancel=cancel) as job, self.jobs.answering(id):
            sessions, session = returned(self._opened(id, job))
            before = session.cache.tail.tokens - session.reread - sum(d.tokens_read for d in session.documents)
            for _ in sessions.engine.floor.during(sessions.take(session, *turn, job) for turn in turns):
                pass
            read = session.cache.tail.tokens - before
            self.allowance.spend(read)
            return read

    # --- asking

    def ask(
        self,
        question: str,
        *,
        chat: str | None = None,
        documents: Sequence[str] = (),
        generation: GenerationConfig = GenerationConfig(),
        focus: Sequence[str] = (),
        mute: Sequence[str] = (),
        without: str | None = None,
        policy: str = "",
        system: str = "",
        so_far: Collection[str] = (),
        through: bool | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Reading | Delta | Done]:
        """Ask; documents that are not read yet are read first.

        Args:
            chat: None starts a new chat.
            documents: what the chat is about; for an existing chat in place of what it was about.
            focus, mute: places (see `app.chat.focus.find_place`) that alone may be seen, or may not be seen.
            without: id of a passage that may not be seen.
            policy: of a new chat, "" for the one at the start; another chat keeps its own (`set_chat_policy`).
            system: system text of a new chat, "" for the model's own.
            so_far: documents that are asked as far as they are read, if something of them is.
            through: go through the whole texts part by part, which needs no reading; None: where the question is
                recognised as one for that (`app.tasks.whole`).
            cancel: ends it when set, as `jobs.stop` ends all.

        Closing the generator stops the answer; what came is kept. When reading is stopped, nothing is answered.
        """
        question = whole(question).strip()
        if not question:
            raise InputError("the question is empty; type one")
        self.allowance.question()
        since = self.jobs.stops
        self.model.engine()
        with self.jobs.claim("answering", since, beside=True, cancel=cancel) as job:
            new = None if chat else self.saved.new_chat(documents, policy, system)
            id, answered = new or self.store.chat(chat).id, False
            try:
                with self.jobs.answering(id):
                    if chat and documents:
                        self.saved.set_chat_documents(id, documents)
                    if task := self._task(question, id, through):
                        answered = yield from self._go_through(
                            question, id, task, Sight(tuple(focus), tuple(mute)), job
                        )
                        return
                    sight = Sight(tuple(focus), tuple(mute), without or "")
                    sessions, session = yield from self._opened(id, job, so_far, sight)
                    steps = self.allowance.counted(sessions.answer(session, question, generation, job))
                    answered = yield from sessions.engine.floor.during(steps)
            finally:
                if new and not answered and not self.store.messages(new):  # stopped before anything was said
                    self.store.delete_chat(new)

    def _task(self, question: str, chat: str, through: bool | None) -> Task | None:
        """What a question wants of whole texts; None where it is answered as any other.

        Raises:
            InputError: that was chosen, and the question cannot be taken so.
        """
        if through is False or not self.store.chat(chat).documents:
            return None
        task = chosen(question) if through else recognise(question)
        if through and not task:
            raise InputError(
                "going through all of the text answers how often or where something stands, what is defined, dates, "
                "names, headings, and what changed between two chapters or documents; ask for one of these, and put "
                "names in quotes"
            )
        return task

    def _go_through(
        self, question: str, chat: str, task: Task, sight: Sight, job: Job
    ) -> "Generator[Working | Delta | Done, None, bool]":
        """Answer from the whole texts; returns whether something was answered."""
        known = {info.id: info for info in self.library.documents()}
        documents = [known[id] for id in self.store.chat(chat).documents if id in known]
        work = WholeText(self.store, task, documents, sight)
        yield from work.steps(job)
        done = work.answer(chat, job)
        if work.done == 0 and work.parts:
            return False
        self.model.forget()
        done = kept(self.store, chat, question, done)
        yield Delta(done.answer)
        yield done
        return True

    def _opened(
        self, chat: str, job: "Job", so_far: Collection[str] = (), sight: Sight = Sight()
    ) -> "Generator[Reading, None, tuple[Sessions, Session]]":
        """Bring a chat into memory beside answers that run; chats are opened one after the other."""

        def steps() -> "Generator[Reading, None, tuple[Sessions, Session]]":
            sessions = self.model.sessions_of(chat)
            session = yield from sessions.open(chat, job, so_far)
            sessions.see(session, sight)
            return sessions, session

        while not self._opening.acquire(timeout=LOOK_S):
            if job.cancelled:
                raise CancelledError("stopped before the chat was opened")
        try:
            with self.jobs.without_reading(self.store.chat(chat).documents, job):
                return (yield from self.model.engine().floor.during(steps()))
        finally:
            self._opening.release()

    def retry(
        self,
        chat: str,
        *,
        generation: GenerationConfig = GenerationConfig(),
        focus: Sequence[str] = (),
        mute: Sequence[str] = (),
        so_far: Collection[str] = (),
    ) -> Iterator[Reading | Delta | Done]:
        """Answer the last question again; the answer before stays as another version. See `ask`."""
        self.allowance.question()
        since = self.jobs.stops
        self.model.engine()
        with self.jobs.claim("answering", since) as job:
            id = self.store.chat(chat).id
            sessions = self.model.sessions_of(id)
            session = yield from sessions.open(id, job, so_far)
            sessions.see(session, Sight(tuple(focus), tuple(mute)))  # first: a wrong name must not cost the answer
            question, after = self._question(session.chat)
            yield from self.allowance.counted(sessions.answer(session, question, generation, job, after=after))

    def edit(
        self,
        chat: str,
        turn: int,
        question: str,
        *,
        generation: GenerationConfig = GenerationConfig(),
        focus: Sequence[str] = (),
        mute: Sequence[str] = (),
        so_far: Collection[str] = (),
    ) -> Iterator[Reading | Delta | Done]:
        """Ask another question in the place of an earlier one. Only the new turn is run; no document is read again.

        The turns from there on stay as another version of the chat (`show_version`).

        Raises:
            NotFoundError: there is no such turn.
        """
        question = whole(question).strip()
        if not question:
            raise InputError("the question is empty; type one")
        self.allowance.question()
        since = self.jobs.stops
        self.model.engine()
        with self.jobs.claim("answering", since) as job:
            id = self.store.chat(chat).id
            sessions = self.model.sessions_of(id)
            _, after = self._question(id, turn)
            session = yield from sessions.open(id, job, so_far)
            sessions.see(session, Sight(tuple(focus), tuple(mute)))
            yield from self.allowance.counted(sessions.answer(session, question, generation, job, after=after))

    def answer_without(
        self, evidence: str, *, generation: GenerationConfig = GenerationConfig()
    ) -> Iterator[Reading | Delta | Done]:
        """Answer the question of a passage again with that passage masked. Nothing is saved.

        Later regions were encoded after reading the passage, so traces of it stay: this is a mask, not a deletion.
        """
        self.allowance.question()
        since = self.jobs.stops
        self.model.engine()
        item, chat, message = self.store.evidence(evidence)
        with self.jobs.claim("answering", since) as job:
            sessions = self.model.sessions_of(chat, message)
            session = yield from sessions.open(chat, job)
            steps = sessions.answer_without(session, item, message, generation, job)
            yield from self.allowance.counted(steps)

    def removal(self, evidence: str) -> Iterator[Reading | Removal]:
        """How much less likely an answer is with a passage of it masked; the Removal comes last. Nothing is saved."""
        from app.chat.removal import removal

        since = self.jobs.stops
        self.model.engine()
        item, chat, message = self.store.evidence(evidence)
        with self.jobs.claim("testing a passage", since) as job:
            sessions = self.model.sessions_of(chat, message)
            session = yield from sessions.open(chat, job)
            yield removal(sessions, session, item, message, job.cancel.is_set)

    def _question(self, chat: str, turn: int | None = None) -> tuple[str, int]:
        """A question and the number of turns before it.

        Args:
            turn: which one; None is the last.

        Raises:
            NotFoundError: there is no such turn.
        """
        turns = turns_of(self.store.messages(self.store.chat(chat).id))
        number = len(turns) if turn is None else turn
        if not 1 <= number <= len(turns):
            raise NotFoundError(f"chat {chat!r}: has {len(turns)} questions; question {number} is not there")
        return turns[number - 1].question.content, number - 1
