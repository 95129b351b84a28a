"""One SQLite file for many threads: a write connection behind a lock, a read connection for each thread."""

import os
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlite_utils import Database

from app.errors import StoreError
from app.store.migrations import Schema

WAITING_S = 30.0
WAL_BYTES = 32 << 20


class DamagedFile(StoreError):
    """A database file is broken, or not one of ours."""


class SqliteFile:
    """An open database file with the schema of this release.

    One process owns the file, so one write connection used by one thread at a time never finds it locked,
    and WAL lets every reader see the last commit meanwhile.
    """

    def __init__(self, path: Path, schema: Schema, *, text_factory: type = str) -> None:
        """Open the file, make it when absent, and bring it to the newest version.

        Args:
            text_factory: what readers get for TEXT columns: `bytes` never fails on damaged text.

        Raises:
            DamagedFile: not a database, broken, or another program's.
            StoreError: made by a newer release, or it cannot be read and written.
        """
        self.path = path
        self._schema = schema
        self._text_factory = text_factory
        self._lock = threading.RLock()
        self._readers = threading.local()
        with self._explained():
            self._writer = self._connect()
            try:
                self._prepare()
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def write(self) -> Iterator[Database]:
        """A transaction: everything inside becomes visible together, or nothing does."""
        with self._lock, self._explained():
            # Not db.atomic(): its deferred BEGIN could fail at the first write, after work was done.
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.commit()
            except BaseException:
                self._writer.rollback()
                raise

    @contextmanager
    def read(self) -> Iterator[Database]:
        """This thread's read connection."""
        with self._explained():
            if not hasattr(self._readers, "db"):
                db = self._connect()
                db.conn.text_factory = self._text_factory
                db.execute("PRAGMA query_only = ON")
                self._readers.db = db
            yield self._readers.db

    def size_bytes(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        return sum(path.stat().st_size for path in self.files() if path.exists())

    def files(self) -> tuple[Path, Path, Path]:
        """The file and the two that SQLite keeps beside it."""
        return self.path, Path(f"{self.path}-wal"), Path(f"{self.path}-shm")

    def problems(self) -> list[str]:
        """What SQLite's own check of the file's structure finds; empty when it is sound."""
        try:
            with self.read() as db:
                found = [row[0] for row in db.execute("PRAGMA integrity_check(10)")]
        except DamagedFile as error:
            return [str(error)]
        lines = [line.decode("utf-8", "replace") if isinstance(line, bytes) else line for line in found]
        return [] if lines == ["ok"] else lines

    def copy_to(self, target: Path) -> None:
        """Write a consistent copy, replacing an older one only when it is complete."""
        fresh = target.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with self.read() as db:
            copy = sqlite3.connect(fresh)
            try:
                db.conn.backup(copy)
            finally:
                copy.close()
        os.replace(fresh, target)

    def close(self) -> None:
        """Fold the log into the file and close. Readers of other threads close when those let go of them."""
        with self._lock:
            self._readers = threading.local()
            with suppress(sqlite3.Error):
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.close()

    def _connect(self) -> Database:
        conn = sqlite3.connect(self.path, timeout=WAITING_S, check_same_thread=False)
        db = Database(conn, execute_plugins=False)
        weakref.finalize(db, conn.close)
        return db

    def _prepare(self) -> None:
        db, schema = self._writer, self._schema
        tables = set(db.table_names()) - {"_sqlite_migrations"}
        owner = db.execute("PRAGMA application_id").fetchone()[0]
        if tables and owner != schema.application_id:
            raise DamagedFile(f"{self.path}: a database of another program. {schema.when_damaged}")
        # Page size and auto_vacuum hold from the first table on and are ignored later.
        db.execute(f"PRAGMA page_size = {schema.page_size}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // schema.page_size}")
        db.execute(f"PRAGMA journal_size_limit = {2 * WAL_BYTES}")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
        newer = {m.name for m in schema.migrations.applied(db)} - schema.migration_names()
        if newer:
            raise StoreError(
                f"{self.path}: made by a newer Lectern (schema {max(newer)}); update Lectern or choose another --home"
            )
        db.execute(f"PRAGMA application_id = {schema.application_id}")
        schema.migrations.apply(db)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.Error) -> StoreError:
        """Say in words what SQLite could not do."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            free = shutil.disk_usage(self.path.parent).free
            return StoreError(
                f"{self.path}: the disk is full ({free >> 20} MiB free). What was stored before is intact; "
                "free some space or lower disk_budget_gb"
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"{self.path}: held by another program; close it and try again")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StoreError(f"{self.path}: cannot be written; check its permissions or choose another --home")
        # Our statements are right, so an SQL error means that the schema in the file is not.
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_ERROR):
            return DamagedFile(f"{self.path}: damaged ({error}). {self._schema.when_damaged}")
        return StoreError(f"{self.path}: {error}")
