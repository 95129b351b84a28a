"""One SQLite file: versions, foreign and damaged files, threads, transactions."""

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlite_utils import Database

from app.errors import StoreError
from app.store.database import DamagedFile, SqliteFile
from app.store.migrations import BLOCKS, LIBRARY


def test_a_new_file_gets_the_schema_once_and_opens_again(tmp_path: Path) -> None:
    for _ in range(2):
        file = SqliteFile(tmp_path / "library.db", LIBRARY)
        with file.read() as db:
            assert {"document", "part", "part_fts", "chat", "message", "message_fts"} <= set(db.table_names())
            assert [m.name for m in LIBRARY.migrations.applied(db)] == sorted(LIBRARY.migration_names())
        file.close()


def test_every_table_is_strict_and_pragmas_hold(tmp_path: Path) -> None:
    for schema, page_size in ((LIBRARY, 4096), (BLOCKS, 32768)):
        file = SqliteFile(tmp_path / f"{page_size}.db", schema)
        with file.write() as db:
            ours = [t for t in db.tables if "_fts" not in t.name and not t.name.startswith(("sqlite_", "_sqlite"))]
            assert ours and all(table.strict for table in ours)
            pragma = {
                name: db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "journal_mode", "auto_vacuum", "foreign_keys", "synchronous")
            }
        assert pragma == {
            "page_size": page_size,
            "journal_mode": "wal",
            "auto_vacuum": 2,
            "foreign_keys": 1,
            "synchronous": 1,
        }
        file.close()


def test_a_file_made_halfway_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "library.db"
    db = Database(path)
    LIBRARY.migrations.ensure_migrations_table(db)
    db.close()
    SqliteFile(path, LIBRARY).close()
    (tmp_path / "empty.db").touch()
    SqliteFile(tmp_path / "empty.db", LIBRARY).close()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"\0" * 5000])
def test_a_file_that_is_no_database_is_named_with_advice(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "library.db"
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        SqliteFile(path, LIBRARY)
    assert str(path) in str(caught.value) and "library.backup.db" in str(caught.value)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "library.db"
    db = Database(path)
    db["cats"].insert({"name": "Cleo"})
    db.close()
    before = path.read_bytes()
    with pytest.raises(DamagedFile, match="another program"):
        SqliteFile(path, LIBRARY)
    assert path.read_bytes() == before


def test_the_two_files_are_not_taken_for_each_other(tmp_path: Path) -> None:
    SqliteFile(tmp_path / "kv.db", BLOCKS).close()
    with pytest.raises(DamagedFile, match="another program"):
        SqliteFile(tmp_path / "kv.db", LIBRARY)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "library.db"
    SqliteFile(path, LIBRARY).close()
    db = Database(path)
    db["_sqlite_migrations"].insert({"migration_set": LIBRARY.migrations.name, "name": "9999", "applied_at": "later"})
    db.close()
    with pytest.raises(StoreError, match="newer Lectern.*9999"):
        SqliteFile(path, LIBRARY)


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "library.db", LIBRARY)
    with pytest.raises(KeyError), file.write() as db:
        db.execute("INSERT INTO chat (id, title, model, created, updated) VALUES ('a', 't', 'm', '', '')")
        raise KeyError
    with pytest.raises(StoreError), file.write() as db:
        db.execute("INSERT INTO message (chat, role, content, stats, created) VALUES ('none', 'user', '', '{}', '')")
    with file.read() as db:
        assert db.table("chat").count == 0 and db.table("message").count == 0
    file.close()


def test_a_full_disk_is_said_in_words_and_the_file_stays_usable(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "library.db", LIBRARY)
    with file.write() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()
    with pytest.raises(StoreError, match="disk is full") as caught, file.write() as db:
        title = "x" * 100_000
        db.execute("INSERT INTO chat (id, title, model, created, updated) VALUES ('a', ?, 'm', '', '')", [title])
    assert not isinstance(caught.value, DamagedFile)
    with file.write() as db:
        db.execute("INSERT INTO chat (id, title, model, created, updated) VALUES ('b', 'short', 'm', '', '')")
    with file.read() as db:
        assert [row["id"] for row in db["chat"].rows] == ["b"]
    file.close()


def test_readers_cannot_write(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "library.db", LIBRARY)
    with pytest.raises(StoreError), file.read() as db:
        db.execute("DELETE FROM chat")
    file.close()


def test_readers_at_one_time_have_connections_of_their_own(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "library.db", LIBRARY)
    both = threading.Barrier(2)
    connections: list[sqlite3.Connection] = []

    def look() -> None:
        with file.read() as db:
            connections.append(db.conn)
            both.wait(10)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connections[0] is not connections[1]
    with file.read() as db:
        assert db.conn in connections
    file.close()
    for conn in connections:
        with pytest.raises(sqlite3.ProgrammingError):
            conn.execute("SELECT 1")


@pytest.mark.parametrize("name", ["start_anew", "close"])
def test_closing_and_replacing_wait_for_readers(tmp_path: Path, name: str) -> None:
    file = SqliteFile(tmp_path / "kv.db", BLOCKS)
    reading, changed = threading.Event(), threading.Event()
    seen: list[tuple[bool, int]] = []

    def look() -> None:
        with file.read() as db:
            reading.set()
            seen.append((changed.wait(0.1), db.execute("SELECT COUNT(*) FROM block").fetchone()[0]))

    thread = threading.Thread(target=look)
    thread.start()
    reading.wait(10)
    getattr(file, name)()
    changed.set()
    thread.join()
    assert seen == [(False, 0)]
    file.close()
    with pytest.raises(StoreError, match="closed"), file.read():
        pass


def test_a_header_that_forbids_writing_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "library.db"
    SqliteFile(path, LIBRARY).close()
    raw = bytearray(path.read_bytes())
    raw[18] = 3
    path.write_bytes(raw)
    with pytest.raises(DamagedFile):
        SqliteFile(path, LIBRARY)


def test_using_a_closed_file_is_a_store_error(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "library.db", LIBRARY)
    file.close()
    with pytest.raises(StoreError), file.write():
        pass


def test_a_copy_is_complete_and_opens(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "library.db", LIBRARY)
    with file.write() as db:
        db.execute("INSERT INTO chat (id, title, model, created, updated) VALUES ('a', 't', 'm', '', '')")
    file.copy_to(tmp_path / "library.backup.db")
    file.close()
    copy = SqliteFile(tmp_path / "library.backup.db", LIBRARY)
    with copy.read() as db:
        assert db.table("chat").count == 1
    assert copy.problems() == []
    copy.close()
