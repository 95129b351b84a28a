"""DocumentChat: add, read, ask, save, resume. The one object behind UI, CLI and tests."""

import gc
import logging
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.chat.fetching import Fetching
from app.chat.focus import Sight, choices
from app.chat.keeping import Keeping
from app.chat.loaded_model import Loading
from app.chat.turns import Turns
from app.errors import CancelledError, InputError, InUseError, LecternError, StoreError
from app.ingest.page_image import Pages
from app.ingest.stream import Step, Watch, in_steps
from app.memory.config import GenerationConfig
from app.records import (
    AnswerSettings,
    ChatHit,
    ChatInfo,
    Delta,
    Document,
    DocumentInfo,
    Done,
    MemoryLine,
    Message,
    Part,
    Reading,
    Removal,
)
from app.settings import Settings
from app.wellformed import one_line, whole

if TYPE_CHECKING:
    from app.chat.reader import ReadDocument
    from app.chat.sessions import Job, Session, Sessions
    from app.runtime.engine import Engine

log = logging.getLogger(__name__)
CLOSE_WAIT_S = 5
LOOK_S = 0.1
T = TypeVar("T")


class DocumentChat(Keeping, Loading):
    """Documents, chats and the model of one data folder. Answers may run beside each other, any other job runs alone.

    Attributes:
        lock: the data folder's lock; the server writes its URL there.
    """

    def __init__(self, settings: Settings, store, lock) -> None:
        self.settings, self.store, self.lock = settings, store, lock
        self._engine: Engine | None = None
        self._ready: Sessions | None = None  # under the policy that was used last
        self._twins: dict[str, Engine] = {}
        self._failure: LecternError | None = None
        self._load = threading.Lock()
        self._one = Turns()
        self._jobs: dict[threading.Event, str] = {}  # what ends each that runs, and what it does
        self._opening = threading.Lock()
        self._answered: set[str] = set()  # chats in which an answer is given
        self.stops = 0  # how often `stop` was called
        self._adding_stops = 0
        self._closed = False
        self._pages = Pages()
        self.fetching = Fetching()

    @classmethod
    def open(cls, settings: Settings, *, load: bool = True, engine: "Engine | None" = None) -> "DocumentChat":
        """Take the data folder, open the store and start loading the model behind it.

        Args:
            load: start loading now; otherwise the first need of the model loads it.
            engine: one that is loaded already.

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
        chat = cls(settings, store, lock)
        if engine:
            chat._use(engine)
        elif load:
            threading.Thread(target=chat._load_once, name="model", daemon=True).start()
        return chat

    def close(self) -> None:
        """Stop what runs, write what is queued, give the folder back."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        self.stop_adding()
        self.fetching.stop()
        waited = self._one.take(wait_s=CLOSE_WAIT_S)  # a generator that nobody closed must not keep us
        self._pages.close()
        self.store.close()
        self.lock.release()
        if waited:
            self._one.give_back()  # to others over the same model
        gc.unfreeze()  # what `swap.settle` set aside

    # --- several data folders over one model

    def beside(self, home: Path, **changes: Any) -> "DocumentChat":
        """Another data folder over the model that is loaded; jobs in both wait for the same turns.

        Args:
            changes: of the settings.
        """
        made = DocumentChat.open(replace(self.settings, home=home, **changes), engine=self.engine())
        made._one = self._one
        return made

    def follow(self, other: "DocumentChat") -> None:
        """Use the model that another data folder has now."""
        engine = other.engine()
        if self._engine is not engine:
            self.settings = replace(self.settings, model=other.settings.model, adapter=other.settings.adapter)
            self._twins.clear()
            self._use(engine)

    # --- who has the model

    @contextmanager
    def claim(
        self, what: str, since: int | None = None, *, behind: bool = False, beside: bool = False
    ) -> "Iterator[Job]":
        """Have the model for one job; `stop` sets its `cancel`.

        Args:
            since: `stops` when the job was asked for: a stop that came while it waited counts.
            behind: the job gives way to others, which wait until it is cancelled; it never waits itself.
            beside: others of this sort may run too; whatever they share they use with `Engine.floor`.

        Raises:
            InUseError: something else runs.
        """
        cancel = threading.Event()
        if self._closed or not self._one.take(behind, beside=beside, end=cancel.set):
            raise InUseError(f"busy: {self.busy() or 'other work'}; wait until it ends, or stop it")
        if since is not None and self.stops != since:
            cancel.set()
        self._jobs[cancel] = what
        try:
            from app.chat.sessions import Job

            yield Job(cancel, time.monotonic())
        finally:
            del self._jobs[cancel]
            self._one.give_back()

    def _end_jobs(self) -> None:
        for cancel in tuple(self._jobs):
            cancel.set()

    @contextmanager
    def _answering(self, chat: str) -> Iterator[None]:
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
        self._end_jobs()

    def busy(self) -> str | None:
        """What is running now."""
        return next(iter(tuple(self._jobs.values())), None)

    def notes(self) -> list[str]:
        """What the user should know about the data folder: files set aside, housekeeping or writing that failed.

        What concerns a reading moves to the note of the next answer.
        """
        return [*self.store.notes, *(self._ready.reader.notes if self._ready else ())]

    # --- documents

    @staticmethod
    def text(path: Path, password: str | None = None) -> Document:
        """What ingestion makes of a path; nothing is stored."""
        from app.ingest.load import load_document

        return load_document(path, password=password)

    def add_document(
        self,
        path: Path,
        *,
        password: str | None = None,
        name: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
    ) -> DocumentInfo:
        """Put a file, folder or archive into the library; the same bytes again change nothing.

        Args:
            encoding: of a text that is not UTF-8, when it was found wrongly; read under another it is another document.

        Raises:
            InputError, PasswordError: why it cannot be read.
            CancelledError: `stop_adding` was called.
        """
        return returned(self.adding(path, password=password, name=name, encoding=encoding, ocr=ocr))

    def adding(
        self,
        path: Path,
        *,
        password: str | None = None,
        name: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
    ) -> Generator[Step, None, DocumentInfo]:
        """As `add_document`, telling how far it is; closing the generator ends it as `stop_adding` does.

        Args:
            ocr: read scanned pages by OCR; a document of the same bytes that was read without it is replaced.

        A document whose tokens could not be counted any more stays in the library; reading it counts them.
        """
        from app.ingest.load import load_document

        def work(watch: Watch) -> DocumentInfo:
            options = {"password": password, "name": name, "encoding": encoding, "cancelled": watch.cancelled}
            options["ocr_folder"] = self.settings.home / "ocr" if ocr else None
            document = load_document(Path(path), progress=watch.progress("opening it"), **options)
            watch.step = Step("putting it into the library")
            id = self.store.add_document(document, watch.cancelled, replace=ocr)
            if document.keep_file:
                self.store.keep_source(id, Path(path), name or Path(path).name)
            del document  # its text is in the library now, and memory is needed for the tokens
            if engine := self._engine:  # its length in tokens, and so what reading will take, is known at once
                reader = self._sessions_over(engine).reader
                reader.texts(id, progress=watch.progress("counting its tokens"), cancelled=watch.cancelled)
            return self.document(id)

        stops = self._adding_stops
        return in_steps(work, lambda: self._adding_stops != stops)

    def stop_adding(self) -> None:
        """End the adding of files within a second."""
        self._adding_stops += 1

    def documents(self, policy: str = "") -> list[DocumentInfo]:
        """The library, newest first, as it was read under a policy; "" stands for the one at the start."""
        return self.store.documents(self._recipe_under(policy))

    def document(self, id: str) -> DocumentInfo:
        """A document by id, the beginning of one, or title."""
        return self.store.document(id, self._recipe)

    def part(self, document: str, index: int) -> Part:
        return self.store.part(document, index)

    def outline(self, document: str) -> list[tuple[int, str, str | None]]:
        """(index, label, chapter) of every part of a document."""
        return self.store.outline(document)

    def search_parts(self, query: str, limit: int = 20, document: str | None = None) -> list[tuple[str, int, str, str]]:
        return self.store.search_parts(query, limit, document)

    def delete_document(self, id: str) -> None:
        """Forget a document and its memory; answers given from it stay."""
        with self.claim("deleting a document"):
            id = self.document(id).id
            if self._ready:
                self._ready.session = None
                self._ready.reader.forget(id)
            self.store.delete_document(id)
        self.store.catch_up()

    def read(self, document: str, policy: str = "", *, behind: bool = False) -> Iterator[Reading]:
        """Read a document once under a policy, "" for the one at the start; what is stored is not read again.

        Args:
            behind: give way to every other job.

        Raises:
            CancelledError: `stop` was called, or another job came before; the next reading goes on from there.
            ConfigError: see `engine_under`.
        """
        since = self.stops
        self.engine()
        info = self.document(document)
        with self.claim(f"reading {info.title}", since, behind=behind) as job:
            sessions = self._sessions_under(policy or self.policy_of())
            read = yield from sessions.reader.read(info.id, job.cancel.is_set)
            if self.store.suggestions(info.id, sessions.engine.recipe) is None:
                self._suggest(sessions, read, job)
            if behind and job.cancelled:
                raise CancelledError(f"reading {info.title}: gave way")

    def _suggest(self, sessions: "Sessions", read: "ReadDocument", job: "Job") -> None:
        """Keep questions that the model answers rightly from what was read; a stop, or a full disk, keeps none."""
        from app.chat.suggestions import answered

        questions = answered(sessions, read, job)
        if job.cancelled:
            return
        try:
            self.store.set_suggestions(read.document.id, sessions.engine.recipe, questions)
        except StoreError as error:
            log.warning("%s", error)

    def suggestions(self, documents: Sequence[str]) -> list[str]:
        """Questions to begin with about the first of these documents: none before it was read, nor untried ones."""
        return (self.store.suggestions(documents[0], self._recipe) or []) if documents else []

    # --- chats

    def new_chat(self, documents: Sequence[str] = (), policy: str = "", system: str = "") -> str:
        """Start a chat over documents, in this order, under a policy; "" stands for the one at the start.

        Args:
            system: system text in place of the model's own.
        """
        ids = [self.document(d).id for d in documents]
        return self.store.create_chat(ids, self.settings.model_name, policy=policy or self.policy_of(), system=system)

    def take_turns(self, chat: str, turns: Sequence[tuple[str, str]]) -> int:
        """Let a chat go on with turns that were had elsewhere: they are run and kept as if answered here.

        Returns:
            the tokens that were run for it, of documents that were not read yet too.

        Raises:
            CancelledError: stopped; the turns before stay.
        """
        self.engine()
        id = self.chat(chat).id
        with self.claim("reading turns", beside=True) as job, self._answering(id):
            sessions, session = returned(self._opened(id, job))
            before = session.cache.tail.tokens - session.reread - sum(d.tokens_read for d in session.documents)
            for _ in sessions.engine.floor.during(sessions.take(session, *turn, job) for turn in turns):
                pass
            return session.cache.tail.tokens - before

    def forget_empty(self, chat: str) -> None:
        """Delete a chat in which nothing was said."""
        if not self.store.messages(chat):
            self.store.delete_chat(chat)

    def chats(self, query: str | None = None) -> list[ChatInfo]:
        return self.store.chats(query)

    def search_chats(self, query: str, limit: int = 30) -> list[ChatHit]:
        """Chats that hold every word of the query, the last used first, with the words marked."""
        return self.store.search_chats(query, limit)

    def chat(self, id: str) -> ChatInfo:
        return self.store.chat(id)

    def messages(self, chat: str) -> list[Message]:
        return self.store.messages(self.chat(chat).id)

    def rename_chat(self, chat: str, title: str) -> None:
        """Raises InputError when the title is empty."""
        title = one_line(title)
        if not title:
            raise InputError("the title is empty; give the chat a name")
        self.store.rename_chat(self.chat(chat).id, title)

    def delete_chat(self, chat: str) -> None:
        with self.claim("deleting a chat"):
            if self._ready:
                self._ready.session = None
            self.store.delete_chat(self.chat(chat).id)

    def set_chat_documents(self, chat: str, ids: Sequence[str]) -> None:
        """Attach these documents and no others; none of them is read again for it."""
        self.store.set_chat_documents(self.chat(chat).id, [self.document(d).id for d in ids])

    def answer_settings(self, chat: str | None = None) -> AnswerSettings:
        """How a chat is answered; None: how new chats are."""
        return self.store.answer_settings(self.chat(chat).id if chat else None)

    def set_answer_settings(self, chat: str | None, settings: AnswerSettings) -> None:
        """Keep how a chat is answered, from its next question on; None: how new chats are.

        With another system text its turns are run again.

        Raises:
            ConfigError: a value that cannot be.
            InUseError: something is being answered.
        """
        GenerationConfig(settings.temperature, settings.top_p, settings.max_new_tokens)
        if chat is None or self.answer_settings(chat).system == settings.system:
            return self.store.set_answer_settings(self.chat(chat).id if chat else None, settings)
        with self.claim("changing a chat"):
            if self._ready:
                self._ready.session = None
            self.store.set_answer_settings(self.chat(chat).id, settings)

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

        Closing the generator stops the answer; what came is kept. When reading is stopped, nothing is answered.
        """
        question = whole(question).strip()
        if not question:
            raise InputError("the question is empty; type one")
        since = self.stops
        self.engine()
        with self.claim("answering", since, beside=True) as job:
            new = None if chat else self.new_chat(documents, policy, system)
            id, answered = new or self.chat(chat).id, False
            try:
                with self._answering(id):
                    if chat and documents:
                        self.set_chat_documents(id, documents)
                    sight = Sight(tuple(focus), tuple(mute), without or "")
                    sessions, session = yield from self._opened(id, job, so_far, sight)
                    steps = sessions.answer(session, question, generation, job)
                    answered = yield from sessions.engine.floor.during(steps)
            finally:
                if new and not answered and not self.store.messages(new):  # stopped before anything was said
                    self.store.delete_chat(new)

    def _opened(
        self, chat: str, job: "Job", so_far: Collection[str] = (), sight: Sight = Sight()
    ) -> "Generator[Reading, None, tuple[Sessions, Session]]":
        """Bring a chat into memory beside answers that run; chats are opened one after the other."""

        def steps() -> "Generator[Reading, None, tuple[Sessions, Session]]":
            sessions = self._sessions_of(chat)
            session = yield from sessions.open(chat, job, so_far)
            sessions.see(session, sight)
            return sessions, session

        while not self._opening.acquire(timeout=LOOK_S):
            if job.cancelled:
                raise CancelledError("stopped before the chat was opened")
        try:
            return (yield from self.engine().floor.during(steps()))
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
        since = self.stops
        self.engine()
        with self.claim("answering", since) as job:
            id = self.chat(chat).id
            sessions = self._sessions_of(id)
            session = yield from sessions.open(id, job, so_far)
            sessions.see(session, Sight(tuple(focus), tuple(mute)))  # first: a wrong name must not cost the answer
            question, after = self._question(session.chat)
            yield from sessions.answer(session, question, generation, job, after=after)

    def answer_without(
        self, evidence: str, *, generation: GenerationConfig = GenerationConfig()
    ) -> Iterator[Reading | Delta | Done]:
        """Answer the question of a passage again with that passage masked. Nothing is saved.

        Later regions were encoded after reading the passage, so traces of it stay: this is a mask, not a deletion.
        """
        since = self.stops
        self.engine()
        item, chat, message = self.store.evidence(evidence)
        with self.claim("answering", since) as job:
            sessions = self._sessions_of(chat, message)
            session = yield from sessions.open(chat, job)
            yield from sessions.answer_without(session, item, message, generation, job)

    def removal(self, evidence: str) -> Iterator[Reading | Removal]:
        """How much less likely an answer is with a passage of it masked; the Removal comes last. Nothing is saved."""
        from app.chat.removal import removal

        since = self.stops
        self.engine()
        item, chat, message = self.store.evidence(evidence)
        with self.claim("testing a passage", since) as job:
            sessions = self._sessions_of(chat, message)
            session = yield from sessions.open(chat, job)
            yield removal(sessions, session, item, message, job.cancel.is_set)

    def places(self, documents: Sequence[str]) -> list[tuple[str, str]]:
        """(what a list shows, what `ask` takes) of documents and their chapters, or folders and files."""
        found = [self.document(id) for id in documents]
        return [choice for info in found for choice in choices(info, self.store.parts(info.id))]

    def memory_line(self, chat: str | None = None) -> MemoryLine:
        """What is held in memory for the open chat, and on disk for all."""
        sessions = self._sessions()
        session, engine = sessions.session, sessions.engine
        cache = session.cache if session and (chat is None or session.chat == chat) else None
        memories = [*sessions.reader.memories, *([cache.tail] if cache else ())]
        host = sum(memory.host_bytes for memory in memories)
        return MemoryLine(
            tokens=cache.get_seq_length() if cache else 0,
            regions=cache.base_regions + cache.tail.regions if cache else 0,
            device_bytes=sum(memory.size_bytes for memory in memories) - host,
            host_bytes=host,
            disk_bytes=self.store.stats()["kv_bytes"],
            policy=engine.policy,
            positions=engine.description["positions"],
            backend=engine.description["backend"],
            codec=engine.shape.codec,
            **(cache.counts() if cache else {}),
        )


def returned(steps: Generator[Any, None, T]) -> T:
    """What a generator returns when it is run to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
