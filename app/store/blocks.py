"""kv.db: memory blocks under content keys, checked on every read. A cache: all of it can be read again."""

import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path

from sqlite_utils import Database

from app.errors import DamagedBlock, NotFoundError
from app.store import block_rows
from app.store.block_rows import KEY_LISTED, StoredBlock, text
from app.store.cache_file import CacheFile
from app.store.migrations import BLOCKS
from app.store.room import Room
from app.store.text import pack
from app.store.writer import BATCH_BYTES

log = logging.getLogger(__name__)

ROW_BYTES = 1 << 20
READ_BYTES = 8 << 20
INDEXES = 256  # fetched at a time
DELETE_KEYS = 64
VACUUM_PAGES = 512
FULL_PAGES = 32  # on a full disk: a MiB of log at a time
SPARED_HOURS = 24


@dataclass(frozen=True)
class VerifyReport:
    """What a check found: keys of damaged blocks, or the fault of the file as a whole."""

    checked: int
    damaged: list[str]


@dataclass(frozen=True)
class Cost:
    """What one block takes."""

    codec: str
    tokens: int
    size_bytes: int


class BlockStore:
    """Memory blocks in kv.db: one writer thread, readers in any thread."""

    def __init__(self, path: Path, *, disk_budget_bytes: int) -> None:
        """Open the file. One that is damaged or foreign is renamed: a cache can be made again.

        Raises:
            StoreError: the file cannot be read and written, or is from a newer release.
        """
        self.path = path
        self.disk_budget_bytes = disk_budget_bytes
        self._unsettled: set[str] = set()
        self._held: Counter[str] = Counter()
        self._holding = threading.Lock()
        self._file = CacheFile(path, BLOCKS, "kv-writer")
        self._room = Room(path.parent)

    @property
    def notes(self) -> list[str]:
        """What the user should know, such as a damaged file that was set aside."""
        return self._file.notes

    @staticmethod
    def chain_keys(root: str, token_ids: Sequence[int], group_tokens: int) -> list[str]:
        """Keys of consecutive groups of tokens; each depends on `root` and on every token up to its group's end.

        Args:
            root: recipe of weights, tokenizer, reading and codec.
            group_tokens: tokens per group; the last may be shorter.
        """
        if group_tokens < 1:
            raise ValueError(f"need group_tokens >= 1, got {group_tokens}")
        data, step, key = pack(token_ids), 4 * group_tokens, root
        keys = []
        for start in range(0, len(data), step):
            key = hashlib.sha256(key.encode() + data[start : start + step]).hexdigest()
            keys.append(key)
        return keys

    def put(self, key: str, token_ids: Sequence[int], index: bytes, kv: Sequence[bytes], codec: str) -> None:
        """Queue a block for writing; a key that is stored already is left as it is.

        Waits when the disk is slower than the reading. Readers find the block once it is committed (`flush`).

        Args:
            kv: one row per element, at most 1 MiB each.

        Raises:
            StoreError: the disk is full, or an earlier block could not be written; this one is not queued.
        """
        if any(len(row) > ROW_BYTES for row in kv):
            raise ValueError(f"a K/V row holds at most {ROW_BYTES} bytes, got {max(map(len, kv))}")
        self._file.writer.raise_failure()
        self._room.require(2 * self._file.writer.queued_bytes)  # once in the log, once in the file
        self._unsettled.add(key)
        insert = partial(
            block_rows.insert, key=key, tokens=pack(token_ids), index=index, kv=kv, codec=codec, hour=_hour()
        )
        self._file.writer.submit(insert, len(index) + sum(map(len, kv)))

    def flush(self) -> None:
        """Wait until everything put or deleted is committed.

        Raises:
            StoreError: something could not be written since the last call.
        """
        self._file.writer.flush()

    def mark(self) -> int:
        """A moment in the order of writes, for `wait_for`."""
        return self._file.writer.submitted

    def wait_for(self, mark: int) -> None:
        """Wait until everything put before `mark` is committed, or has failed, which the next `put` says."""
        self._file.writer.wait_for(mark)

    def get(self, key: str, token_ids: Sequence[int]) -> tuple[bytes, list[bytes]]:
        """Index bytes and K/V rows of a block.

        Raises:
            NotFoundError: no such block.
            DamagedBlock: it fails its check or belongs to other tokens; it is deleted, so that it can be put again.
        """
        return next(self.get_many([key], [token_ids]))

    def get_many(
        self, keys: Sequence[str], token_groups: Sequence[Sequence[int]]
    ) -> Iterator[tuple[bytes, list[bytes]]]:
        """Blocks in the order of `keys`, fetched a few MiB at a time; raises like `get` at the block concerned."""
        wanted = iter(list(zip(keys, token_groups, strict=True)))
        for batch in self._batches(keys):
            with self._file.read() as db:
                blocks = block_rows.fetch(db, batch)
            self._touch((stored.id, stored.last_used) for stored in blocks.values())
            for key, token_ids in islice(wanted, len(batch)):
                stored = self._found(key, blocks)
                self._refuse(key, stored.fault(pack(token_ids)))
                yield stored.index, stored.rows()

    def get_index(self, key: str, token_ids: Sequence[int] | None = None) -> bytes:
        """The index bytes of a block alone; raises like `get`. Tokens are compared when they are given."""
        with self._file.read() as db:
            blocks = block_rows.fetch(db, [key], with_kv=False)
        stored = self._found(key, blocks)
        self._refuse(key, stored.index_fault(None if token_ids is None else pack(token_ids)))
        return stored.index

    def get_indexes(self, keys: Sequence[str], token_groups: Sequence[Sequence[int]]) -> Iterator[bytes]:
        """Index bytes of many blocks, in the order of `keys`, without their K/V rows; raises like `get`.

        While the caller takes some, the next ones are fetched and checked.
        """
        batches = [slice(start, start + INDEXES) for start in range(0, len(keys), INDEXES)]
        with ThreadPoolExecutor(1, "indexes") as ahead:
            coming = [ahead.submit(self._checked, keys[batch], token_groups[batch]) for batch in batches[:1]]
            for batch, following in zip_longest(batches, batches[1:]):
                blocks, faults = coming.pop().result()
                if following:
                    coming.append(ahead.submit(self._checked, keys[following], token_groups[following]))
                for key in keys[batch]:
                    stored = self._found(key, blocks)
                    self._refuse(key, faults[key])
                    yield stored.index

    def _checked(
        self, keys: Sequence[str], token_groups: Sequence[Sequence[int]]
    ) -> tuple[dict[str, StoredBlock], dict[str, str | None]]:
        """Those of the blocks that are there, without their K/V rows, and what is wrong with them."""
        with self._file.read() as db:
            blocks = block_rows.fetch(db, keys, with_kv=False)
        self._touch((stored.id, stored.last_used) for stored in blocks.values())
        found = [(key, ids) for key, ids in zip(keys, token_groups, strict=True) if key in blocks]
        return blocks, {key: blocks[key].index_fault(pack(ids)) for key, ids in found}

    def read_rows(self, key: str, rows: Sequence[int]) -> list[bytes]:
        """Some K/V rows of a block, in the order of `rows`; see `read_many_rows`."""
        return self.read_many_rows([(key, row) for row in rows])

    def read_many_rows(self, wanted: Sequence[tuple[str, int]]) -> list[bytes]:
        """Single K/V rows by (key, row), in this order, in one query.

        Only the rows' own checks are made: compare tokens once, when the index is fetched.

        Raises:
            NotFoundError: a block or a row of it is gone.
            DamagedBlock: a row fails its check; its block is deleted, so that it can be put again.
        """
        with self._file.read() as db:
            found = block_rows.fetch_rows(db, wanted)
        self._touch((row.block, row.last_used) for row in found.values())
        data = []
        for place, (key, row) in enumerate(wanted):
            if place not in found:
                raise NotFoundError(f"stored memory {key[:12]}: row {row} is not in {self.path}; read it again")
            self._refuse(key, None if found[place].sound(key, row) else "its keys and values fail their check")
            data.append(found[place].data)
        return data

    def tokens_in(self, key: str) -> int | None:
        """How many tokens a block holds; None when it is not stored."""
        query = "SELECT length(i.tokens) / 4 FROM block b JOIN block_index i ON i.block = b.id WHERE b.key = ?"
        with self._file.read() as db:
            row = db.execute(query, [key]).fetchone()
        return row[0] if row else None

    def codecs(self, keys: Sequence[str]) -> dict[str, str]:
        """Codecs of those blocks that are stored."""
        with self._file.read() as db:
            rows = db.execute(f"SELECT key, codec FROM block WHERE {KEY_LISTED}", [json.dumps(keys)]).fetchall()
        return {text(key): text(codec) for key, codec in rows}

    def hold(self, keys: Iterable[str]) -> None:
        """Keep blocks from eviction while a memory in use still reads from them; each call needs its `release`."""
        with self._holding:
            self._held.update(keys)

    def release(self, keys: Iterable[str]) -> None:
        """Take back one `hold` of each key."""
        with self._holding:
            self._held.subtract(keys)
            self._held = +self._held

    def known_prefix(self, keys: Sequence[str]) -> int:
        """How many of the leading keys are stored; none when the file turns out to be broken."""
        try:
            with self._file.read() as db:
                stored = {row[0] for row in db.execute(f"SELECT key FROM block WHERE {KEY_LISTED}", [json.dumps(keys)])}
        except DamagedBlock:
            return 0
        return next((count for count, key in enumerate(keys) if key.encode() not in stored), len(keys))

    def settle(self, keys: Iterable[str]) -> None:
        """Say that the library names these blocks now; until then they are not taken for garbage."""
        self._unsettled.difference_update(keys)

    def settled_keys(self) -> list[str]:
        """Every stored key, but for blocks of this run that the library does not name yet."""
        return self.settled(self._keys())

    def settled(self, keys: Iterable[str]) -> list[str]:
        """Those keys, listed before, that are not of blocks which the library does not name yet."""
        unsettled = set(self._unsettled)  # After the listing: a block is unsettled before it is listed.
        return [key for key in keys if key not in unsettled]

    def library_shrank(self, id: str, added: int) -> bool:
        """Whether the library that names these blocks was replaced within a day by a smaller or another one.

        Args:
            id, added: which library it is now, and how much was ever added to it; both are remembered.
        """
        with self._file.read() as db:
            known = db.execute("SELECT id, CAST(added AS INTEGER), CAST(shrank AS INTEGER) FROM library").fetchone()
        before, most, shrank = (text(known[0]), known[1], known[2]) if known else (id, 0, 0)
        if id != before or added < most:
            shrank = _hour()
        if known is None or (before, most, known[2]) != (id, added, shrank):
            self._file.writer.submit(partial(_set_library, row=(id, added, shrank)))
            self.flush()
        return _hour() - shrank < SPARED_HOURS

    def delete(self, keys: Sequence[str], *, private: bool = False) -> None:
        """Queue the deletion of blocks.

        Args:
            private: overwrite what they held, for blocks of a deleted document.
        """
        full = self._room.full
        step = 1 if full else DELETE_KEYS
        for start in range(0, len(keys), step):
            some = keys[start : start + step]
            self._file.writer.submit(
                partial(_delete, keys=some, private=private), BATCH_BYTES if full else BATCH_BYTES // 4
            )
            if full:
                self.flush()
                self._file.compact()

    def enforce_budget(self, pinned: set[str]) -> dict[str, int]:
        """Delete least recently used blocks beyond the disk budget; within one hour, the ends of memories first.

        Args:
            pinned: keys that stay, whatever they cost.

        Returns:
            bytes of each block deleted, by key.
        """
        self.flush()
        with self._file.read() as db:
            rows = db.execute("SELECT key, CAST(bytes AS INTEGER) FROM block ORDER BY last_used, id DESC").fetchall()
        excess = sum(size for _, size in rows) - self.disk_budget_bytes
        evicted: dict[str, int] = {}
        freed = 0
        for key, size in rows:
            if freed >= excess:
                break
            if text(key) not in pinned and text(key) not in self._held:
                evicted[text(key)] = size
                freed += size
        self.delete(list(evicted))
        self.flush()
        return evicted

    def costs(self) -> dict[str, Cost]:
        """Codec, tokens and bytes of every block; none when the file turns out to be broken."""
        query = (
            "SELECT b.key, b.codec, CAST(length(i.tokens) / 4 AS INTEGER), CAST(b.bytes AS INTEGER) "
            "FROM block b JOIN block_index i ON i.block = b.id"
        )
        try:
            with self._file.read() as db:
                return {text(key): Cost(text(codec), tokens, size) for key, codec, tokens, size in db.execute(query)}
        except DamagedBlock:
            return {}

    def shrink(self) -> None:
        """Give the pages of deleted blocks back to the file system, a few MiB in each transaction."""
        left = self._free_pages()
        while left:
            self._file.writer.submit(
                partial(_vacuum, pages=FULL_PAGES if self._room.full else VACUUM_PAGES), BATCH_BYTES
            )
            self.flush()
            if self._room.full:
                self._file.compact()
            before, left = left, self._free_pages()
            if left >= before:
                break

    def compact(self) -> None:
        """Give free pages back and fold the write-ahead log into the file."""
        self.shrink()
        self._file.compact()

    def verify(self, progress: Callable[[int, int], None] | None = None, *, repair: bool = False) -> VerifyReport:
        """Check the structure of the file and every block in it.

        Args:
            progress: called with blocks checked and blocks in all.
            repair: delete damaged blocks, and set the file aside if its structure is broken.
        """
        self.flush()
        generation = self._file.generation
        if problems := self._file.problems():
            if repair:
                self._file.report_broken(generation)
                self.flush()
            return VerifyReport(0, [f"{self.path.name}: {problems[0]}"])
        keys = self._keys()
        damaged: list[str] = []
        checked = 0
        for batch in self._batches(keys):
            with self._file.read() as db:
                blocks = block_rows.fetch(db, batch)
            damaged += [key for key in batch if key in blocks and blocks[key].fault(None)]
            checked += len(batch)
            if progress is not None:
                progress(checked, len(keys))
        if repair:
            self.delete(damaged)
            self.flush()
        return VerifyReport(checked, damaged)

    def stats(self) -> dict[str, int]:
        """Number of blocks and bytes of the file; no blocks when it turns out to be broken."""
        try:
            with self._file.read() as db:
                blocks = db.execute("SELECT COUNT(*) FROM block").fetchone()[0]
        except DamagedBlock:
            blocks = 0
        return {"blocks": blocks, "kv_bytes": self._file.size_bytes()}

    def close(self) -> None:
        """Write what is queued and close."""
        self._file.close()

    def _keys(self) -> list[str]:
        with self._file.read() as db:
            return [text(row[0]) for row in db.execute("SELECT key FROM block ORDER BY id")]

    def _free_pages(self) -> int:
        with self._file.read() as db:
            return db.execute("PRAGMA freelist_count").fetchone()[0]

    def _batches(self, keys: Sequence[str]) -> Iterator[list[str]]:
        """Cut `keys` where READ_BYTES are reached."""
        with self._file.read() as db:
            sizes = dict(
                db.execute(f"SELECT key, CAST(bytes AS INTEGER) FROM block WHERE {KEY_LISTED}", [json.dumps(keys)])
            )
        batch: list[str] = []
        batch_bytes = 0
        for key in keys:
            batch.append(key)
            batch_bytes += sizes.get(key.encode(), 0)
            if batch_bytes >= READ_BYTES:
                yield batch
                batch, batch_bytes = [], 0
        if batch:
            yield batch

    def _found(self, key: str, blocks: dict[str, StoredBlock]) -> StoredBlock:
        if key not in blocks:
            raise NotFoundError(f"stored memory {key[:12]}: not in {self.path}; read the document again")
        return blocks[key]

    def _refuse(self, key: str, fault: str | None) -> None:
        """Delete a block that has a fault and say so."""
        if fault is None:
            return
        log.warning("%s: block %s deleted: %s", self.path, key, fault)
        self.delete([key])
        raise DamagedBlock(f"{self.path}: stored memory {key[:12]} cannot be used ({fault}); it has to be read again")

    def _touch(self, used: Iterable[tuple[int, int]]) -> None:
        """Note the hour in which blocks (id, last used) were used; once an hour is enough for eviction."""
        hour = _hour()
        if ids := sorted({block for block, last_used in used if last_used != hour}):
            self._file.writer.submit(partial(_set_last_used, ids=ids, hour=hour))


def _delete(db: Database, *, keys: Sequence[str], private: bool) -> None:
    db.execute(f"PRAGMA secure_delete = {int(private)}").fetchone()
    db.execute(f"DELETE FROM block WHERE {KEY_LISTED}", [json.dumps(keys)])


def _set_library(db: Database, *, row: tuple[str, int, int]) -> None:
    db.execute("DELETE FROM library")
    db.execute("INSERT INTO library VALUES (?, ?, ?)", row)


def _vacuum(db: Database, *, pages: int) -> None:
    db.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()


def _set_last_used(db: Database, *, ids: list[int], hour: int) -> None:
    db.execute("UPDATE block SET last_used = ? WHERE id IN (SELECT value FROM json_each(?))", [hour, json.dumps(ids)])


def _hour() -> int:
    return int(time.time() // 3600)
