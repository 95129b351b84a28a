"""Joins engine and store for documents: read once, kept in SQLite, brought back instead of read again."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from app.chat.evidence import Attached
from app.chat.memory_files import files_of
from app.errors import CancelledError, InputError, LecternError, StoreError
from app.ingest import spans
from app.ingest.files import Cancelled, Progress, never, no_progress
from app.memory.memory import RegionMemory
from app.records import DocumentInfo, MemoryText, Part, Reading
from app.runtime.engine import Engine
from app.store.database import FullDisk
from app.store.store import Store
from app.store.transfer import Fit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadDocument:
    """A document ready for questions. `tokens_read` were run through the model now, `tokens_reused` were not.

    Attributes:
        root: what the keys of its blocks begin with.
        percent: how much of it these are, when it is not all; else 0.
    """

    document: DocumentInfo
    texts: list[MemoryText]
    memories: list[RegionMemory]
    tokens_read: int
    tokens_reused: int
    root: str
    percent: int = 0

    @property
    def share(self) -> str:
        """What an answer from a beginning says of it."""
        return f"answered from the first {self.percent}% of {self.document.title}; the rest is not read yet"


class Reader:
    """Brings documents into memories. They stay in RAM, least recently used first out, within `keep_bytes`."""

    def __init__(self, store: Store, engine: Engine, keep_bytes: int) -> None:
        self.store, self.engine, self.keep_bytes = store, engine, keep_bytes
        store.keep_recipe(engine.recipe, {**engine.recipe_parts, "tensors": engine.tensors})
        self._kept: OrderedDict[str, ReadDocument] = OrderedDict()
        self.notes: list[str] = []
        self.files = files_of(store, engine.shape, self.notes)

    @property
    def group_tokens(self) -> int:
        return self.engine.shape.attention.group_tokens

    @property
    def memories(self) -> list[RegionMemory]:
        """Those that stay in RAM."""
        return [memory for document in self._kept.values() for memory in document.memories]

    @property
    def kept_bytes(self) -> int:
        return sum(memory.size_bytes for memory in self.memories)

    def forget(self, document: str) -> None:
        """Drop a document from RAM."""
        self._kept.pop(document, None)

    def texts(
        self, document: str, *, progress: Progress = no_progress, cancelled: Cancelled = never
    ) -> list[MemoryText]:
        """The document's token ids for this model, made on first use.

        Raises:
            InputError: the tokenizer failed on it, which is then the document's state.
            CancelledError: `cancelled` said so.
        """
        engine, recipe = self.engine, self.engine.recipe
        texts = self.store.memories(document, recipe)
        if texts is None:
            parts = self.store.parts(document)
            try:
                texts = spans.encode(
                    parts, engine.text_tokenizer, engine.bos_id, progress=progress, cancelled=cancelled
                )
            except InputError as error:
                self.store.set_state(document, recipe, "failed", str(error))
                raise
            self.store.set_memories(document, recipe, texts)
        return texts

    def fit(self) -> Fit:
        """What a memory from elsewhere has to fit."""
        engine = self.engine

        def texts(parts: Sequence[Part]) -> list[MemoryText]:
            return spans.encode(parts, engine.text_tokenizer, engine.bos_id)

        vocabulary = engine.model.config.vocab_size
        return Fit(engine.recipe, engine.recipe_parts, self.files.expected, texts, self.files.check, vocabulary)

    def read(self, document: str, cancelled: Callable[[], bool]) -> Iterator[Reading]:
        """Read what is not stored yet, telling how far it is; returns a ReadDocument.

        What is sealed is stored at once, so that a stop or a crash loses at most one segment.

        Raises:
            CancelledError: stopped; the next reading goes on from there.
        """
        root = self.store.root(document, self.engine.recipe)
        if document in self._kept and self._kept[document].root == root:
            self._kept.move_to_end(document)
            kept = self._kept[document]
            total = kept.tokens_read + kept.tokens_reused
            yield Reading(document, kept.document.title, total, total, 0.0, "", total, 0.0)
            return replace(kept, tokens_read=0, tokens_reused=total)
        engine, store = self.engine, self.store
        texts = self.texts(document, cancelled=cancelled)
        store.index_passages(document)
        info = store.document(document, engine.recipe)
        if info.state != "read" and (other := store.other_recipe(document, engine.recipe)):
            made = store.difference(other, engine.recipe)
            self.notes.append(f"the memory of {info.title} was made with {made}, so it does not serve here")
        total = sum(len(text.token_ids) for text in texts)
        progress = _Progress(info, total, store.parts(document), texts)
        memories: list[RegionMemory] = []
        try:
            for number, text in enumerate(texts):
                keys = self.files.chain(root, text.token_ids)
                memory = self.files.open(keys, text.token_ids)
                progress.reused += memory.tokens
                if memory.tokens < len(text.token_ids):
                    store.set_state(info.id, engine.recipe, "reading")
                    yield progress.at(number, memory.tokens)
                    yield from self._read_rest(info.id, number, text, keys, memory, cancelled, progress)
                elif info.state != "read":
                    self._name_blocks(info.id, number, self.files.keys(keys, memory))
                memories.append(memory)
                progress.before += len(text.token_ids)
        except (CancelledError, GeneratorExit, KeyboardInterrupt) as stop:
            store.set_state(info.id, engine.recipe, "new", f"stopped at {progress.percent}%")
            if isinstance(stop, CancelledError):  # the model knows of one of the texts only
                raise CancelledError(f"reading {info.title}: {progress.stopped}") from stop
            raise
        except BaseException as error:
            told = str(error) if isinstance(error, LecternError) else f"{type(error).__name__}: {error}"
            store.set_state(info.id, engine.recipe, "failed", told)
            raise
        with suppress(FullDisk):  # what was read is there; an answer needs no word of it on the disk
            store.set_state(info.id, engine.recipe, "read")
        yield progress.at(len(texts) - 1, 0)
        read = ReadDocument(
            store.document(info.id, engine.recipe), texts, memories, total - progress.reused, progress.reused, root
        )
        self._keep(read)
        return read

    def so_far(self, document: str) -> ReadDocument | None:
        """The beginning of a document that is stored; None when that is nothing, or all of it."""
        root, recipe = self.store.root(document, self.engine.recipe), self.engine.recipe
        info, texts = self.store.document(document, recipe), self.store.memories(document, recipe)
        if texts is None or info.state == "read":
            return None
        begun: list[MemoryText] = []
        memories: list[RegionMemory] = []
        for text in texts:
            memory = self.files.open(self.files.chain(root, text.token_ids), text.token_ids)
            if memory.tokens:
                begun.append(spans.beginning(text, memory.tokens))
                memories.append(memory.freeze())
            if memory.tokens < len(text.token_ids):
                break
        done = sum(memory.tokens for memory in memories)
        share = max(1, 100 * done // max(1, sum(len(text.token_ids) for text in texts)))
        return ReadDocument(info, begun, memories, 0, done, root, share) if done else None

    def attached(self, documents: Sequence[ReadDocument]) -> list[Attached]:
        """Which regions of the documents' texts, all of them numbered on, belong to which text."""
        found, first, size = [], 0, self.engine.shape.attention.region_tokens
        for document in documents:
            for number, text in enumerate(document.texts):
                regions = -(-len(text.token_ids) // size)
                found.append(Attached(document.document, number, text, first, regions))
                first += regions
        return found

    def _read_rest(
        self,
        document: str,
        number: int,
        text: MemoryText,
        keys: Sequence[str],
        memory: RegionMemory,
        cancelled: Callable[[], bool],
        progress: "_Progress",
    ) -> Iterator[Reading]:
        writing = True

        def seal(group: int, memory: RegionMemory) -> None:
            nonlocal writing
            if not writing:
                return
            try:
                self.files.seal(keys, memory, group)
            except StoreError as error:  # a full disk must not end the reading
                writing = False
                self.notes.append(f"{error}. The rest of this reading is kept in memory only.")

        steps = self.engine.read_steps(text.token_ids, resume=memory, on_sealed=seal, cancelled=cancelled)
        written = 0
        for done in steps:
            # The disk follows one segment behind: a crash costs that one and the one being read.
            self.store.blocks.wait_for(written)
            written = self.store.blocks.mark()
            if writing and (sealed := self.files.sealed(keys, done)):
                self._name_blocks(document, number, sealed)
            yield progress.at(number, done)
        if writing:
            stored_keys = self.files.finish(keys, memory)
            self._name_blocks(document, number, stored_keys)
            self._enforce_budget(set(stored_keys))

    def _name_blocks(self, document: str, number: int, keys: Sequence[str]) -> None:
        self.store.set_manifest(document, self.engine.recipe, number, keys)

    def _keep(self, read: ReadDocument) -> None:
        self._kept[read.document.id] = read
        while len(self._kept) > 1 and self.kept_bytes > self.keep_bytes:
            self._kept.popitem(last=False)

    def _enforce_budget(self, pinned: set[str]) -> None:
        """Make room on the disk; what was just read stays."""
        freed = self.store.enforce_budget(pinned)
        if freed:
            self.notes.append(f"{freed / 2**20:.0f} MiB of memories not used lately made room on the disk")


class _Progress:
    """Turns token counts into Reading records."""

    def __init__(self, info: DocumentInfo, total: int, parts: Sequence[Part], texts: Sequence[MemoryText]) -> None:
        self.info, self.total, self.texts = info, total, texts
        self.labels = {part.index: part.label for part in parts}
        self.before = self.reused = self.done = 0
        self.started = time.monotonic()

    @property
    def percent(self) -> int:
        return 100 * self.done // max(1, self.total)

    @property
    def stopped(self) -> str:
        return f"stopped after {self.done:,} of {self.total:,} tokens; what was read is kept"

    def at(self, number: int, done: int) -> Reading:
        """Where reading stands when `done` tokens of memory `number` are in."""
        self.done = tokens = self.before + done
        fresh, elapsed = tokens - self.reused, time.monotonic() - self.started
        speed = fresh / elapsed if fresh > 0 and elapsed > 0 else 0.0
        here = spans.parts_in(self.texts[number].spans, max(0, done - 1), max(1, done))
        return Reading(
            document=self.info.id,
            title=self.info.title,
            tokens_done=tokens,
            tokens_total=self.total,
            tokens_per_s=speed,
            label=self.labels[here[0].part] if here and tokens < self.total else "",
            reused=self.reused,
            eta_s=(self.total - tokens) / speed if speed else 0.0,
        )
