"""The data folder: one process owns it at a time and tells others where it serves."""

import errno
import json
import os
import re
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import filelock

from app.errors import BusyError, StoreError

LOCK_NAME = "lock"
OWNER_NAME = "owner.json"
# What lies in a data folder. Nothing else is touched: --home may name a folder that holds other things too.
KEY_NAME = "programs.key"
OWN_FILES = ("*.db", "*.db-*", "*.json", "*.new", "*.log*", "*.html", "reserve", LOCK_NAME, KEY_NAME)
OWN_FOLDERS = ("uploads", "exports", "sources", "ocr", "users")
ONLY_OWNER = 0o077
UNFINISHED = ("owner.new", "library.new", "library.backup.new", "open.html")
EXPORT = re.compile(r"[0-9a-f]{16}\.lectern(\.part)?")
UPLOAD = re.compile(r"[0-9a-f]{40,64}|tmp[a-z0-9_]{8}")  # an upload's folder, and one that has not all come yet
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class HomeLock:
    """Ownership of a data folder, held until `release` or the end of the process."""

    def __init__(self, home: Path, lock: filelock.BaseFileLock) -> None:
        self.home = home
        self._lock = lock
        self._umask = os.umask(ONLY_OWNER)  # what this process writes is its owner's alone
        try:
            self.set_url(None)
        except StoreError:
            os.umask(self._umask)
            raise

    def set_url(self, url: str | None) -> None:
        """Tell other processes where this one serves."""
        owner = self.home / OWNER_NAME
        fresh = owner.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({"pid": os.getpid(), "url": url}), encoding="utf-8")
            os.replace(fresh, owner)
        except OSError as error:
            if error.errno not in NO_ROOM:  # a full disk is told by the store; others learn that the folder is in use
                raise _unusable(self.home, error) from error
            fresh.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the folder back. A second call does nothing."""
        if self._lock.is_locked:
            (self.home / OWNER_NAME).unlink(missing_ok=True)
            self._lock.release()
            os.umask(self._umask)


def acquire(home: Path) -> HomeLock:
    """Become the owner of a data folder, made if it is absent.

    The operating system drops the lock of a process that died, so a stale `owner.json` is no obstacle. No other account
    can read the folder afterwards, whatever an older release or a copy made of it.

    Raises:
        BusyError: another process owns it; `url` is where that one serves.
        StoreError: the folder cannot be made or written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not thread-local: a server may release it from another thread than the one that took it.
        lock = filelock.FileLock(home / LOCK_NAME, timeout=0, thread_local=False)
        lock.acquire()
    except filelock.Timeout as error:
        raise _busy(home) from error
    except OSError as error:
        raise _unusable(home, error) from error
    try:
        close_to_others(home)
        clear_leftovers(home)
        return HomeLock(home, lock)
    except StoreError:
        lock.release()
        raise


def programs_key(home: Path, *, fresh: bool = False) -> str:
    """The key that other programs send to the endpoint. It stays from start to start; only the owner can read it.

    Args:
        fresh: make a new one; the old one opens nothing any more after the next start.

    Raises:
        StoreError: it can be neither read nor made.
    """
    path = home / KEY_NAME
    try:
        kept = "" if fresh or not path.exists() else path.read_text(encoding="ascii").strip()
        if kept:
            return kept
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        key, new = f"lectern-{secrets.token_urlsafe(24)}", path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(key + "\n")
        os.replace(new, path)
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: the key for programs cannot be kept ({error}); look at its rights") from error
    return key


def close_to_others(home: Path) -> None:
    """Take away what other accounts may do with a data folder and our files in it; links are left alone."""
    inside = [path for pattern in OWN_FILES for path in home.glob(pattern)]
    inside += [path for name in OWN_FOLDERS for path in (home / name, *(home / name).rglob("*"))]
    for path in (home, *inside):
        with suppress(OSError):  # another owner's, or gone meanwhile: nothing that stops the work
            mode = path.lstat().st_mode
            if mode & ONLY_OWNER and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                path.chmod(stat.S_IMODE(mode) & ~ONLY_OWNER)


def clear_leftovers(home: Path) -> None:
    """Delete what a process that died, or a connection that dropped, left unfinished. The caller owns the folder.

    Only names that Lectern and Gradio give: --home may name a folder that holds other things too.
    """
    left = [home / name for name in UNFINISHED]
    left += [path for path in (home / "exports").glob("*") if EXPORT.fullmatch(path.name)]
    left += [path for path in (home / "uploads").glob("*") if UPLOAD.fullmatch(path.name)]
    left += (home / "sources").glob("*.new")
    for path in left:
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _busy(home: Path) -> BusyError:
    pid, url = _owner(home)
    process = f"process {pid}" if pid else "another process"
    if url:
        return BusyError(f"{home}: in use by Lectern ({process}); open {url}, or stop it first", url)
    return BusyError(f"{home}: in use by Lectern ({process}); wait until it ends, or choose another folder with --home")


def _owner(home: Path) -> tuple[int | None, str | None]:
    """Who says to own the folder; (None, None) when the owner has not said so yet."""
    try:
        owner = json.loads((home / OWNER_NAME).read_text(encoding="utf-8"))
        return owner.get("pid"), owner.get("url")
    except (OSError, ValueError, AttributeError):
        return None, None


def _unusable(home: Path, error: OSError) -> StoreError:
    reason = error.strerror or str(error)
    return StoreError(f"{home}: cannot be used as data folder ({reason}); choose another with --home or LECTERN_HOME")
