"""A look at kv.db from outside: read-only, whoever holds the data folder."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from app.store import block_rows
from app.store.block_rows import text

BATCH = 64


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
            blocks = block_rows.fetch(db, keys[start : start + BATCH])
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
