"""The model of the running app: loaded behind it, used under the policy of each chat, and exchanged for another one."""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from app.chat.fetching import Fetching, Offer
from app.errors import ConfigError, LecternError, ModelError, NotFoundError, StoreError
from app.models.shelf import Choice, KnownModels, LocalModel, add_folder, local_models, remove_folder
from app.records import ChatInfo, DocumentInfo, LoadStep, ModelState, OtherModel
from app.settings import POLICIES, Settings
from app.system import memory_bytes

if TYPE_CHECKING:
    from app.chat.sessions import Job, Sessions
    from app.runtime.engine import Engine
    from app.store.store import Store

log = logging.getLogger(__name__)
KEEP_SHARE = 4  # a quarter of the computer's memory may hold memories that were read
TELL_S = 0.25


class Loading:
    """Part of DocumentChat. Whoever loads holds `_load`; whoever exchanges the model has the claim too."""

    store: "Store"
    settings: Settings
    _engine: "Engine | None"
    _ready: "Sessions | None"  # under the policy that was used last
    _twins: "dict[str, Engine]"  # the model under policies other than the one at the start
    _failure: LecternError | None
    _load: threading.Lock
    _unloaded = False
    _speeds: Sequence[tuple[int, float]] = ()  # of models that were loaded here, and of the computer
    _measured: tuple[int, float] | None = None  # this computer, see `app.models.fits.measured`
    fetching: Fetching

    if TYPE_CHECKING:

        def claim(self, what: str) -> AbstractContextManager["Job"]: ...
        def chat(self, id: str) -> ChatInfo: ...
        def chats(self, query: str | None = None) -> list[ChatInfo]: ...
        def documents(self, policy: str = "") -> list[DocumentInfo]: ...

    def _load_once(self) -> None:
        """Load the model unless that was done or tried."""
        with self._load:
            if self._engine or self._failure:
                return
            self._unloaded = False
            try:
                self._use(self._loaded(self.settings))
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

    def _use(self, engine: "Engine") -> None:
        self._ready = self._sessions_over(engine)
        self._engine = engine

    def _sessions_over(self, engine: "Engine") -> "Sessions":
        from app.chat.reader import Reader
        from app.chat.sessions import Sessions

        return Sessions(self.store, Reader(self.store, engine, memory_bytes() // KEEP_SHARE))

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

    def _sessions(self) -> "Sessions":
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
        with self.claim(f"unloading {self.settings.model_name}"), self._load:
            self._let_go()
            self._unloaded = True

    @property
    def _recipe(self) -> str:
        """The engine's; until it is loaded the one used last, so that the library can be listed at once."""
        engine = self._engine
        return engine.recipe if engine else self.store.latest_recipe()

    # --- other models

    def models(self) -> list[LocalModel]:
        """The checkpoints and adapters on this computer, with what each has read. Never waits for the model."""
        loaded = self.loaded_choice()
        weights = {choice.id: made for made, choice in KnownModels(self.settings.folder).choices().items()}
        documents: Counter[str] = Counter()
        for digest, count in self.store.read_with().items():
            documents[self._weights(digest)] += count
        chats = Counter(self._weights(digest) for digest, _ in self.store.tails().values())
        found = []
        for model in local_models(self.settings, loaded):
            its = [weights[choice.id] for choice in model.choices if choice.id in weights]
            read, kept = (sum(counts[made] for made in its) for counts in (documents, chats))
            found.append(replace(model, documents=read, chats=kept))
        return self._with_fits(found, weights)

    def _with_fits(self, models: list[LocalModel], weights: Mapping[str, str]) -> list[LocalModel]:
        """The models with what can be said of memory and speed; nothing before the first one was loaded.

        Args:
            weights: fingerprint of the weights of each choice, where it is known.
        """
        if self._engine is None:
            return models
        from app.models import fits

        loaded, free, size = KnownModels(self.settings.folder).loaded, fits.free_memory(), fits.weight_itemsize()
        speeds = []
        for model in models:
            for made in (weights[choice.id] for choice in model.choices if choice.id in weights):
                speeds.append((model.parameters, loaded[made]["tokens_per_s"]))
        self._speeds = [*speeds, self._computer()]
        return [
            replace(m, fit=fits.fit(m.parameters, m.parameters * size, free, self._speeds))
            if m.usable and not m.loaded and m.kind == "checkpoint" and m.parameters
            else m
            for m in models
        ]

    def _computer(self) -> tuple[int, float]:
        from app.models import fits

        self._measured = self._measured or fits.measured()
        return self._measured

    def offers(self) -> list[Offer]:
        """Models that can be fetched by name; none before a model was loaded, for nothing can be said of them."""
        if self._engine is None:
            return []
        from app.models import fits
        from app.models.folder import cached

        have = [name for name, folder in cached() if (folder / "config.json").exists()]
        speeds = self._speeds or [self._computer()]
        return self.fetching.offers(fits.free_memory(), fits.weight_itemsize(), speeds, have)

    def loaded_choice(self) -> str:
        """Id of the Choice that is loaded; "" while none is."""
        return Choice(self.settings.model, self.settings.adapter).id if self._engine else ""

    def _weights(self, recipe: str) -> str:
        """Fingerprint of the model that a recipe belongs to; "" for a recipe of an older release."""
        return (self.store.recipe_parts(recipe) or {}).get("weights", "")

    def model_folders(self) -> list[str]:
        """Folders that the user added."""
        return KnownModels(self.settings.folder).folders

    def add_model_folder(self, folder: str) -> list[str]:
        """See `app.models.shelf.add_folder`."""
        return add_folder(self.settings.folder, folder)

    def remove_model_folder(self, folder: str) -> None:
        """See `app.models.shelf.remove_folder`."""
        remove_folder(self.settings.folder, folder)

    def switch_model(self, choice: str) -> Iterator[LoadStep]:
        """Exchange the loaded model for another. The old one is freed first; nothing stored is touched.

        Args:
            choice: id of a Choice, see `LocalModel.choices` and `OtherModel.choice`.

        Raises:
            NotFoundError: it is not found any more.
            ModelError: why it cannot be had, and whether the model before it goes on.
            LecternError: something else runs.
        """
        wanted = self._find(choice)
        settings = replace(self.settings, model=wanted.model, adapter=wanted.adapter, download=False)
        with self.claim(f"loading {settings.model_name}"):
            events: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
            worker = threading.Thread(target=self._work, args=(settings, events), name="model", daemon=True)
            worker.start()
            try:
                yield from _told(events, settings.model_name)
            finally:  # also when the page was closed: until a model stands, nobody else may have the claim
                worker.join()

    def _find(self, id: str) -> Choice:
        before = (Choice(e["model"], e["adapter"]) for e in KnownModels(self.settings.folder).loaded.values())
        listed = (choice for model in local_models(self.settings) for choice in model.choices)
        for choices in (before, listed):
            for choice in choices:
                if choice.id == id:
                    return choice
        raise NotFoundError(f"model {id}: is gone or cannot be used any more; look at the list of models again")

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
            self._use(engine)
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

    # --- memories of other models

    def other_model(self, chat: str) -> OtherModel | None:
        """The model that made a chat's memory where that is not the loaded one; None when none is loaded."""
        info = self.chat(chat)
        return self._others([info]).get(info.id)

    def other_models(self) -> dict[str, OtherModel]:
        """`other_model` of every chat that has one, by id. Never waits for the model."""
        return self._others(self.chats())

    def _others(self, chats: Sequence[ChatInfo]) -> dict[str, OtherModel]:
        engine, tails, weights = self._engine, self.store.tails(), cache(self._weights)
        if engine is None:
            return {}
        here = engine.recipe_parts["weights"]
        foreign = [info for info in chats if info.id in tails and weights(tails[info.id][0]) not in ("", here)]
        if not foreign:
            return {}
        known = KnownModels(self.settings.folder)
        choices, speed = known.choices(), engine.tokens_per_s or known.loaded.get(here, {}).get("tokens_per_s", 0.0)
        read_here = cache(lambda policy: {info.id: info for info in self.documents(policy)})
        read_there = cache(lambda recipe: {info.id: info.tokens for info in self.store.documents(recipe)})
        found = {}
        for info in foreign:
            recipe, tokens = tails[info.id]
            documents, lengths = read_here(info.policy or self.policy_of()), read_there(recipe)
            unread = [documents[id] for id in info.documents if id in documents and documents[id].state != "read"]
            tokens += sum(document.tokens or lengths.get(document.id, 0) for document in unread)
            made = weights(recipe)
            name = known.loaded.get(made, {}).get("name") or info.model or "another model"
            choice = choices[made].id if made in choices else ""
            found[info.id] = OtherModel(name, engine.name, choice, tokens, tokens / speed if speed else 0.0)
        return found

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
        kept = self.chat(chat).policy if chat else ""
        return kept or (self._engine.policy if self._engine else self.settings.policy)

    def set_chat_policy(self, chat: str, policy: str) -> None:
        """Read and answer a chat under another policy from its next question on.

        Its documents are read then if they were not read under that policy, and its turns are run again; the answers
        stay as they were given, and so do the documents' memories under other policies.

        Raises:
            ConfigError: the policy is not known, or cannot be had with this model and these settings.
        """
        id = self.chat(chat).id
        self.engine_under(policy)
        self.store.set_chat_policy(id, policy)

    def _recipe_under(self, policy: str) -> str:
        """What memories under a policy are made by; "" stands for the policy of the start."""
        if not policy or self._engine is None:
            return self._recipe
        try:
            return self.engine_under(policy).recipe
        except ConfigError:  # nothing can be read under it
            return ""

    def _sessions_under(self, policy: str) -> "Sessions":
        """What reads and answers under a policy. To be called inside a claim: it lets go of what others hold in RAM."""
        sessions, engine = self._sessions(), self.engine_under(policy)
        if sessions.engine is not engine:
            sessions = self._ready = self._sessions_over(engine)
        return sessions

    def _sessions_of(self, chat: str, message: int | None = None) -> "Sessions":
        """What answers in a chat, or what gave one of its answers: passages are found by the regions of its policy.

        Raises:
            InputError: another model gave that answer.
        """
        from app.chat.sessions import check_model

        stats = self.store.message_stats(message) if message else {}
        check_model(stats, self.engine())
        made = stats.get("policy")
        return self._sessions_under(made if made in POLICIES else self.policy_of(chat))


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
