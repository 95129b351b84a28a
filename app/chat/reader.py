"""Joins engine and store for documents: read once, kept in SQLite, brought back instead of read again."""

import hashlib
import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from app.chat import memory_files
from app.chat.evidence import Attached
from app.chat.groups import StoredGroups
from app.errors import CancelledError, DamagedBlock, InputError, LecternError, NotFoundError, StoreError
from app.ingest import spans
from app.ingest.files import Cancelled, Progress, never, no_progress
from app.memory.memory import RegionMemory
from app.memory.soundness import check_block
from app.records import DocumentInfo, MemoryText, Part, Reading
from app.runtime import recover
from app.runtime.engine import Engine
from app.store.store import Store
from app.store.transfer import Fit

log = logging.getLogger(__name__)
INDEXES_AT_ONCE = 256


@dataclass(frozen=True)
class ReadDocument:
    """A document ready for questions. `tokens_read` were run through the model now, `tokens_reused` were not.

    Attributes:
        root: what the keys of its blocks begin with.
    """

    document: DocumentInfo
    texts: list[MemoryText]
    memories: list[RegionMemory]
    tokens_read: int
    tokens_reused: int
    root: str


class Reader:
    """Brings documents into memories. They stay in RAM, least recently used first out, within `keep_bytes`."""

    def __init__(self, store: Store, engine: Engine, keep_bytes: int) -> None:
        self.store, self.engine, self.keep_bytes = store, engine, keep_bytes
        store.keep_recipe(engine.recipe, engine.recipe_parts)
        self._kept: OrderedDict[str, ReadDocument] = OrderedDict()
        self.notes: list[str] = []

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

        def blocks(root: str, token_ids: Sequence[int], count: int, *, whole: bool) -> list[tuple[str, Sequence[int]]]:
            size = self.group_tokens
            chain = self.store.blocks.chain_keys(root, token_ids, size)
            if engine.shape.compaction:
                return [
                    (key, ()) for key in memory_files.block_keys(memory_files.state_key(chain[-1]), max(0, count - 1))
                ]
            found = [(key, token_ids[i * size : (i + 1) * size]) for i, key in enumerate(chain)]
            return [*found, (_mass_key(chain), ())] if whole else found

        def check(token_ids: Sequence[int], index: bytes, kv: list[bytes]) -> None:
            check_block(engine.shape, None if engine.shape.compaction else len(token_ids), index, kv)

        def texts(parts: Sequence[Part]) -> list[MemoryText]:
            return spans.encode(parts, engine.text_tokenizer, engine.bos_id)

        vocabulary = engine.model.config.vocab_size
        return Fit(engine.recipe, engine.recipe_parts, blocks, texts, check, vocabulary)

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
                keys = store.blocks.chain_keys(root, text.token_ids, self.group_tokens)
                memory = self._bring_back(keys, text)
                progress.reused += memory.tokens
                if memory.tokens < len(text.token_ids):
                    store.set_state(info.id, engine.recipe, "reading")
                    yield progress.at(number, memory.tokens)
                    yield from self._read_rest(info.id, number, text, keys, memory, cancelled, progress)
                elif info.state != "read":
                    self._name_blocks(info.id, number, self._block_keys(keys, memory))
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
        store.set_state(info.id, engine.recipe, "read")
        yield progress.at(len(texts) - 1, 0)
        read = ReadDocument(
            store.document(info.id, engine.recipe), texts, memories, total - progress.reused, progress.reused, root
        )
        self._keep(read)
        return read

    def attached(self, documents: Sequence[ReadDocument]) -> list[Attached]:
        """Which regions of the documents' texts, all of them numbered on, belong to which text."""
        found, first, size = [], 0, self.engine.shape.attention.region_tokens
        for document in documents:
            for number, text in enumerate(document.texts):
                regions = -(-len(text.token_ids) // size)
                found.append(Attached(document.document, number, text, first, regions))
                first += regions
        return found

    def put_groups(self, keys: Sequence[str], memory: RegionMemory, groups: Sequence[int]) -> None:
        """Queue sealed groups for writing; `keys[i]` belongs to `groups[i]`."""
        for key, group in zip(keys, groups, strict=True):
            start, end = memory.group_range(group)
            codec = self.engine.shape.codec if end - start == self.group_tokens else "raw"
            self.store.blocks.put(key, memory.token_ids[start:end], *memory.export_group(group), codec)

    def bring_groups(self, keys: Sequence[str], token_ids: Sequence[int], memory: RegionMemory) -> None:
        """Append stored groups to a memory; stops quietly at the first that is damaged or gone, which the log names."""
        size = self.group_tokens
        groups = [list(token_ids[i * size : (i + 1) * size]) for i in range(len(keys))]
        try:
            for ids, (index, kv) in zip(groups, self.store.blocks.get_many(keys, groups), strict=True):
                memory.import_group(ids, index, kv)
        except (DamagedBlock, NotFoundError, ValueError) as error:
            log.warning("%s", error)
            self.notes.append(f"{error}; the part after token {memory.tokens:,} is read again")

    def _bring_back(self, keys: Sequence[str], text: MemoryText) -> RegionMemory:
        """The longest stored beginning of a text, whoever stored it: its index, and what nearly every answer needs.

        Other keys and values are fetched when they are selected.
        """
        if self.engine.shape.compaction:
            state = memory_files.state_key(keys[-1])
            return memory_files.bring(self.store.blocks, state, text.token_ids, self.engine.shape, frozen=True)
        blocks, size = self.store.blocks, self.group_tokens
        known = keys[: blocks.known_prefix(keys)]
        memory = RegionMemory(self.engine.shape, len(text.token_ids))
        memory.pages.source = source = StoredGroups(blocks, keys, self.put_groups)
        blocks.hold(keys)
        weakref.finalize(memory, blocks.release, keys)
        whole = min(len(known), len(text.token_ids) // size)
        self._open_groups(known[:whole], text.token_ids, memory, source)
        if memory.tokens == whole * size:
            self.bring_groups(known[whole:], text.token_ids[whole * size :], memory)
        if memory.tokens == len(text.token_ids):
            memory.freeze()
            self._warm(keys, memory)
        return memory

    def _open_groups(
        self, keys: Sequence[str], token_ids: Sequence[int], memory: RegionMemory, source: StoredGroups
    ) -> None:
        """Bring the index of whole groups into a memory; stops quietly like `bring_groups`."""
        size, rows = self.group_tokens, []
        groups = [token_ids[i * size : (i + 1) * size] for i in range(len(keys))]

        def take() -> None:
            first = memory.tokens
            recover.open_groups(memory, token_ids[first : first + len(rows) * size], rows, source)
            rows.clear()

        try:
            try:
                for row in self.store.blocks.get_indexes(keys, groups):
                    rows.append(row)
                    if len(rows) == INDEXES_AT_ONCE:
                        take()
            finally:
                take()
        except (DamagedBlock, NotFoundError, ValueError) as error:
            log.warning("%s", error)
            self.notes.append(f"{error}; the part after token {memory.tokens:,} is read again")

    def _warm(self, keys: Sequence[str], memory: RegionMemory) -> None:
        """Bring in what is nearly always needed; the stored attention mass only says what is worth keeping at hand."""
        try:
            recover.warm(memory, self.store.blocks.get_index(_mass_key(keys)))
        except (DamagedBlock, NotFoundError, ValueError) as error:
            log.warning("%s", error)
            recover.warm(memory, None)

    def read_again_note(self, documents: Sequence[ReadDocument]) -> str:
        """What the user should know of stored memory that was lost: read again since the last call, or left out."""
        pages = [memory.pages for document in documents for memory in document.memories]
        sources = [each.source for each in pages if isinstance(each.source, StoredGroups)]
        again, gone = sum(source.read_again for source in sources), sum(len(each.left_out) for each in pages)
        for source in sources:
            source.read_again = 0
        notes = (
            [f"{again * self.group_tokens:,} tokens were read again: their stored memory was damaged"] if again else []
        )
        if gone:
            notes.append(
                f"{gone * self.group_tokens:,} tokens are left out: their stored memory is damaged, "
                "and they could not be read again"
            )
        return "; ".join(notes)

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
                self.put_groups(keys[group : group + 1], memory, [group])
            except StoreError as error:  # a full disk must not end the reading
                writing = False
                self.notes.append(f"{error}. The rest of this reading is kept in memory only.")
                return
            if len(memory.token_ids) >= (group + 1) * self.group_tokens:
                memory.pages.settle([group])

        steps = self.engine.read_steps(text.token_ids, resume=memory, on_sealed=seal, cancelled=cancelled)
        written = 0
        for done in steps:
            # The disk follows one segment behind: a crash costs that one and the one being read.
            self.store.blocks.wait_for(written)
            written = self.store.blocks.mark()
            if writing and not self.engine.shape.compaction:
                self._name_blocks(document, number, keys[: done // self.group_tokens])
            yield progress.at(number, done)
        if writing:
            if self.engine.shape.compaction:
                memory_files.put(self.store.blocks, memory_files.state_key(keys[-1]), memory)
            else:
                self.store.blocks.put(_mass_key(keys), [], recover.export_mass(memory), [], "raw")
            stored_keys = self._block_keys(keys, memory)
            self._name_blocks(document, number, stored_keys)
            self._enforce_budget(set(stored_keys))

    def _block_keys(self, keys: Sequence[str], memory: RegionMemory) -> list[str]:
        """Keys of all blocks of a text that was read, whose groups of tokens have these."""
        if self.engine.shape.compaction:
            return memory_files.block_keys(memory_files.state_key(keys[-1]), memory.groups)
        return [*keys, _mass_key(keys)]

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


def _mass_key(keys: Sequence[str]) -> str:
    """Key of a memory's H2O scores, which are final only when the whole text is read."""
    return hashlib.sha256(f"{keys[-1]}/mass".encode()).hexdigest()


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
