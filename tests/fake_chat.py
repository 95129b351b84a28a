"""A DocumentChat without a model: in memory, deterministic, streaming. For tests of UI, server and CLI."""

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app.chat.coverage import Coverage, coverage
from app.chat.allowance import Allowance
from app.chat.fetching import Fetching, Offer
from app.chat.focus import Sight, choices
from app.chat.library import DiskSpace
from app.chat.suggestions import candidates
from app.chat.whole_text import WholeText
from app.chat.jobs import Turns
from app.errors import CancelledError, ConfigError, InputError, InUseError, ModelError, NotFoundError, PasswordError
from app.ingest.files import never
from app.ingest.pdf import load_pdf
from app.ingest.picture import as_pdf
from app.ingest.page_image import Located, Pages
from app.ingest.spans import label
from app.ingest.stream import Step
from app.memory.config import GenerationConfig
from app.models.hub import Fetched
from app.models.shelf import SHIPS, Choice, LocalModel
from app.records import (
    MARK_END,
    MARK_START,
    AnswerSettings,
    AnswerStats,
    ChatHit,
    ChatInfo,
    Delta,
    Document,
    DocumentInfo,
    Done,
    Evidence,
    LoadStep,
    Look,
    MemoryLine,
    Message,
    ModelState,
    OtherModel,
    Part,
    Reading,
    Removal,
    Versions,
    Working,
)
from app.settings import POLICIES, Settings
from app.tasks.whole import Task, chosen, recognise

PART_CHARS = 6000  # higher than the viewer: its passages have to be scrolled to
PASSWORD = "open sesame"
ENDLESS, ENDLESS_S = "Endless", 0.05  # begins the title of a document that is read to 60% and no further
UNSAID, REPEATS = "unsaid", "again and again"  # in a question: it is refused, or its answer repeats itself
NO_ANSWER = "The text does not say."
KNOWS = {
    "on_documents": 0.31,
    "on_chat": 0.02,
    "on_question": 0.2,
    "looked_beyond": 0.06,
    "source": "text",
    "held": 2.5,
}
CREATED = "2026-01-02 03:04:05"


def model_state(**changes: Any) -> ModelState:
    """The small model that ships, ready; `changes` are fields of ModelState."""
    facts = {"state": "ready", "name": "lectern-small", "trained_tokens": 2048, "budget_tokens": 2048}
    facts |= {"device": "cpu", "dtype": "float32", "backend": "reference", "policy": "keep-all", "demonstration": True}
    return ModelState(**(facts | changes))


def local_models() -> list[LocalModel]:
    """A model of each sort: loaded, another checkpoint, one that will not fit, an adapter, a broken folder."""

    def checkpoint(name: str, place: str, size: int, **facts: str) -> LocalModel:
        path = Path("/models") / name
        return LocalModel(name, path, place, "checkpoint", facts, size_bytes=size, choices=(Choice(str(path)),))

    length = {"trained length": "2,048 tokens"}
    small = checkpoint("lectern-small", SHIPS, 10_101_248, parameters="2,519,424", dtype="float32", **length)
    middle = checkpoint("harbour-1b", "in /models", 2_471_645_608, parameters="1,235,814,400", dtype="bfloat16")
    heavy = checkpoint("heavy-70b", "in /models", 141_107_412_000, parameters="70,553,706,496", dtype="bfloat16")
    tuned = LocalModel(
        "harbour-sf", Path("/models/harbour-sf"), "in /models", "adapter",
        {"type": "LoRA adapter", "rank": "8, alpha 16", "targets": "k_proj, o_proj"}, size_bytes=6_820_000,
        choices=tuple(Choice(base.choices[0].model, "/models/harbour-sf") for base in (small, middle)),
    )  # fmt: skip
    reason = "/models/half-copied: weights are missing (model-00002-of-00002.safetensors); the folder is incomplete"
    broken = LocalModel(
        "half-copied", Path("/models/half-copied"), "in /models", "checkpoint", usable=False, reasons=(reason,)
    )
    return [replace(small, loaded=True), middle, heavy, tuned, broken]


class FakeLock:
    """Remembers the URL that a server announces."""

    def __init__(self) -> None:
        self.url: str | None = None

    def set_url(self, url: str) -> None:
        self.url = url


@dataclass
class _Chat:
    """`branches`: by a number of messages the versions of what comes after them, the shown one too."""

    info: ChatInfo
    messages: list[Message] = field(default_factory=list)
    branches: dict[int, list[list[Message]]] = field(default_factory=dict)

    def keep(self, after: int) -> None:
        """Keep what comes after so many messages as a version, in its place if it is one."""
        held, shown = self.branches.setdefault(after, []), self.messages[after:]
        known = next((number for number, old in enumerate(held) if old[0].id == shown[0].id), len(held))
        held[known : known + 1] = [shown]

    def show(self, after: int, messages: Sequence[Message]) -> None:
        self.messages = [*self.messages[:after], *messages]
        self.branches = {place: held for place, held in self.branches.items() if place <= after}


