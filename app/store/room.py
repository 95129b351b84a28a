"""Room on the disk: where block writes stop, and what is kept so that a full disk can be emptied."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from app.errors import StoreError
from app.system import size_text

RESERVE_NAME = "reserve"
MOST_BYTES = 32 << 20
SHARE = 16  # of a small disk, at most the 16th part
MOST_RESERVE_BYTES = 2 << 20  # what SQLite needs to open both files and to delete a little


class Room:
    """The disk that a data folder lies on.

    Memories stop at `floor_bytes`, so that chats and documents have room; the reserve is for a disk that others fill.
    """

    def __init__(self, home: Path) -> None:
        self._home, self._reserve = home, home / RESERVE_NAME
        self.floor_bytes = min(MOST_BYTES, shutil.disk_usage(home).total // SHARE)
        self.reserve_bytes = min(MOST_RESERVE_BYTES, self.floor_bytes // 2)

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self._home).free

    @property
    def full(self) -> bool:
        """Whether so little is left that nothing large may be written."""
        return self.free_bytes < self.floor_bytes

    def require(self, size_bytes: int = 0) -> None:
        """Raise StoreError unless so many bytes leave the floor free."""
        free = self.free_bytes
        if free - size_bytes < self.floor_bytes:
            raise StoreError(
                f"{self._home}: the disk is full ({size_text(free)} free, and {size_text(self.floor_bytes)} stay for "
                "chats). What was stored before is intact; free space: delete documents or chats, or evict memories"
            )

    def keep(self) -> None:
        """Lay the reserve by when there is room for it."""
        with suppress(OSError):
            have = self._reserve.stat().st_size if self._reserve.exists() else 0
            if have >= self.reserve_bytes or self.free_bytes < self.floor_bytes + self.reserve_bytes:
                return
            with self._reserve.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, self.reserve_bytes)
                else:
                    file.write(bytes(self.reserve_bytes))

    def give_up(self) -> None:
        """Let the reserve go, for what empties the disk."""
        with suppress(OSError):
            self._reserve.unlink(missing_ok=True)
