"""How memories lie in the store, and under which keys: one class for each way of keeping them.

Both have the same verbs. `open` brings back what is stored of a document's text, `seal` and `finish` store it while and
after it is read, `keep_tail` and `open_tail` do the same for the end of a chat. All keys but those of whole groups,
which chain the tokens before them (`BlockStore.chain_keys`), are made here.
"""

import hashlib
import logging
import time
import weakref
from collections.abc import Sequence

from app.errors import DamagedBlock, NotFoundError, StoreError
from app.memory.memory import RegionMemory, export_mass, open_groups, warm
from app.memory.shape import MemoryShape
from app.memory.soundness import check_block
from app.store.store import Store

log = logging.getLogger(__name__)
GROUPS_AT_ONCE = 32  # in one query: 8 MiB with rows of a quarter of one
INDEXES_AT_ONCE = 256

Keys = list[str]


def files_of(store: Store, shape: MemoryShape, notes: list[str]) -> "GroupFiles | SlotFiles":
    """How memories of this shape are kept; what the user should know of it is added to `notes`."""
    return SlotFiles(store, shape) if shape.compaction else GroupFiles(store, shape, notes)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _chat_root(chat: str, recipe: str, kept: Sequence[str]) -> str:
    """What blocks made by a chat hang on: they are shared with nothing, so it names the chat and the moment."""
    return f"{kept[-1] if kept else recipe}/chat/{chat}/{time.time_ns()}"


def _mass_key(chain: Sequence[str]) -> str:
    """Key of a memory's H2O scores, which are final only when the whole text is read."""
    return _key(f"{chain[-1]}/mass")