class FakeStore:
    """The part of the store that the UI uses: evidence and passkey runs."""

    def __init__(self) -> None:
        self.passages: dict[str, tuple[Evidence, str, int]] = {}
        self.runs: list[dict[str, Any]] = []
        self.kept_notes: dict[tuple[str, str, str], dict[int, Any]] = {}
        self.texts: dict[str, tuple[DocumentInfo, Document]] = {}

    def parts(self, id: str) -> list[Part]:
        return list(self.texts[id][1].parts)

    def part_notes(self, document: str, task: str, recipe: str) -> dict[int, Any]:
        return dict(self.kept_notes.get((document, task, recipe), {}))

    def add_part_notes(self, document: str, task: str, recipe: str, values: Mapping[int, Any]) -> None:
        self.kept_notes.setdefault((document, task, recipe), {}).update(values)

    def line_of(self, id: str, index: int) -> int:
        return 1 + sum(part.text.count("\n") for part in self.texts[id][1].parts[: index - 1])

    def part(self, id: str, index: int) -> Part:
        return self.found(id)[1].parts[index - 1]

    def outline(self, id: str) -> list[tuple[int, str, str | None]]:
        return [(part.index, part.label, part.chapter) for part in self.found(id)[1].parts]

    def search_parts(self, query: str, limit: int = 20, document: str | None = None) -> list[tuple[str, int, str, str]]:
        found = []
        for key, (_, source) in self.texts.items():
            for part in source.parts:
                if query.lower() in part.text.lower() and document in (None, key):
                    found.append((key, part.index, part.label, part.text[:80]))
        return found[:limit]

    def found(self, document_id: str) -> tuple[DocumentInfo, Document]:
        if document_id not in self.texts:
            raise NotFoundError(f"document {document_id}: not in the library")
        return self.texts[document_id]

    def finish(self) -> int:
        return 0

    def evidence(self, evidence_id: str) -> tuple[Evidence, str, int]:
        if evidence_id not in self.passages:
            raise NotFoundError(f"evidence {evidence_id}: not known; it may belong to a deleted chat")
        return self.passages[evidence_id]

    def start_passkey_run(self, model: str, policy: str, settings: dict[str, Any]) -> int:
        run = {"id": len(self.runs) + 1, "created": CREATED, "model": model, "policy": policy}
        self.runs.append(run | {"settings": settings, "cells": []})
        return run["id"]

    def add_passkey_cell(self, run: int, tokens: int, depth: float, right: int, trials: int) -> None:
        cell = {"tokens": tokens, "depth": depth, "right": right, "trials": trials}
        self.runs[run - 1]["cells"].append(cell)

    def passkey_runs(self, limit: int = 20) -> list[dict[str, Any]]:
        return self.runs[::-1][:limit]


def _document(path: Path, name: str, password: str | None, ocr_folder: Path | None = None) -> Document:
    data = path.read_bytes()
    if "locked" in name and password != PASSWORD:
        raise PasswordError(f"{name}: encrypted; {'give its password' if password is None else 'wrong password'}")
    if data.startswith(b"%PDF-"):
        return load_pdf(path, name, ocr_folder=ocr_folder)
    text = data.decode("utf-8", errors="replace")
    if not text.strip():
        raise InputError(f"{name}: empty; there is nothing to read")
    if name.endswith((".zip", ".py")):
        lines = "\n".join([f"src/{Path(name).stem}.py (Python)", *text.splitlines()])
        parts = [Part(1, f"src/{Path(name).stem}.py", lines, first_line=0)]
        kind = "code"
    else:
        pieces = [text[i : i + PART_CHARS] for i in range(0, len(text), PART_CHARS)]
        parts = [Part(i, str(i), piece, chapter="Chapter I") for i, piece in enumerate(pieces, 1)]
        kind = "pdf" if name.endswith(".pdf") else "text"
    return Document(Path(name).stem, kind, hashlib.sha256(data).hexdigest(), tuple(parts))


