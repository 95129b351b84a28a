"""One SQLite file for many threads: one write connection, and as many read connections as there are readers."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from sqlite_utils import Database

from app.errors import StoreError
from app.store.migrations import Schema

WAITING_S = 30.0
NEWEST_VERSION = 2  # of the file format, WAL
WAL_BYTES = 32 << 20

SHARED_BYTES = 64 << 10  # what SQLite needs beside a file that several connections share
_NO_ROOM = (sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_WRITE)
_NOT_WRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
# Our statements are right, so an SQL error means that the schema in the file is not.
_DAMAGED = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_READONLY,
)


class DamagedFile(StoreError):
    """A database file is broken, or not one of ours."""

    def __init__(self, path: Path, reason: str, advice: str) -> None:
        super().__init__(f"{path}: {reason}. {advice}")
        self.reason = reason


class FullDisk(StoreError):
    """There is no room for a write. What was stored before is intact."""


class LostFile(DamagedFile):
    """A database was deleted or replaced while it was open."""


class SqliteFile:
    """An open database file with the schema of this release.

    One process owns the file, so one write connection used by one thread at a time never finds it locked,
    and WAL lets every reader see the last commit meanwhile. Readers borrow a connection each and give it back:
    so all of them can be closed before a broken file is renamed, which SQLite must not see happen.

    Attributes:
        generation: how often the file was replaced by an empty one.
        narrow: whether it was opened on a full disk: everyone shares one connection then, which needs no shared memory.
        when_lost: called when the file was deleted or replaced while it was open; says what became of its contents.
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
        self.generation = 0
        self.narrow = False
        self._schema = schema
        self._text_factory = text_factory
        self._writing = threading.RLock()
        self._inside: int | None = None  # the thread whose transaction is open
        self._then: list[Callable[[], None]] = []  # what waits for its end
        self._gate = threading.Condition()
        self._idle: list[Database] = []
        self._borrowed = 0
        self._replacing = False
        self._closed = False
        self.when_lost: Callable[[], str] = lambda: schema.when_damaged
        self._writer = self._open_writer()

    @contextmanager
    def write(self) -> Iterator[Database]:
        """A transaction: everything inside becomes visible together, or nothing does.

        Inside one of the same thread it is a part of that one, and so is a `read`.
        """
        with self._writing, self._explained():
            if self._inside:
                yield self._writer
                return
            self._require_file()
            # Not db.atomic(): its deferred BEGIN could fail at the first write, after work was done.
            self._writer.execute("BEGIN IMMEDIATE")
            self._inside = threading.get_ident()
            try:
                yield self._writer
                self._writer.commit()
            except BaseException:
                self._writer.rollback()
                self._then.clear()
                raise
            finally:
                self._inside = None
            then, self._then = self._then, []
            for action in then:
                action()

    def after_commit(self, action: Callable[[], None]) -> None:
        """Do something when the transaction of this thread is committed, at once where there is none."""
        if self._inside == threading.get_ident():
            self._then.append(action)
        else:
            action()

    @contextmanager
    def read(self) -> Iterator[Database]:
        """A read connection for this block of code alone. Keep it short: closing the file waits for it."""
        if self._inside == threading.get_ident():
            yield self._writer
            return
        self._require_file()
        if self.narrow:
            with self.held() as db:
                yield db
            return
        with self._gate:
            self._gate.wait_for(lambda: not self._replacing)
            if self._closed:
                raise StoreError(f"{self.path}: closed; start Lectern again")
            self._borrowed += 1
            db = self._idle.pop() if self._idle else None
        try:
            with self._explained():
                db = db or self._open_reader()
                yield db
        finally:
            with self._gate:
                self._borrowed -= 1
                self._idle += [db] if db else []
                self._gate.notify_all()

    def start_anew(self) -> Path:
        """Put an empty file in the place of a broken one, whose new name is returned. Readers wait meanwhile."""
        with self._writing:
            with self._gate:
                self._replacing = True
                self._gate.wait_for(lambda: not self._borrowed)
            try:
                self._close_all()
                aside = set_aside(self.path)
                self._writer = self._open_writer()
                self.generation += 1
                return aside
            finally:
                with self._gate:
                    self._replacing = False
                    self._gate.notify_all()

    def size_bytes(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        return sum(path.stat().st_size for path in _files(self.path) if path.exists())

    def problems(self) -> list[str]:
        """What SQLite's own check of the file's structure finds; empty when it is sound."""
        try:
            with self.read() as db:
                found = [row[0] for row in db.execute("PRAGMA integrity_check(10)")]
        except DamagedFile as error:
            return [error.reason]
        lines = [line.decode("utf-8", "replace") if isinstance(line, bytes) else line for line in found]
        return [] if lines == ["ok"] else lines

    def compact(self, fts: Sequence[str]) -> None:
        """Merge these search indexes, return free pages and fold the log into the file."""
        with self.write() as db:
            for name in fts:
                db.execute(f"INSERT INTO {name} ({name}) VALUES ('optimize')")
        with self._writing, self._explained():
            self._writer.execute("PRAGMA incremental_vacuum").fetchall()
        self.fold()

    def fold(self) -> None:
        """Fold the log into the file, which gives its room back."""
        with self._writing, self._explained():
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def copy_to(self, target: Path, *, lost: bool = False) -> None:
        """Write a consistent copy to a path where no file is; nothing stays of one that broke off.

        Args:
            lost: the file itself is gone: its contents are those of the connection that still holds it.
        """
        with self.held() if lost else self.read() as db:
            copy = sqlite3.connect(target)
            try:
                copy.execute("PRAGMA journal_mode = OFF")
                db.conn.backup(copy)
            except BaseException:
                copy.close()
                target.unlink(missing_ok=True)
                raise
            copy.close()

    @contextmanager
    def held(self) -> Iterator[Database]:
        """The write connection, whether or not its file is where it was."""
        with self._writing, self._explained():
            yield self._writer

    def close(self) -> None:
        """Fold the log into the file and close, once no reader uses it."""
        with self._writing:
            with self._gate:
                self._closed = True
                self._gate.wait_for(lambda: not self._borrowed)
            with suppress(sqlite3.Error):
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._close_all()

    def _close_all(self) -> None:
        for db in (*self._idle, self._writer):
            db.close()
        self._idle.clear()

    def _connect(self, mode: Literal["rw", "rwc"]) -> Database:
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        conn = sqlite3.connect(uri, uri=True, timeout=WAITING_S, check_same_thread=False)
        return Database(conn, execute_plugins=False)

    def _open_reader(self) -> Database:
        db = self._connect("rw")  # never the one to make a file
        db.conn.text_factory = self._text_factory
        db.execute("PRAGMA query_only = ON")
        return db

    def _open_writer(self) -> Database:
        self.narrow = False
        try:
            db = self._prepared()
        except FullDisk:
            self.narrow = True
            db = self._prepared()
        self._file = _identity(self.path)
        return db

    def _prepared(self) -> Database:
        with self._explained():
            db = self._connect("rwc")
            try:
                if self.narrow:
                    db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
                self._prepare(db)
                if self.narrow:
                    db.conn.text_factory = self._text_factory
            except BaseException:
                db.close()
                raise
            return db

    def _require_file(self) -> None:
        """Raise LostFile unless the path still leads to the file that is open: what is written elsewhere is lost."""
        if not self._closed and not self._replacing and _identity(self.path) != self._file:
            raise LostFile(self.path, "deleted or replaced while Lectern had it open", self.when_lost())

    def _versions(self) -> bytes:
        """The versions that a program must know to write and to read the file: bytes 18 and 19 of its header."""
        with self.path.open("rb") as file:
            return file.read(20)[18:]

    def _prepare(self, db: Database) -> None:
        schema = self._schema
        tables = set(db.table_names()) - {"_sqlite_migrations"}
        owner = db.execute("PRAGMA application_id").fetchone()[0]
        if tables and owner != schema.application_id:
            raise DamagedFile(self.path, "a database of another program", schema.when_damaged)
        if tables and max(self._versions()) > NEWEST_VERSION:  # SQLite would open it for reading alone, unsaid
            raise DamagedFile(self.path, "damaged (its header forbids writing)", schema.when_damaged)
        if not tables:  # these hold from the first table on; later they would be written again
            db.execute(f"PRAGMA page_size = {schema.page_size}")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # The file keeps its mode: one left in MEMORY by a start on a full disk has no room to change back either.
        mode = "MEMORY" if self.narrow and schema.may_write_in_place else "WAL"
        db.execute(f"PRAGMA journal_mode = {mode}").fetchone()
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // schema.page_size}").fetchone()
        db.execute(f"PRAGMA journal_size_limit = {2 * WAL_BYTES}").fetchone()
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON").fetchone()
        newer = {m.name for m in schema.migrations.applied(db)} - schema.migration_names()
        if newer:
            raise StoreError(
                f"{self.path}: made by a newer Lectern (schema {max(newer)}); update Lectern or choose another --home"
            )
        if owner != schema.application_id:
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
        free = shutil.disk_usage(self.path.parent).free
        whole = getattr(error, "sqlite_errorcode", 0)
        if (
            code == sqlite3.SQLITE_FULL
            or whole in _NO_ROOM
            or (code == sqlite3.SQLITE_CANTOPEN and free < SHARED_BYTES)
        ):
            return FullDisk(
                f"{self.path}: the disk is full ({free >> 20} MiB free). What was stored before is intact; "
                "free some space: delete documents or chats, or evict memories"
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(f"{self.path}: held by another program; close it and try again")
        # A file that we may write and SQLite may not says so in its own header.
        if code in _NOT_WRITABLE and not os.access(self.path, os.W_OK):
            return StoreError(f"{self.path}: cannot be written; check its permissions or choose another --home")
        if code in _DAMAGED:
            return DamagedFile(self.path, f"damaged ({error})", self._schema.when_damaged)
        return StoreError(f"{self.path}: {error}")


def set_aside(path: Path) -> Path:
    """Rename a database that nobody has open out of the way; returns its new name.

    Raises:
        StoreError: the system refuses.
    """
    aside = path.with_name(f"{path.stem}.set-aside-{datetime.now():%Y%m%d-%H%M%S-%f}{path.suffix}")
    try:
        for old, new in zip(_files(path), _files(aside), strict=True):
            if old.exists():
                os.replace(old, new)
    except OSError as error:
        raise StoreError(f"{path}: damaged and not renamed ({error}); quit Lectern and delete it") from error
    return aside


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to; None when to no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _files(path: Path) -> tuple[Path, Path, Path]:
    """A database and the two files that SQLite keeps beside it."""
    return path, Path(f"{path}-wal"), Path(f"{path}-shm")
