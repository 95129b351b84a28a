"""One set-up at a time in a checkout. The kernel frees the lock when its holder dies, however it dies."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if os.name == "nt":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the pid, which others must be able to read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def held(path: Path, on_wait: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock file `path`, waiting for another holder.

    Args:
        on_wait: called once with the holder's process id when there is one.

    Yields:
        The descriptor. A child that inherits it keeps the lock, so that a pip which outlives a killed set-up
        still keeps the next one away.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        told = False
        while not _try_lock(descriptor):
            if not told:
                on_wait(path.read_bytes().decode("ascii", "replace").strip() or "unknown")
                told = True
            time.sleep(0.2)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)