class GroupFiles:
    """Memories that keep every token: a block for each group of tokens, and one for the H2O scores of a text."""

    def __init__(self, store: Store, shape: MemoryShape, notes: list[str]) -> None:
        self._store, self._shape, self._notes = store, shape, notes
        self._size = shape.attention.group_tokens

    def chain(self, root: str, token_ids: Sequence[int]) -> Keys:
        """Keys of a text's groups; `root` is the recipe, or what a chat hangs on."""
        return self._store.blocks.chain_keys(root, token_ids, self._size)

    def keys(self, chain: Sequence[str], memory: RegionMemory) -> Keys:
        """Keys of all blocks of a text that was read."""
        return [*chain, _mass_key(chain)]

    def open(self, chain: Sequence[str], token_ids: Sequence[int]) -> RegionMemory:
        """The longest stored beginning of a text, whoever stored it: its index, and what nearly every answer needs.

        Other keys and values are fetched when they are selected.
        """
        blocks, size = self._store.blocks, self._size
        known = chain[: blocks.known_prefix(chain)]
        memory = RegionMemory(self._shape, len(token_ids))
        memory.pages.source = source = StoredGroups(self, chain)
        blocks.hold(chain)
        weakref.finalize(memory, blocks.release, chain)
        whole = min(len(known), len(token_ids) // size)
        self._open_whole(known[:whole], token_ids, memory, source)
        if memory.tokens == whole * size:
            self._bring(known[whole:], token_ids[whole * size :], memory)
        if memory.tokens == len(token_ids):
            memory.freeze()
            self._warm(self.keys(chain, memory)[-1], memory)
        return memory

    def _open_whole(
        self, chain: Sequence[str], token_ids: Sequence[int], memory: RegionMemory, source: "StoredGroups"
    ) -> None:
        """Bring the index of whole groups into a memory; stops quietly like `_bring`."""
        size, rows = self._size, []
        groups = [token_ids[i * size : (i + 1) * size] for i in range(len(chain))]

        def take() -> None:
            first = memory.tokens
            open_groups(memory, token_ids[first : first + len(rows) * size], rows, source)
            rows.clear()

        try:
            try:
                for row in self._store.blocks.get_indexes(chain, groups):
                    rows.append(row)
                    if len(rows) == INDEXES_AT_ONCE:
                        take()
            finally:
                take()
        except (DamagedBlock, NotFoundError, ValueError) as error:
            self._tell(error, memory)

    def _bring(self, chain: Sequence[str], token_ids: Sequence[int], memory: RegionMemory) -> None:
        """Append stored groups to a memory; stops quietly at the first that is damaged or gone, which the log names."""
        groups = [list(token_ids[i * self._size : (i + 1) * self._size]) for i in range(len(chain))]
        try:
            for ids, (index, kv) in zip(groups, self._store.blocks.get_many(chain, groups), strict=True):
                memory.import_group(ids, index, kv)
        except (DamagedBlock, NotFoundError, ValueError) as error:
            self._tell(error, memory)

    def _tell(self, error: Exception, memory: RegionMemory) -> None:
        log.warning("%s", error)
        self._notes.append(f"{error}; the part after token {memory.tokens:,} is read again")

    def _warm(self, mass_key: str, memory: RegionMemory) -> None:
        """Bring in what is nearly always needed; the stored attention mass only says what is worth keeping at hand."""
        try:
            warm(memory, self._store.blocks.get_index(mass_key))
        except (DamagedBlock, NotFoundError, ValueError) as error:
            log.warning("%s", error)
            warm(memory, None)

    def put(self, keys: Sequence[str], memory: RegionMemory, groups: Sequence[int]) -> None:
        """Queue groups for writing; `keys[i]` belongs to `groups[i]`.

        Raises:
            StoreError: an earlier block could not be written.
        """
        for key, group in zip(keys, groups, strict=True):
            start, end = memory.group_range(group)
            codec = self._shape.codec if end - start == self._size else "raw"
            self._store.blocks.put(key, memory.token_ids[start:end], *memory.export_group(group), codec)

    def seal(self, chain: Sequence[str], memory: RegionMemory, group: int) -> None:
        """Store a group of a text that is being read, whose keys and values are final.

        Raises:
            StoreError: an earlier block could not be written.
        """
        self.put(chain[group : group + 1], memory, [group])
        if len(memory.token_ids) >= (group + 1) * self._size:
            memory.pages.settle([group])

    def sealed(self, chain: Sequence[str], tokens: int) -> Keys:
        """Keys of what is stored while `tokens` of a text are read."""
        return list(chain[: tokens // self._size])

    def finish(self, chain: Sequence[str], memory: RegionMemory) -> Keys:
        """Store what is final at the end of a text; returns the keys of all its blocks."""
        keys = self.keys(chain, memory)
        self._store.blocks.put(keys[-1], [], export_mass(memory), [], "raw")
        return keys

    def keep_tail(self, chat: str, recipe: str, tail: RegionMemory, kept: Sequence[str]) -> Keys:
        """Store the tail of a chat behind the groups that are `kept` already, its short last group too."""
        new = self.chain(_chat_root(chat, recipe, kept), tail.token_ids[len(kept) * self._size :])
        self.put(new, tail, range(len(kept), tail.groups))
        return [*kept, *new]

    def lasting(self, keys: Sequence[str], tokens: int) -> Keys:
        """Of a stored tail's blocks those that stay as they are when it goes on after its first tokens."""
        return list(keys[: tokens // self._size])

    def open_tail(self, keys: Sequence[str], token_ids: Sequence[int], tokens: int) -> RegionMemory | None:
        """The tail of a chat up to its first `tokens`; None when not all of it can be brought back."""
        memory = RegionMemory(self._shape)
        self._bring(keys, token_ids, memory)
        if memory.tokens != len(token_ids):
            return None
        memory.truncate(tokens)  # a fork's last block may reach into what was not taken over
        return memory

    def expected(
        self, root: str, token_ids: Sequence[int], count: int, *, whole: bool
    ) -> list[tuple[str, Sequence[int]]]:
        """(key, token ids) of the blocks that a memory from elsewhere must have; `whole`: of a text, not of a tail."""
        chain = self.chain(root, token_ids)
        found = [(key, token_ids[i * self._size : (i + 1) * self._size]) for i, key in enumerate(chain)]
        return [*found, (_mass_key(chain), ())] if whole else found

    def check(self, start: int, token_ids: Sequence[int], index: bytes, kv: list[bytes]) -> None:
        """Refuse a block from elsewhere that cannot be one of these tokens; see `check_block`."""
        check_block(self._shape, len(token_ids), index, kv, start)


class SlotFiles:
    """Memories that drop tokens: written when they are complete, brought back whole.

    Their groups are slots, not tokens, so their blocks hang on everything that was read: one for what the slots are,
    one for each group of them.
    """

    def __init__(self, store: Store, shape: MemoryShape) -> None:
        self._store, self._shape = store, shape

    def chain(self, root: str, token_ids: Sequence[int]) -> Keys:
        """As `GroupFiles.chain`: the last of these names all that was read."""
        return self._store.blocks.chain_keys(root, token_ids, self._shape.attention.group_tokens)

    def _keys(self, root: str, groups: int) -> Keys:
        """Keys of a memory's blocks, that of its state last; `root` names all that was read."""
        state = _key(f"{root}/slots")
        return [*self._groups(state, groups), state]

    def _groups(self, state: str, groups: int) -> Keys:
        return [_key(f"{state}/{group}") for group in range(groups)]

    def keys(self, chain: Sequence[str], memory: RegionMemory) -> Keys:
        """Keys of all blocks of a text that was read."""
        return self._keys(chain[-1], memory.groups)

    def open(self, chain: Sequence[str], token_ids: Sequence[int]) -> RegionMemory:
        """The memory of a text; an empty one when it is not stored, or damaged, which the log names."""
        memory = self._bring(_key(f"{chain[-1]}/slots"), token_ids)
        return memory.freeze() if memory.tokens else memory

    def _bring(self, state: str, token_ids: Sequence[int]) -> RegionMemory:
        memory, blocks = RegionMemory(self._shape), self._store.blocks
        if not blocks.known_prefix([state]):
            return memory
        try:
            data = blocks.get_index(state, [])
            keys = self._groups(state, RegionMemory.stored_groups(data, self._shape))
            memory.import_slots(list(token_ids), data, blocks.get_many(keys, [[] for _ in keys]))
        except (DamagedBlock, NotFoundError, ValueError) as error:
            log.warning("%s", error)
            return RegionMemory(self._shape)
        return memory

    def _put(self, root: str, memory: RegionMemory) -> Keys:
        """Queue a memory for writing.

        Raises:
            StoreError: an earlier block could not be written.
        """
        keys = self._keys(root, memory.groups)
        for group, key in enumerate(keys[:-1]):
            self._store.blocks.put(key, [], *memory.export_group(group), "raw")
        self._store.blocks.put(keys[-1], [], memory.export_state(), [], "raw")  # whoever finds it finds the rest
        return keys

    def seal(self, chain: Sequence[str], memory: RegionMemory, group: int) -> None:
        """Nothing is final before the end of a text."""

    def sealed(self, chain: Sequence[str], tokens: int) -> Keys:
        """As `seal`: none."""
        return []

    def finish(self, chain: Sequence[str], memory: RegionMemory) -> Keys:
        """Store the memory of a text; returns the keys of all its blocks."""
        return self._put(chain[-1], memory)

    def keep_tail(self, chat: str, recipe: str, tail: RegionMemory, kept: Sequence[str]) -> Keys:
        """Store the tail of a chat, all of it: slots move."""
        return self._put(_chat_root(chat, recipe, kept), tail)

    def lasting(self, keys: Sequence[str], tokens: int) -> Keys:
        """None of a tail's blocks stays as it is."""
        return []

    def open_tail(self, keys: Sequence[str], token_ids: Sequence[int], tokens: int) -> RegionMemory | None:
        """The tail of a chat; None when it is not stored, or damaged."""
        memory = self._bring(keys[-1], token_ids)
        return memory if memory.tokens else None

    def expected(
        self, root: str, token_ids: Sequence[int], count: int, *, whole: bool
    ) -> list[tuple[str, Sequence[int]]]:
        """(key, token ids) of the `count` blocks that a memory from elsewhere must have; slots belong to no tokens."""
        chain = self.chain(root, token_ids)
        return [(key, ()) for key in self._keys(chain[-1], max(0, count - 1))]

    def check(self, start: int, token_ids: Sequence[int], index: bytes, kv: list[bytes]) -> None:
        """As `GroupFiles.check`."""
        check_block(self._shape, None, index, kv)


class StoredGroups:
    """Where an open memory's keys and values come from, one group at a time, when they are selected.

    What is damaged or gone is given as None, and taken back when it was read again.

    Attributes:
        read_again: groups that were lost and read again.
    """

    def __init__(self, files: GroupFiles, keys: Sequence[str]) -> None:
        """
        Args:
            keys: of the memory's groups, in order.
        """
        self._files, self._blocks, self._keys = files, files._store.blocks, keys
        self.read_again = 0

    def fetch(self, groups: Sequence[int], rows: range) -> list[bytes | None]:
        """Some stored rows of groups, those of one group joined; None for a group that is gone or damaged."""
        found: list[bytes | None] = []
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[start : start + GROUPS_AT_ONCE]
            try:
                found += self._joined(some, rows)
            except (DamagedBlock, NotFoundError):
                found += [self._one(group, rows) for group in some]
        return found

    def _joined(self, groups: Sequence[int], rows: range) -> list[bytes]:
        data = self._blocks.read_many_rows([(self._keys[group], row) for group in groups for row in rows])
        return [b"".join(data[i : i + len(rows)]) for i in range(0, len(data), len(rows))]

    def _one(self, group: int, rows: range) -> bytes | None:
        try:
            try:
                return self._joined([group], rows)[0]
            except NotFoundError:  # it may be waiting for the writer
                self._blocks.flush()
                return self._joined([group], rows)[0]
        except (StoreError, NotFoundError) as error:
            log.warning("%s", error)
            return None

    def replace(self, group: int, memory: RegionMemory) -> None:
        """Store a group that was lost and has been read again."""
        self.read_again += 1
        try:
            self._files.put(self._keys[group : group + 1], memory, [group])
        except StoreError as error:  # it stays in RAM
            log.warning("%s", error)
            return
        memory.pages.settle([group])


def read_again_note(memories: Sequence[RegionMemory], group_tokens: int) -> str:
    """What the user should know of stored memory that was lost: read again since the last call, or left out."""
    pages = [memory.pages for memory in memories]
    sources = [each.source for each in pages if isinstance(each.source, StoredGroups)]
    again, gone = sum(source.read_again for source in sources), sum(len(each.left_out) for each in pages)
    for source in sources:
        source.read_again = 0
    notes = [f"{again * group_tokens:,} tokens were read again: their stored memory was damaged"] if again else []
    if gone:
        notes.append(
            f"{gone * group_tokens:,} tokens are left out: their stored memory is damaged, "
            "and they could not be read again"
        )
    return "; ".join(notes)
