"""library.db and its last three daily copies: a lost library is noticed, and no copy is replaced by an emptier one."""

import logging
import os
import shutil
import sqlite3
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from app.errors import LostLibrary, StoreError
from app.store.database import SqliteFile, set_aside
from app.store.migrations import LIBRARY
from app.system import plural

log = logging.getLogger(__name__)

LIBRARY_NAME = "library.db"
NAMES = ("library.backup.db", "library.backup-2.db", "library.backup-3.db")  # the newest first
EVERY_S = 24 * 3600


@dataclass(frozen=True)
class Life:
    """Which library a file holds.

    Attributes:
        id: "" in files of older releases.
        added: documents, chats and messages that were ever added; deleting does not lower it.
    """

    id: str
    added: int

    def continues(self, other: "Life") -> bool:
        """Whether this is the other library at a later time, or at the same."""
        return self.added >= other.added and (not other.id or self.id == other.id)


@dataclass(frozen=True)
class Copy:
    """A copy of a library: where, from when, and what is in it."""

    path: Path
    made: float
    life: Life
    documents: int
    chats: int

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.made)
        return (
            f"{self.path.name} of {moment.day} {moment:%b %Y, %H:%M} with "
            f"{plural(self.documents, 'document')} and {plural(self.chats, 'chat')}"
        )


def life(library: SqliteFile, *, lost: bool = False) -> Life:
    """Which library is open; `lost`: see `take`."""
    with library.held() if lost else library.read() as db:
        return Life(*db.execute("SELECT id, added FROM life").fetchone())


def look(path: Path) -> Copy | None:
    """What a copy holds; None when there is none, or none that SQLite can read."""
    try:
        made = path.stat().st_mtime
        # Immutable: a copy has no log, and looking must need neither a lock nor a byte of room.
        conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            counts = [conn.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in ("document", "chat")]
            messages = conn.execute("SELECT COUNT(*) FROM message").fetchone()[0]
            marked = conn.execute("SELECT 1 FROM sqlite_schema WHERE name = 'life'").fetchone()
            row = conn.execute("SELECT id, added FROM life").fetchone() if marked else ("", sum(counts) + messages)
        finally:
            conn.close()
    except (OSError, sqlite3.Error) as error:
        if path.exists():
            log.warning("%s: cannot be read: %s", path, error)
        return None
    return Copy(path, made, Life(*row), *counts)


def found(home: Path) -> list[Copy]:
    """The copies that can be read and hold something, the newest first."""
    copies = [look(home / name) for name in NAMES]
    return [copy for copy in copies if copy and copy.life.added]


def open_library(home: Path, blocks: int) -> SqliteFile:
    """Open library.db, made when this is a new folder.

    Args:
        blocks: how many memory blocks the folder holds, which some library must have named.

    Raises:
        LostLibrary: it is gone or empty, and there was one.
        StoreError: see SqliteFile.
    """
    path = home / LIBRARY_NAME
    if not path.exists() or not path.stat().st_size:
        _refuse_lost(home, blocks, "is empty" if path.exists() else "is not there")
    library = SqliteFile(path, LIBRARY)
    try:
        if not life(library).added:
            _refuse_lost(home, blocks, "is empty")
    except BaseException:
        library.close()
        raise
    return library


def _refuse_lost(home: Path, blocks: int, state: str) -> None:
    """Raise LostLibrary when something says that there was more than nothing."""
    copies = found(home)
    if not copies and not blocks:
        return
    command = f"python launch.py store restore --home {home}"
    there = [str(copies[0])] if copies else []
    there += [f"{plural(blocks, 'block')} of memories that only a library can name"] if blocks else []
    ways = [f"`{command}` puts the copy in its place"] if copies else ["put the file back if you moved it"]
    ways.append(f"`{command} --empty` begins with an empty library; copies stay under other names")
    what = f"{home / LIBRARY_NAME} {state}, but beside it lies {', and '.join(there)}"
    raise LostLibrary(what, "; ".join(ways), home, str(copies[0]) if copies else None)


def due(home: Path) -> bool:
    """Whether the newest copy is a day old, or missing."""
    newest = home / NAMES[0]
    return not newest.exists() or time.time() - newest.stat().st_mtime >= EVERY_S


def take(library: SqliteFile, *, lost: bool = False) -> list[str]:
    """Copy a library that holds something, keeping the copies before; returns what the user should know.

    Copies of a fuller or of another library are not rotated away: they are set aside.

    Args:
        lost: its file is gone, and only the open connection holds it.
    """
    home, notes = library.path.parent, list[str]()
    now = life(library, lost=lost)
    if not now.added:
        return notes
    fresh = home / "library.backup.new"
    fresh.unlink(missing_ok=True)
    library.copy_to(fresh, lost=lost)
    for copy in found(home):
        if not now.continues(copy.life):
            aside = set_aside(copy.path)
            notes.append(
                f"library.db holds less than {copy}, or is another library: that copy is kept as {aside.name}, and "
                f"`python launch.py store restore {aside.name}` puts it back"
            )
    for newer, older in reversed(list(zip(NAMES, NAMES[1:], strict=False))):
        if (home / newer).exists():
            os.replace(home / newer, home / older)
    os.replace(fresh, home / NAMES[0])
    return notes


def restore(home: Path, name: str | None = None) -> tuple[Copy, Path | None]:
    """Put a copy in the place of library.db, which is kept under another name. The caller owns the folder.

    Args:
        name: file name of a copy in the folder; None means the newest that holds something and is sound.

    Returns:
        the copy, which stays, and the new name of what was in its place.

    Raises:
        StoreError: there is no such copy, or it is damaged.
    """
    copies = found(home) if name is None else [copy for copy in [look(home / Path(name).name)] if copy]
    copy = next((copy for copy in copies if _sound(copy.path)), None)
    if copy is None:
        names = ", ".join(str(copy) for copy in found(home)) or "none"
        raise StoreError(f"{home}: no sound copy of the library ({name or 'any'} was asked for; there: {names})")
    path, fresh = home / LIBRARY_NAME, home / "library.new"
    shutil.copyfile(copy.path, fresh)
    aside = set_aside(path) if any(home.glob("library.db*")) else None
    os.replace(fresh, path)
    return copy, aside


def begin_empty(home: Path) -> list[Path]:
    """Begin with an empty library; what is there and its copies get other names, which are returned."""
    asides = [set_aside(home / name) for name in (LIBRARY_NAME, *NAMES) if (home / name).exists()]
    library = SqliteFile(home / LIBRARY_NAME, LIBRARY)
    with library.write() as db:
        db.execute("UPDATE life SET added = 1")  # an empty one that was asked for is not lost
    library.close()
    return asides


def _sound(path: Path) -> bool:
    try:
        conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            owner = conn.execute("PRAGMA application_id").fetchone()[0]
            return owner == LIBRARY.application_id and conn.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        finally:
            conn.close()
    except sqlite3.Error:
        return False