class FakeDocumentChat:
    """In-memory stand-in with the interface of DocumentChat and of all its parts.

    Attributes:
        told: what `notes` says.
        answer_note: what the next answers say of their memory.
        pace_s: pause per streamed word and per reading step, so that a browser test can see the states between.
    """

    guest = False

    def __init__(self, home: Path, *, pace_s: float = 0.0, model: ModelState | None = None) -> None:
        self.settings = Settings(home=home)
        self.policies: list[str] = []  # asked for
        self.lock = FakeLock()
        self.store = FakeStore()
        self.jobs = self.model = self.shelf = self.library = self.pages = self.saved = self.transfers = self.trials = (
            self
        )
        self.pace_s = pace_s
        self.state = model or model_state()
        self.fetching = Fetching(self._fetched, offline=lambda: self.offline)
        self.offline = ""  # why nothing can be fetched
        self.asked: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.pinned: set[str] = set()
        self._adding_stops = self.stops = 0
        self.encodings: list[str | None] = []  # asked for
        self.files: dict[str, Path] = {}  # of PDFs, by document
        self.drawer = Pages()
        self.undecoded: set[str] = set()  # texts that can be decoded anew
        self.answer_note = ""
        self._documents = self.store.texts
        self._done_tokens: dict[str, int] = {}
        self._also_read: set[tuple[str, str]] = set()  # (document, policy)
        self._chats: dict[str, _Chat] = {}
        self.allowance = Allowance()
        self._stop = threading.Event()
        self._turns = Turns()
        self._busy: str | None = None
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        self._next_message = 0
        self._models = local_models()
        self.answers: dict[str | None, AnswerSettings] = {None: AnswerSettings()}
        self._folders: list[str] = []

    # Model

    def models(self) -> list[LocalModel]:
        counts = [chat.info.model for chat in self._chats.values() if chat.messages]
        return [replace(model, chats=counts.count(model.name)) for model in self._models]

    def loaded_choice(self) -> str:
        return next((choice.id for m in self._models if m.loaded for choice in m.choices if self._is(choice)), "")

    def _is(self, choice: Choice) -> bool:
        return Settings(model=choice.model, adapter=choice.adapter).model_name == self.state.name

    def model_folders(self) -> list[str]:
        return list(self._folders)

    def add_model_folder(self, folder: str) -> list[str]:
        if "models" not in folder:
            raise InputError(f"{folder}: no such folder on this computer; give the full path")
        self._folders = [*dict.fromkeys([*self._folders, folder])]
        return ["harbour-1b"]

    def remove_model_folder(self, folder: str) -> None:
        if folder not in self._folders:
            raise InputError(f"{folder}: is not among the added folders")
        self._folders.remove(folder)

    def switch_model(self, choice_id: str) -> Iterator[LoadStep]:
        found = [choice for model in self._models for choice in model.choices if choice.id == choice_id]
        if not found:
            raise NotFoundError(f"model {choice_id}: is gone or cannot be used any more")
        name = Settings(model=found[0].model, adapter=found[0].adapter).model_name
        before, self.state = self.state, replace(self.state, state="loading", name=name)
        self._busy = f"loading {name}"
        try:
            for number, step in enumerate(("looking at its files", "loading its weights", "trying it out")):
                self._pause()
                yield LoadStep(name, step, 2.0 * number)
        finally:
            self._busy = None
            self.state = before
        if name == "heavy-70b":
            raise ModelError(f"{name}: needs about 131.4 GiB for its weights, 2.0 GiB are free. {before.name} goes on.")
        self.state = model_state(name=name, demonstration=name == "lectern-small")
        self._models = [
            replace(model, loaded=any(self._is(choice) for choice in model.choices)) for model in self._models
        ]

    def unload_model(self) -> None:
        self.state = replace(self.state, state="unloaded")

    def offers(self) -> list[Offer]:
        return self.fetching.offers(8 * 10**9, 4, [(10**9, 100.0)])

    def _fetched(self, name: str, stopped: Callable[[], bool]) -> Iterator[Fetched]:
        for done in (0, 400_000_000, 988_000_000):
            self._pause()
            if stopped():
                raise CancelledError(f"fetching {name} was stopped; what came is kept")
            yield Fetched(done, 988_000_000)

    def other_model(self, chat_id: str) -> OtherModel | None:
        return self.other_models().get(chat_id)

    def other_models(self) -> dict[str, OtherModel]:
        found = {}
        for key, chat in self._chats.items():
            if chat.messages and chat.info.model != self.state.name:
                choices = [c.id for m in self._models for c in m.choices if Path(c.model).name == chat.info.model]
                choice = next(iter(choices), "")
                found[key] = OtherModel(chat.info.model, self.state.name, choice, 12_345, 75.0)
        return found

    def model_state(self) -> ModelState:
        return self.state

    def engine_under(self, policy: str) -> object:
        self.policies.append(policy)
        if policy not in POLICIES:
            raise ConfigError(f"--policy {policy}: not known")
        return self.engine()

    def policy_of(self, chat: str | None = None) -> str:
        return (self._kept(chat).info.policy if chat else "") or self.state.policy

    def set_chat_policy(self, chat_id: str, policy: str) -> None:
        self.engine_under(policy)
        chat = self._kept(chat_id)
        chat.info = replace(chat.info, policy=policy)

    def engine(self) -> object:
        if self.state.state == "unloaded":
            self.state = replace(self.state, state="ready")
        if self.state.state == "failed":
            raise ModelError(self.state.detail)
        return object()

    def close(self) -> None:
        self.stop()
        self.drawer.close()

    def stop(self) -> None:
        self.stops += 1
        self._stop.set()

    def busy(self) -> str | None:
        return self._busy

    @contextmanager
    def claim(
        self,
        what: str,
        since: int | None = None,
        *,
        behind: bool = False,
        beside: bool = False,
        cancel: threading.Event | None = None,
    ) -> Iterator[SimpleNamespace]:
        kind = "behind" if behind else "alone"
        if not self._turns.take(kind, end=self._stop.set, wait_s=0 if behind else 5):
            raise InUseError(f"busy: {self._busy}")
        self._stop.clear()
        if since is not None and self.stops != since:
            self._stop.set()
        self._busy = what
        try:
            yield SimpleNamespace(cancel=self._stop)
        finally:
            self._busy = None
            self._turns.give_back(kind)

    def notes(self) -> list[str]:
        return list(self.told)

    # Documents

    def add_document(
        self,
        path: Path,
        *,
        password: str | None = None,
        name: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
    ) -> DocumentInfo:
        name = name or Path(path).name
        with as_pdf(Path(path), name, never) as made:
            if made:
                return self._added(made, _document(made, f"{name}.pdf", None, self.settings.folder))
        return self._added(Path(path), _document(Path(path), name, password))

    def _added(self, path: Path, document: Document) -> DocumentInfo:
        key = document.sha256[:12]
        if key not in self._documents:
            tokens = sum(len(part.text.split()) for part in document.parts)
            about = (key, document.title, document.kind, len(document.parts), tokens, "new", "", CREATED)
            info = DocumentInfo(*about, notes=document.notes)
            self._documents[key] = (info, document)
            if document.keep_file:
                self.files[key] = Path(shutil.copy(path, self.settings.folder / f"{key}.pdf"))
        return self._documents[key][0]

    def adding(
        self,
        path: Path,
        *,
        password: str | None = None,
        name: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
    ) -> Generator[Step, None, DocumentInfo]:
        stops = self._adding_stops
        for done in range(1, 4):
            yield Step("opening it", done, 4)
            time.sleep(self.pace_s)
            if self._adding_stops != stops:
                raise CancelledError("opening it was cancelled")
        self.encodings.append(encoding)
        return self.add_document(path, password=password, name=name, ocr=ocr)

    def stop_adding(self) -> None:
        self._adding_stops += 1

    def documents(self, policy: str = "") -> list[DocumentInfo]:
        """Under a policy other than the one at the start nothing is read until an answer was given under it."""
        known = [info for info, _ in reversed(self._documents.values())]
        if policy in ("", self.state.policy):
            return known
        return [info if (info.id, policy) in self._also_read else replace(info, state="new") for info in known]

    def document(self, document_id: str) -> DocumentInfo:
        return self.store.found(document_id)[0]

    def coverage(
        self, document: str, evidence: Sequence[Evidence] = (), stats: Mapping[str, Any] | None = None
    ) -> Coverage:
        info, source = self._documents[document]
        done = {part.index: 1.0 for part in source.parts} if info.state == "read" else {}
        whole = (stats or {}).get("whole")
        worked = self.store.part_notes(document, whole, "") if whole else ()
        return coverage(info, source.parts, done, evidence=evidence, stats=stats, worked=worked)

    def suggestions(self, documents: Sequence[str]) -> list[str]:
        """What a model that answers everything would keep."""
        found = [q.question for id in documents[:1] for q in candidates(self.store.found(id)[1].parts)]
        return found[:4]

    def untried(self, document: str) -> bool:
        return False

    def delete_document(self, document_id: str) -> None:
        self.store.found(document_id)
        with self.claim("deleting a document"):
            del self._documents[document_id]
            self._done_tokens.pop(document_id, None)

    def page_image(self, document: str, part: int) -> bytes | None:
        return self.drawer.draw(self.files[document], part - 1) if document in self.files else None

    def locate(self, document: str, part: Part, start: int, end: int) -> Located | None:
        if document not in self.files:
            return None
        return self.drawer.locate(self.files[document], part.index - 1, part.text, start, end)

    def choosable(self) -> set[str]:
        return self.undecoded & self._documents.keys()

    def decode_again(self, document: str, encoding: str | None) -> Generator[Step, None, DocumentInfo]:
        yield Step("opening it")
        self.encodings.append(encoding)
        return self.document(document)

    def read(self, document_id: str, policy: str = "", *, behind: bool = False) -> Iterator[Reading]:
        self.engine()
        self.store.found(document_id)
        since = self.stops
        with self.claim(f"reading {self.document(document_id).title}", since, behind=behind):
            yield from self._read(document_id, policy)

    def _read(self, document_id: str, policy: str = "") -> Iterator[Reading]:
        info, document = self.store.found(document_id)
        self._also_read.add((document_id, policy))
        if info.state == "read":
            yield self._reading(info, document, info.tokens, info.tokens)
            return
        reused = done = self._done_tokens.get(document_id, 0)
        endless = info.title.startswith(ENDLESS)
        try:
            while done < info.tokens:
                time.sleep(ENDLESS_S if endless else self.pace_s)
                if self._stop.is_set():
                    raise CancelledError(f"reading {info.title}: stopped; what was read is kept")
                done = min(6 * info.tokens // 10 if endless else info.tokens, done + max(1, info.tokens // 40))
                self._done_tokens[document_id] = done
                self._set_state(document_id, "reading")
                yield self._reading(info, document, done, reused)
            self._set_state(document_id, "read")
        except (CancelledError, GeneratorExit):
            if document_id in self._documents:
                self._set_state(document_id, "new", f"stopped at {100 * done // info.tokens}%")
            raise

    def _set_state(self, document_id: str, state: Any, detail: str = "") -> None:
        info, document = self._documents[document_id]
        self._documents[document_id] = (replace(info, state=state, detail=detail), document)

    def _reading(self, info: DocumentInfo, document: Document, done: int, reused: int) -> Reading:
        part = document.parts[min(len(document.parts) - 1, done * len(document.parts) // max(1, info.tokens))]
        return Reading(info.id, info.title, done, info.tokens, 4000.0, part.label, reused, (info.tokens - done) / 4000)

    # Chats

    def new_chat(self, documents: Sequence[str] = (), policy: str = "", system: str = "") -> str:
        key = f"c{len(self._chats) + 1}"
        info = ChatInfo(key, "New chat", tuple(documents), 0, self.state.name, CREATED)
        info = replace(info, policy=policy or self.state.policy, system=system)
        self._chats[key] = _Chat(info)
        return key

    def chats(self, query: str | None = None) -> list[ChatInfo]:
        def fits(chat: _Chat) -> bool:
            text = " ".join([chat.info.title, *(message.content for message in chat.messages)])
            return not query or query.lower() in text.lower()

        return [chat.info for chat in reversed(self._chats.values()) if fits(chat)]

    def search_chats(self, query: str, limit: int = 30) -> list[ChatHit]:
        def marked(text: str) -> str:
            return re.sub(re.escape(query), lambda word: f"{MARK_START}{word[0]}{MARK_END}", text, flags=re.IGNORECASE)

        found = []
        for info in self.chats(query):
            texts = [m.content for m in self.messages(info.id) if query.lower() in m.content.lower()]
            found.append(ChatHit(info.id, marked(info.title), marked("".join(texts[:1])[:90]), len(texts)))
        return found[:limit]

    def chat(self, chat_id: str) -> ChatInfo:
        return self._kept(chat_id).info

    def messages(self, chat_id: str) -> list[Message]:
        return list(self._kept(chat_id).messages)

    def answer_settings(self, chat: str | None = None) -> AnswerSettings:
        own = self.answers.get(chat, self.answers[None])
        return replace(own, system=self._kept(chat).info.system) if chat else own

    def set_answer_settings(self, chat_id: str | None, settings: AnswerSettings) -> None:
        GenerationConfig(settings.temperature, settings.top_p, settings.max_new_tokens)
        self.answers[chat_id] = settings
        if chat_id:
            kept = self._kept(chat_id)
            kept.info = replace(kept.info, system=settings.system)

    def rename_chat(self, chat_id: str, title: str) -> None:
        chat = self._kept(chat_id)
        chat.info = replace(chat.info, title=title)

    def delete_chat(self, chat_id: str) -> None:
        self._kept(chat_id)
        del self._chats[chat_id]

    def set_chat_documents(self, chat_id: str, documents: Sequence[str]) -> None:
        chat = self._kept(chat_id)
        chat.info = replace(chat.info, documents=tuple(documents))

    def fork(self, chat_id: str, turn: int | None = None) -> str:
        kept = self._kept(chat_id)
        turns = len(kept.messages) // 2 if turn is None else turn
        if turns > len(kept.messages) // 2:
            raise NotFoundError(f"chat {chat_id}: turn {turn} is not there")
        key = self.new_chat(kept.info.documents, kept.info.policy)
        twin = self._kept(key)
        twin.messages = kept.messages[: 2 * turns]
        title = f"{kept.info.title} (fork)"
        twin.info = replace(twin.info, title=title, messages=len(twin.messages), parent=chat_id)
        return key

    def versions(self, chat_id: str) -> dict[int, Versions]:
        kept, found = self._kept(chat_id), {}
        for after, branches in kept.branches.items():
            turns = tuple(branch[0].id for branch in branches)
            found[kept.messages[after + 1].id] = Versions(turns, turns.index(kept.messages[after].id) + 1)
        return found

    def show_version(self, chat_id: str, turn: int) -> None:
        kept = self._kept(chat_id)
        for after, branches in kept.branches.items():
            if wanted := [branch for branch in branches if branch[0].id == turn]:
                kept.keep(after)
                kept.show(after, wanted[0])
                kept.info = replace(kept.info, messages=len(kept.messages))
                return
        raise NotFoundError(f"version {turn}: is not in this chat")

    def edit(
        self, chat_id: str, turn: int, question: str, *, generation: GenerationConfig = GenerationConfig(),
        focus: Sequence[str] = (), mute: Sequence[str] = (), so_far: Collection[str] = (),
    ) -> Iterator[Reading | Delta | Done]:  # fmt: skip
        kept, since = self._kept(chat_id), self.stops
        if not 1 <= turn <= len(kept.messages) // 2:
            raise NotFoundError(f"chat {chat_id}: question {turn} is not there")
        with self.claim("answering", since):
            yield from self._answer(kept, question, 0, generation, self._sight(focus, mute), 2 * (turn - 1))

    def export_json(self, chat_id: str) -> str:
        kept = self._kept(chat_id)
        return json.dumps({"title": kept.info.title, "messages": [message.content for message in kept.messages]})

    def export_file(self, chat_id: str, path: Path) -> dict[str, int]:
        path.write_text(self.export_json(chat_id), encoding="utf-8")
        return {"documents": 1, "messages": len(self._kept(chat_id).messages), "blocks": 3, "blocks_missing": 0}

    def import_chat(self, path: Path, *, text_only: bool = False, own: bool = False) -> str:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path.name}: not a chat that Lectern exported; choose another file") from error
        key = self.new_chat()
        kept = self._kept(key)
        kept.messages = [Message(i, ("user", "assistant")[i % 2], text) for i, text in enumerate(value["messages"])]
        kept.info = replace(kept.info, title=value["title"], messages=len(kept.messages))
        return key

    # Disk

    def disk_space(self) -> DiskSpace:
        read = {key: info.tokens * 2048 for key, (info, _) in self._documents.items() if info.state == "read"}
        new = {key: info.tokens * 2048 for key, (info, _) in self._documents.items() if info.state != "read"}
        return DiskSpace(read, new, set(self.pinned), sum(read.values()), 50_000_000_000, 120_000_000_000)

    def token_bytes(self) -> float:
        return 2048.0

    def pin(self, document_id: str, pinned: bool = True) -> DocumentInfo:
        self.store.found(document_id)
        (self.pinned.add if pinned else self.pinned.discard)(document_id)
        return self.document(document_id)

    def evict(self, document_id: str) -> DocumentInfo:
        self.store.found(document_id)
        with self.claim("deleting a memory"):
            self._done_tokens.pop(document_id, None)
            self._set_state(document_id, "new")
        return self.document(document_id)

    def export_chat(self, chat_id: str) -> str:
        chat = self._kept(chat_id)
        turns = [f"**{message.role}**: {message.content}" for message in chat.messages]
        return "\n\n".join([f"# {chat.info.title}", *turns]) + "\n"

    def _kept(self, chat_id: str) -> _Chat:
        if chat_id not in self._chats:
            raise NotFoundError(f"chat {chat_id}: not known")
        return self._chats[chat_id]

    # Answers

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
        since = self.stops
        self.asked.append({"question": question, "chat": chat, "documents": tuple(documents), "generation": generation,
                           "focus": tuple(focus), "mute": tuple(mute), "without": without,
                           "policy": policy})  # fmt: skip
        self.engine()
        with self.claim("answering", since) as job:
            about = self._kept(chat).info.documents if chat else tuple(documents)
            task = None if through is False or not about else chosen(question) if through else recognise(question)
            if through and not task:
                raise InputError("going through all of the text answers how often or where something stands")
            if task:
                yield from self._through(question, chat or self.new_chat(documents, policy, system), task, job)
                return
            yield from self._asked(question, chat, documents, generation, self._sight(focus, mute, without or ""),
                                   policy, so_far, system)  # fmt: skip

    def _through(self, question: str, chat: str, task: Task, job: SimpleNamespace) -> Iterator[Working | Delta | Done]:
        kept = self._kept(chat)
        work = WholeText(self.store, task, [self.document(key) for key in kept.info.documents])
        for event in work.steps(job):
            self._pause()
            yield event
        done = work.answer(chat, job)
        self._next_message += 2
        number = self._next_message
        passages = tuple(replace(item, id=f"e{number}-{n}") for n, item in enumerate(done.evidence, start=1))
        self.store.passages |= {passage.id: (passage, chat, number) for passage in passages}
        kept.messages.append(Message(number - 1, "user", question))
        kept.messages.append(Message(number, "assistant", done.answer, done.stats.as_dict(), passages))
        kept.info = replace(kept.info, messages=len(kept.messages), model=self.state.name)
        yield Delta(done.answer)
        yield replace(done, evidence=passages)

    def _asked(
        self, question: str, chat: str | None, documents: Sequence[str], generation: GenerationConfig, sight: Sight,
        policy: str, so_far: Collection[str], system: str,
    ) -> Iterator[Reading | Delta | Done]:  # fmt: skip
        chat = chat or self.new_chat(documents, policy, system)
        kept = self._kept(chat)
        if not kept.messages:
            kept.info = replace(kept.info, title=question[:60])
        read = 0
        for key in kept.info.documents:
            self._also_read.add((key, kept.info.policy))
            if self.document(key).state != "read" and not (key in so_far and self._done_tokens.get(key)):
                yield from self._read(key)
                read += self.document(key).tokens
        yield from self._answer(kept, question, read, generation, sight)

    def retry(
        self,
        chat: str,
        *,
        generation: GenerationConfig = GenerationConfig(),
        focus: Sequence[str] = (),
        mute: Sequence[str] = (),
        so_far: Collection[str] = (),
    ) -> Iterator[Reading | Delta | Done]:
        kept, since = self._kept(chat), self.stops
        after = len(kept.messages) - 2
        with self.claim("answering", since):
            yield from self._answer(kept, kept.messages[after].content, 0, generation, self._sight(focus, mute), after)

    def answer_without(
        self, evidence_id: str, *, generation: GenerationConfig = GenerationConfig()
    ) -> Iterator[Delta | Done]:
        passage, chat, _ = self.store.evidence(evidence_id)
        self.asked.append({"without": evidence_id, "chat": chat, "generation": generation})
        text = f"Without page {passage.label} the answer changes."
        with self.claim("answering"):
            yield from self._stream(text)
        yield Done(text, chat, (), AnswerStats(tokens_read=9, tokens_reused=100, new_tokens=8, seconds=0.4))

    def removal(self, evidence_id: str) -> Iterator[Reading | Removal]:
        passage, chat, _ = self.store.evidence(evidence_id)
        for key in self._kept(chat).info.documents:
            self.document(key)
        yield Removal(passage.id, ("The ", "answer"), (-0.25, -0.5), (-2.25, -1.75), 0.125, 5)

    def places(self, documents: Sequence[str]) -> list[tuple[str, str]]:
        return [choice for key in documents for choice in choices(*self._with_parts(key))]

    def _sight(self, focus: Sequence[str], mute: Sequence[str], without: str = "") -> Sight:
        """With titles in place of ids, as a real answer tells it."""

        def named(spec: str) -> str:
            key, sign, place = spec.partition("#")
            return (self.document(key).title if key in self._documents else key) + sign + place

        return Sight(tuple(map(named, focus)), tuple(map(named, mute)), without)

    def _with_parts(self, key: str) -> tuple[DocumentInfo, Sequence[Part]]:
        info, document = self.store.found(key)
        return info, document.parts

    def memory_line(self, chat: str | None = None) -> MemoryLine:
        documents = self._kept(chat).info.documents if chat else ()
        tokens = sum(self._documents[key][0].tokens for key in documents if key in self._documents)
        used = tokens * 2048
        policy = self.policy_of(chat)
        return MemoryLine(tokens, -(-tokens // 64), used // 4, used, used // 2, policy, "compact", "reference",
                          tokens_kept=tokens)  # fmt: skip

    def _pause(self) -> None:
        if self.pace_s:
            time.sleep(self.pace_s)

    def _stream(self, text: str) -> Iterator[Delta]:
        for word in re.findall(r"\S+\s*", text):
            self._pause()
            if self._stop.is_set():
                return
            yield Delta(word)

    def _answer(
        self, kept: _Chat, question: str, read: int, generation: GenerationConfig, sight: Sight,
        after: int | None = None,
    ) -> Iterator[Delta | Done]:  # fmt: skip
        documents = [self._documents[key][1] for key in kept.info.documents]
        evidence = tuple(_passages(documents, question, self._next_message + 2))
        text = f"You asked: {question} "
        if evidence:
            first = evidence[0]
            text += f"The passage on page {first.label} of *{first.title}* begins **{first.text[:40]}**."
        words = [NO_ANSWER] if UNSAID in question else text.split()
        ended = "length" if len(words) > generation.max_new_tokens else "stop"
        ended = "repetition" if REPEATS in question else ended
        text = " ".join(words[: generation.max_new_tokens])
        said = ""
        for delta in self._stream(text):
            said += delta.text
            yield delta
        reused = sum(self.document(key).tokens for key in kept.info.documents) - read
        begun = [info for info in map(self.document, kept.info.documents) if info.state != "read"]
        shares = [f"{100 * self._done_tokens[info.id] // info.tokens}% of {info.title}" for info in begun]
        part = [f"answered from the first {share}; the rest is not read yet" for share in shares]
        stats = AnswerStats(
            tokens_read=read + len(question.split()),
            tokens_reused=max(0, reused),
            new_tokens=len(said.split()),
            seconds_to_first_token=0.2,
            seconds=1.4,
            tokens_per_s=31.0,
            peak_bytes=400 << 20,
            stopped=self._stop.is_set(),
            ended="" if self._stop.is_set() else ended,
            note="; ".join(filter(None, [*part, self.answer_note])),
            focus=sight.focus,
            mute=sight.mute,
            without=sight.without,
            tokens_kept=reused + read,
            policy=kept.info.policy,
            model=self.state.name,
            cited=((len(said.strip()), 1),) if evidence and words != [NO_ANSWER] else (),
            **(KNOWS if evidence else {}),
        )
        if after is not None:
            if stats.stopped:
                stats = replace(stats, saved=False, note="Stopped; what was there before stays.")
                yield Done(said.strip(), kept.info.id, (), stats)
                return
            kept.keep(after)
            kept.show(after, ())
        self._next_message += 2
        for passage in evidence:
            self.store.passages[passage.id] = (passage, kept.info.id, self._next_message)
        kept.messages.append(Message(self._next_message - 1, "user", question))
        kept.messages.append(Message(self._next_message, "assistant", said.strip(), stats.as_dict(), evidence))
        if after is not None:
            kept.keep(after)
        kept.info = replace(kept.info, messages=len(kept.messages), model=self.state.name)
        looks = tuple(
            Look(word, ((e.document, 0, e.regions[0][1], 0.5),)) for word in said.split()[:1] for e in evidence
        )
        yield Done(said.strip(), kept.info.id, evidence, stats, looks)


def _passages(documents: list[Document], question: str, message: int) -> Iterator[Evidence]:
    """Up to three passages that hold a long word of the question, else the first page."""
    words = [word.lower() for word in re.findall(r"\w{5,}", question)]
    number = 0
    for document in documents:
        hits = [part for part in document.parts if any(word in part.text.lower() for word in words)]
        for part in (hits or list(document.parts))[:3]:
            number += 1
            start = min((part.text.lower().find(word) for word in words if word in part.text.lower()), default=0)
            text = part.text[start : start + 160]
            before = "".join(earlier.text for earlier in document.parts[: part.index - 1])
            line = 1 + before.count("\n") if document.kind == "text" else None
            yield Evidence(
                f"e{message}-{number}",
                document.sha256[:12],
                document.title,
                label(part, start, start + len(text), line),
                part.index,
                start,
                start + len(text),
                text,
                0.42 / number,
                ((0, number),),
            )


def fake_passkey_run(
    engine: object,
    config: Any,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """Stands in for app.eval.passkey.run: every cell right, except that the deepest of the longest length misses."""
    from app.eval.passkey import PasskeyCell

    total = config.trials * sum(config.lengths)
    done = 0
    bands = min(config.depth_bands, config.trials)
    for length in config.lengths:
        for band in range(bands):
            if cancelled():
                raise CancelledError("passkey test: stopped; the cells that finished are kept")
            done += length * config.trials // bands
            on_progress(done, total)
            trials = config.trials // bands
            missed = length == max(config.lengths) and band == bands - 1
            yield PasskeyCell(length, (band + 0.5) / bands, trials - missed, trials)
