"""The rows of one memory block: how they are written, fetched and checked; a look at kv.db from outside."""

import json
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlite_utils import Database

KEY_LISTED = "key IN (SELECT value FROM json_each(?))"

_BLOCKS = f"SELECT key, id, codec, bundles, last_used FROM block WHERE {KEY_LISTED}"
_LISTED = "block IN (SELECT value FROM json_each(?))"
_INDEXES = f"SELECT block, tokens, data, crc FROM block_index WHERE {_LISTED}"
_KV = f"SELECT block, bundle, crc, data FROM block_kv WHERE {_LISTED} ORDER BY block, bundle"
# One look-up per wanted row; CROSS JOIN keeps SQLite from scanning the blocks instead.
_ROWS = """
    SELECT w.key, b.id, b.last_used, k.crc, k.data
    FROM json_each(?) AS w
    CROSS JOIN block b ON b.key = json_extract(w.value, '$[0]')
    CROSS JOIN block_kv k ON k.block = b.id AND k.bundle = json_extract(w.value, '$[1]')
"""


@dataclass
class StoredBlock:
    """Rows of a block as they lie in the file. Until `fault` says None, a column may hold anything."""

    key: str
    id: int
    codec: Any
    bundles: Any
    last_used: Any
    tokens: Any = None
    index: Any = None
    index_crc: Any = None
    kv: list[tuple[Any, Any, Any]] = field(default_factory=list)

    def index_fault(self, tokens: bytes | None) -> str | None:
        """Why the index cannot be used. `tokens` None: whatever tokens it belongs to."""
        if not isinstance(self.tokens, bytes) or not isinstance(self.index, bytes):
            return "its index is missing"
        if self.index_crc != _index_crc(self.key, text(self.codec), self.bundles, self.tokens, self.index):
            return "its index fails its check"
        if tokens is not None and tokens != self.tokens:
            return "it belongs to other tokens"
        return None

    def fault(self, tokens: bytes | None) -> str | None:
        """Why the block cannot be used."""
        if fault := self.index_fault(tokens):
            return fault
        if [bundle for bundle, _, _ in self.kv] != list(range(self.bundles)):
            return "rows are missing"
        for bundle, crc, data in self.kv:
            if not isinstance(data, bytes) or crc != _kv_crc(self.key, bundle, data):
                return "its keys and values fail their check"
        return None

    def rows(self) -> list[bytes]:
        """The K/V rows in order."""
        return [data for _, _, data in self.kv]


def insert(db: Database, key: str, tokens: bytes, index: bytes, kv: Sequence[bytes], codec: str, hour: int) -> None:
    """Write a block unless its key is there already."""
    size = len(tokens) + len(index) + sum(map(len, kv))
    inserted = db.execute(
        "INSERT INTO block (key, codec, bundles, bytes, last_used) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (key) DO NOTHING RETURNING id",
        [key, codec, len(kv), size, hour],
    ).fetchone()
    if inserted is None:
        return
    block = inserted[0]
    row = [block, tokens, _index_crc(key, codec, len(kv), tokens, index), index]
    db.execute("INSERT INTO block_index (block, tokens, crc, data) VALUES (?, ?, ?, ?)", row)
    for bundle, data in enumerate(kv):
        row = [block, bundle, _kv_crc(key, bundle, data), data]
        db.execute("INSERT INTO block_kv (block, bundle, crc, data) VALUES (?, ?, ?, ?)", row)


def fetch(db: Database, keys: Sequence[str], *, with_kv: bool = True) -> dict[str, StoredBlock]:
    """The rows of those blocks that are there, all of one moment; `db` gives TEXT as bytes."""
    wanted = {key.encode(): key for key in keys}
    found: dict[int, StoredBlock] = {}
    with db.atomic():
        for key, id, *facts in db.execute(_BLOCKS, [json.dumps(keys)]):
            if key in wanted:
                found[id] = StoredBlock(wanted[key], id, *facts)
        ids = json.dumps(list(found))
        # A damaged tree may answer with rows that nobody asked for.
        for id, *columns in db.execute(_INDEXES, [ids]):
            if id in found:
                found[id].tokens, found[id].index, found[id].index_crc = columns
        for id, *row in db.execute(_KV, [ids]) if with_kv else ():
            if id in found:
                found[id].kv.append(tuple(row))
    return {stored.key: stored for stored in found.values()}


@dataclass
class StoredRow:
    """One K/V row as it lies in the file, with its block. Until `sound` says so, a column may hold anything."""

    block: int
    last_used: Any
    crc: Any
    data: Any

    def sound(self, key: str, row: int) -> bool:
        """Whether the bytes are those that were put under this key and number."""
        return isinstance(self.data, bytes) and self.crc == _kv_crc(key, row, self.data)


def fetch_rows(db: Database, wanted: Sequence[tuple[str, int]]) -> dict[int, StoredRow]:
    """Single K/V rows of one moment, by their place in `wanted`; rows that are not there are left out."""
    return {place: StoredRow(*columns) for place, *columns in db.execute(_ROWS, [json.dumps(wanted)])}


def text(data: Any) -> str:
    """A TEXT column read as bytes, damaged or not."""
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)


def _index_crc(key: str, codec: str, bundles: Any, tokens: bytes, data: bytes) -> int:
    # Seeded with what the row belongs to: a row that turns up under another key does not pass.
    return zlib.crc32(data, zlib.crc32(tokens, zlib.crc32(f"{key} {codec} {bundles}".encode())))


def _kv_crc(key: str, bundle: Any, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(f"{key} {bundle}".encode()))


BATCH = 64  # blocks that a look takes at once


@dataclass(frozen=True)
class Glance:
    """What lies in kv.db: blocks, tokens and bytes of them by codec, and keys of damaged blocks."""

    blocks: int
    tokens: int
    size_bytes: int
    codecs: tuple[str, ...]
    damaged: tuple[str, ...]


def look(path: Path) -> Glance:
    """Check every block of the file without changing it.

    Raises:
        sqlite3.Error: the file cannot be read, or its structure is broken.
    """
    conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    conn.text_factory = bytes
    db = Database(conn, execute_plugins=False)
    try:
        keys = [text(row[0]) for row in db.execute("SELECT key FROM block ORDER BY id")]
        tokens = size = 0
        codecs, damaged = set(), []
        for start in range(0, len(keys), BATCH):
            blocks = fetch(db, keys[start : start + BATCH])
            for key, block in blocks.items():
                if block.fault(None):
                    damaged.append(key)
                    continue
                codecs.add(text(block.codec))
                tokens += len(block.tokens) // 4
                size += len(block.tokens) + len(block.index) + sum(map(len, block.rows()))
        return Glance(len(keys), tokens, size, tuple(sorted(codecs)), tuple(damaged))
    finally:
        db.close()
