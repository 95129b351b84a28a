"""The model of the running app: loaded behind it, used under the policy of each chat, and exchanged for another one."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from app.chat.jobs import Jobs
from app.errors import ConfigError, LecternError, ModelError, NotFoundError, StoreError
from app.models.shelf import Choice, KnownModels, local_models
from app.records import LoadStep, MemoryLine, ModelState
from app.settings import POLICIES, Settings
from app.system import memory_bytes

if TYPE_CHECKING:
    from app.chat.sessions import Sessions
    from app.runtime.engine import Engine
    from app.store.store import Store

log = logging.getLogger(__name__)
KEEP_SHARE = 4  # a quarter of the computer's memory may hold memories that were read
TELL_S = 0.25


class LoadedModel:
    """Whoever loads holds `_load`; whoever exchanges the model has the claim too.

    Attributes:
        settings: which model it is, and how it is loaded.
    """

    def __init__(self, settings: Settings, store: "Store", jobs: Jobs) -> None:
        self.settings, self._store, self._jobs = settings, store, jobs
        self._engine: Engine | None = None
        self._ready: Sessions | None = None  # under the policy that was used last
        self._twins: dict[str, Engine] = {}  # the model under policies other than the one at the start
        self._failure: LecternError | None = None
        self._load = threading.Lock()
        self._unloaded = False

    def start(self) -> None:
        """Begin to load it; otherwise the first need of it does."""
        threading.Thread(target=self._load_once, name="model", daemon=True).start()

    def _load_once(self) -> None:
        """Load the model unless that was done or tried."""
        with self._load:
            if self._engine or self._failure:
                return
            self._unloaded = False
            try:
                self.use(self._loaded(self.settings))
            except LecternError as error:
                self._failure = error
            except Exception as error:  # kept for whoever asks: this may run where nobody sees it
                self._failure = _unforeseen(self.settings, error)

    def _loaded(self, settings: Settings, say: Callable[[str], None] | None = None) -> "Engine":
        """A new engine; its fingerprint is noted, so that it need not be computed again."""
        from app.runtime import load
        from app.runtime.load import load_engine

        known = KnownModels(settings.folder)
        engine = load_engine(settings, known.digests, say)
        load.settle()
        self._note(known, settings, engine)
        return engine

    def _note(self, known: KnownModels, settings: Settings, engine: "Engine") -> None:
        known.remember(settings, engine.recipe_parts["weights"], engine.tokens_per_s)
        try:
            known.save()
        except StoreError as error:  # the model works without it
            log.warning("%s", error)

    def use(self, engine: "Engine") -> None:
        """Answer with a model that is loaded already."""
        self._ready = sessions_over(self._store, engine)
        self._engine, self._jobs.before = engine, engine.floor.first

    def follow(self, other: "LoadedModel") -> None:
        """Use the model that another data folder has now."""
        engine = other.engine()
        if self._engine is not engine:
            self.settings = replace(self.settings, model=other.settings.model, adapter=other.settings.adapter)
            self._twins.clear()
            self.use(engine)

    @property
    def loaded(self) -> "Engine | None":
        """The engine if it is loaded; never waits."""
        return self._engine

    def engine(self) -> "Engine":
        """The engine, once it is loaded.

        Raises:
            ModelError, ConfigError: why it could not be loaded.
        """
        self._load_once()
        engine = self._engine
        if engine is None:
            raise self._failure or ModelError("the model is being exchanged; try again in a moment")
        return engine

    def sessions(self) -> "Sessions":
        """What answers; waits for the model like `engine`."""
        self.engine()
        assert self._ready is not None
        return self._ready

    def model_state(self) -> ModelState:
        """What can be said of the model now; never waits."""
        engine, failure = self._engine, self._failure
        if engine is not None:
            facts = engine.description
            return ModelState("ready", **{k: v for k, v in facts.items() if k in ModelState.__annotations__})
        if failure:
            return ModelState("failed", str(failure), self.settings.model_name)
        return ModelState("unloaded" if self._unloaded else "loading", name=self.settings.model_name)

    def unload_model(self) -> None:
        """Free the memory that the model takes; the next question or reading loads it again.

        Raises:
            InUseError: it is at work.
        """
        with self._jobs.claim(f"unloading {self.settings.model_name}"), self._load:
            self._let_go()
            self._unloaded = True

    @property
    def notes(self) -> list[str]:
        """What concerns a reading; it moves to the note of the next answer."""
        return list(self._ready.reader.notes) if self._ready else []

    def forget(self, document: str | None = None) -> None:
        """Let go of the chat that is open, and of a document that was read, as far as they are in RAM."""
        if self._ready:
            self._ready.session = None
            if document:
                self._ready.reader.forget(document)

    @property
    def recipe(self) -> str:
        """The engine's; until it is loaded the one used last, so that the library can be listed at once."""
        engine = self._engine
        return engine.recipe if engine else self._store.latest_recipe()

    def switch_model(self, choice: str) -> Iterator[LoadStep]:
        """Exchange the loaded model for another. The old one is freed first; nothing stored is touched.

        Args:
            choice: id of a Choice, see `LocalModel.choices` and `OtherModel.choice`.

        Raises:
            NotFoundError: it is not found any more.
            ModelError: why it cannot be had, and whether the model before it goes on.
            LecternError: something else runs.
        """
        wanted = find(self.settings, choice)
        settings = replace(self.settings, model=wanted.model, adapter=wanted.adapter, download=False)
        with self._jobs.claim(f"loading {settings.model_name}"):
            events: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
            worker = threading.Thread(target=self._work, args=(settings, events), name="model", daemon=True)
            worker.start()
            try:
                yield from _told(events, settings.model_name)
            finally:  # also when the page was closed: until a model stands, nobody else may have the claim
                worker.join()

    def _work(self, settings: Settings, events: "queue.SimpleQueue[str | BaseException | None]") -> None:
        try:
            with self._load:
                self._exchange(settings, events.put)
            events.put(None)
        except BaseException as error:
            events.put(error)

    def _exchange(self, settings: Settings, say: Callable[[str], None]) -> None:
        """Load another model in place of the loaded one, or go back to it."""
        from app.runtime.load import check

        say("looking at its files")
        before = self.settings, self._failure
        try:
            check(settings)  # what is wrong already here costs the old model nothing
        except LecternError as error:
            raise ModelError(self._with_comfort(error)) from error
        self._let_go()
        self.settings = settings
        problem = self._try(settings, say)
        if problem is None:
            return
        self.settings, self._failure = before
        self._let_go(keep_failure=True)
        if self._failure is None:
            say(f"loading {self.settings.model_name} again")
            self._failure = self._try(self.settings, say)
        raise ModelError(self._with_comfort(problem))

    def _try(self, settings: Settings, say: Callable[[str], None]) -> LecternError | None:
        """Load and use a model; returns why that failed, with nothing that would keep the half-loaded one in memory."""
        from app.runtime import load

        try:
            engine = self._loaded(settings, say)
            say("trying it out")
            load.first_try(engine)
            self.use(engine)
        except LecternError as error:
            return type(error)(str(error))
        except Exception as error:
            return _unforeseen(settings, error)
        return None

    def _with_comfort(self, problem: LecternError) -> str:
        """What went wrong, and what stands now."""
        name = self.settings.model_name
        if self._engine is not None:
            return f"{problem}. {name} goes on."
        return f"{problem}. {name} is not loaded either: {self._failure}" if self._failure else str(problem)

    def _let_go(self, *, keep_failure: bool = False) -> None:
        """Free the model and all that was read with it, as far as it is in RAM."""
        from app.runtime import load

        if self._engine is not None:
            self._note(KnownModels(self.settings.folder), self.settings, self._engine)
        self._engine = self._ready = None
        self._twins.clear()
        if not keep_failure:
            self._failure = None
        load.give_back()

    # --- policies: each has memories of its own on the disk; those of one at a time are in RAM

    def engine_under(self, policy: str) -> "Engine":
        """The model under a policy.

        Raises:
            ConfigError: the policy is not known, or cannot be had with this model and these settings.
        """
        from app.runtime import policies

        engine = self.engine()
        if policy == engine.policy:
            return engine
        if policy not in self._twins:
            self._twins[policy] = engine.under(policies.of(replace(self.settings, policy=policy)))
        return self._twins[policy]

    def policy_of(self, chat: str | None = None) -> str:
        """The policy of a chat, or the one that a new chat gets: that of the start. Never waits for the model."""
        kept = self._store.chat(chat).policy if chat else ""
        return kept or (self._engine.policy if self._engine else self.settings.policy)

    def recipe_under(self, policy: str) -> str:
        """What memories under a policy are made by; "" stands for the policy of the start."""
        if not policy or self._engine is None:
            return self.recipe
        try:
            return self.engine_under(policy).recipe
        except ConfigError:  # nothing can be read under it
            return ""

    def sessions_under(self, policy: str) -> "Sessions":
        """What reads and answers under a policy. To be called inside a claim: it lets go of what others hold in RAM."""
        sessions, engine = self.sessions(), self.engine_under(policy)
        if sessions.engine is not engine:
            sessions = self._ready = sessions_over(self._store, engine)
        return sessions

    def sessions_of(self, chat: str, message: int | None = None) -> "Sessions":
        """What answers in a chat, or what gave one of its answers: passages are found by the regions of its policy.

        Raises:
            InputError: another model gave that answer.
        """
        from app.chat.sessions import check_model

        stats = self._store.message_stats(message) if message else {}
        check_model(stats, self.engine())
        made = stats.get("policy")
        return self.sessions_under(made if made in POLICIES else self.policy_of(chat))

    def memory_line(self, chat: str | None = None) -> MemoryLine:
        """What is held in memory for the open chat, and on disk for all."""
        sessions = self.sessions()
        session, engine = sessions.session, sessions.engine
        cache = session.cache if session and (chat is None or session.chat == chat) else None
        memories = [*sessions.reader.memories, *([cache.tail] if cache else ())]
        host = sum(memory.host_bytes for memory in memories)
        return MemoryLine(
            tokens=cache.get_seq_length() if cache else 0,
            regions=cache.base_regions + cache.tail.regions if cache else 0,
            device_bytes=sum(memory.size_bytes for memory in memories) - host,
            host_bytes=host,
            disk_bytes=self._store.stats()["kv_bytes"],
            policy=engine.policy,
            positions=engine.description["positions"],
            backend=engine.description["backend"],
            codec=engine.shape.codec,
            **(cache.counts() if cache else {}),
        )


