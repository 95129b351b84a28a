"""The data folder: one process owns it at a time and tells others where it serves."""

import json
import os
from pathlib import Path

import filelock

from app.errors import BusyError, StoreError

LOCK_NAME = "lock"
OWNER_NAME = "owner.json"


class HomeLock:
    """Ownership of a data folder, held until `release` or the end of the process."""

    def __init__(self, home: Path, lock: filelock.BaseFileLock) -> None:
        self.home = home
        self._lock = lock
        self.set_url(None)

    def set_url(self, url: str | None) -> None:
        """Tell other processes where this one serves."""
        owner = self.home / OWNER_NAME
        fresh = owner.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({"pid": os.getpid(), "url": url}), encoding="utf-8")
            os.replace(fresh, owner)
        except OSError as error:
            raise _unusable(self.home, error) from error

    def release(self) -> None:
        """Give the folder back. A second call does nothing."""
        if self._lock.is_locked:
            (self.home / OWNER_NAME).unlink(missing_ok=True)
            self._lock.release()


def acquire(home: Path) -> HomeLock:
    """Become the owner of a data folder, made if it is absent.

    The operating system drops the lock of a process that died, so a stale `owner.json` is no obstacle.

    Raises:
        BusyError: another process owns it; `url` is where that one serves.
        StoreError: the folder cannot be made or written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Not thread-local: a server may release it from another thread than the one that took it.
        lock = filelock.FileLock(home / LOCK_NAME, timeout=0, thread_local=False)
        lock.acquire()
    except filelock.Timeout as error:
        raise _busy(home) from error
    except OSError as error:
        raise _unusable(home, error) from error
    try:
        return HomeLock(home, lock)
    except StoreError:
        lock.release()
        raise


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
