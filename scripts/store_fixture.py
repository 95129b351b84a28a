"""Write what a release's store looks like as SQL text, for the test that later releases open it.

    python scripts/store_fixture.py tests/data/store-0.1.0.sql

Run it in a checkout of the release. The file holds both databases: what a real chat leaves, in small.
"""

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.records import Document, Evidence, MemoryText, Part, Skipped, Span, Tail
from app.store.store import Store

RECIPE = "5a" * 32
GROUP = 8
TOKENS = list(range(1, 29))
TEXT = "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition."


def fill(home: Path) -> None:
    """A document that was read, a chat of two turns with evidence and tail, a passkey run."""
    store = Store(home, disk_budget_bytes=1 << 30)
    parts = (Part(1, "i", TEXT, "Volume I"), Part(2, "src/a.py", "a.py (Python)\nprint()\n", None, 1, 0))
    skipped, notes = (Skipped("b.bin", "binary"),), ("1 page holds images only",)
    id = store.add_document(Document("Emma", "text", "e" * 64, parts, skipped, notes))
    store.set_memories(id, RECIPE, [MemoryText(TOKENS, (Span(1, 1, 28),))])
    keys = store.blocks.chain_keys(RECIPE, TOKENS, GROUP)
    tail_keys = store.blocks.chain_keys(f"{RECIPE}/chat", TOKENS[:10], GROUP)
    for number, key in enumerate([*keys, *tail_keys]):
        group = (TOKENS if number < len(keys) else TOKENS[:10])[GROUP * (number % len(keys)) :][:GROUP]
        store.blocks.put(key, group, bytes([number]) * 9, [bytes([number]) * 40, bytes([number]) * 7], "raw")
    store.blocks.flush()
    store.set_manifest(id, RECIPE, 0, keys)
    store.set_state(id, RECIPE, "read")
    chat = store.create_chat([id], "lectern-small", "Who is Emma?")
    evidence = Evidence("", id, "Emma", "i", 1, 0, 14, "Emma Woodhouse", 0.5, ((0, 1),))
    store.save_turn(chat, "Who is Emma?", "A young lady.", {"tokens_read": 9}, [evidence], None)
    tail = Tail(RECIPE, tuple(TOKENS[:10]), tuple(tail_keys), (4, 10), ((id, 0),))
    store.save_turn(chat, "Is she rich?", "She is.", {}, [], tail)
    run = store.start_passkey_run("lectern-small", "keep-all", {"seed": 1})
    store.add_passkey_cell(run, 2048, 0.5, 3, 4)
    store.close()


def dump(path: Path) -> Iterator[str]:
    """A database as statements that make it again; search indexes are rebuilt from the rows."""
    conn = sqlite3.connect(path)
    for name in ("application_id", "page_size", "auto_vacuum"):
        yield f"PRAGMA {name} = {conn.execute(f'PRAGMA {name}').fetchone()[0]};"
    objects = conn.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    searches = [name for _, name, sql in objects if sql.startswith("CREATE VIRTUAL")]
    shadows = {f"{name}_{part}" for name in searches for part in ("data", "idx", "docsize", "config", "content")}
    objects = [row for row in objects if row[1] not in shadows and not row[1].startswith("sqlite_")]
    yield from (f"{sql};" for kind, _, sql in objects if kind != "trigger")
    for kind, name, _ in objects:
        if kind == "table" and name not in searches:
            yield from _rows(conn, name)
    yield from (f"INSERT INTO [{name}] ([{name}]) VALUES ('rebuild');" for name in searches)
    yield from (f"{sql};" for kind, _, sql in objects if kind == "trigger")
    conn.close()


def _rows(conn: sqlite3.Connection, table: str) -> Iterator[str]:
    columns = [row[1] for row in conn.execute(f"PRAGMA table_info([{table}])")]
    quoted = " || ', ' || ".join(f"quote([{column}])" for column in columns)
    for (values,) in conn.execute(f"SELECT {quoted} FROM [{table}]"):
        yield f"INSERT INTO [{table}] VALUES ({values});"


def main() -> int:
    """Write the file named on the command line."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder))
        lines = [line for name in ("library", "kv") for line in (f"-- {name}.db", *dump(Path(folder) / f"{name}.db"))]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