def sessions_over(store: "Store", engine: "Engine") -> "Sessions":
    """What reads and answers with an engine."""
    from app.chat.reader import Reader
    from app.chat.sessions import Sessions

    return Sessions(store, Reader(store, engine, memory_bytes() // KEEP_SHARE))


def find(settings: Settings, id: str) -> Choice:
    """A Choice by its id.

    Raises:
        NotFoundError: it is not found any more.
    """
    before = (Choice(e["model"], e["adapter"]) for e in KnownModels(settings.folder).loaded.values())
    listed = (choice for model in local_models(settings) for choice in model.choices)
    for choices in (before, listed):
        for choice in choices:
            if choice.id == id:
                return choice
    raise NotFoundError(f"model {id}: is gone or cannot be used any more; look at the list of models again")


def _unforeseen(settings: Settings, error: Exception) -> ModelError:
    log.error("the model cannot be loaded", exc_info=error)
    return ModelError(f"{settings.model}: cannot be loaded ({error}); see the log")


def _told(events: "queue.SimpleQueue[str | BaseException | None]", name: str) -> Iterator[LoadStep]:
    """What a loading thread says, and now and then how long it takes already."""
    began, step = time.monotonic(), "waiting"
    while True:
        try:
            event = events.get(timeout=TELL_S)
        except queue.Empty:
            event = step
        if event is None:
            return
        if isinstance(event, BaseException):
            raise event
        step = event
        yield LoadStep(name, step, time.monotonic() - began)
