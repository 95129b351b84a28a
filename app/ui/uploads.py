"""Files that a browser sent us: which paths an event may name, and taking them."""

import os
import stat
from collections.abc import Iterator, MutableSet
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import LecternError

FOLDER = "uploads"  # in the data folder: an uploaded file is private and may be large


class Uploads:
    """The uploads of this start of Lectern. An event's path is what a browser says, so it is checked before use.

    Attributes:
        folder: where uploads lie, private and perhaps large; within the data folder.
        received: paths of what was uploaded since the start and not taken yet.
    """

    def __init__(self, folder: Path, received: MutableSet[str]) -> None:
        self.folder = folder
        self.received = received

    def holds(self, path: str) -> bool:
        """Whether a path is that of a file which was uploaded since the start."""
        return path in self.received and _is_own_file(Path(path), self.folder)

    @contextmanager
    def taken(self, path: str) -> Iterator[Path]:
        """Use an uploaded file, which is deleted afterwards. It can be taken once.

        Raises:
            LecternError: it is no upload of this start; nothing was opened or deleted.
        """
        if not self.holds(path):
            raise LecternError("That file was not uploaded to this page, or was taken already; drop it here again.")
        self.received.discard(path)
        file = Path(path)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # a folder of its own, unless the same file comes in a second time
                file.parent.rmdir()


def _is_own_file(path: Path, folder: Path) -> bool:
    """Whether it is a plain file of ours that lies in the folder and is reached by no link."""
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
        found = path.lstat()
    except (OSError, ValueError):
        return False
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return inside and own and stat.S_ISREG(found.st_mode) and found.st_nlink == 1
