"""Small things every reader of files needs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.errors import CancelledError, InputError

MAX_FILE_BYTES = 1 << 20  # larger files of a codebase are data, not source
MAX_NOTEBOOK_BYTES = 64 << 20  # nearly all of a notebook are pictures
MAX_TEXT_BYTES = 64 << 20  # of one document, about 16 million tokens: more than any model here can read

Progress = Callable[[int, int], None]  # (pages or files done, of how many)
Cancelled = Callable[[], bool]


def no_progress(done: int, total: int) -> None:
    """Nobody watches."""


def never() -> bool:
    """Nobody cancels."""
    return False


def hash_file(path: Path, cancelled: Cancelled = never) -> str:
    """SHA-256 of a file's bytes, as hex digits.

    Raises:
        CancelledError: `cancelled`, asked for each megabyte, said so.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            if cancelled():
                raise CancelledError("reading the file was cancelled")
            digest.update(piece)
    return digest.hexdigest()


def hash_bytes(data: bytes) -> str:
    """SHA-256 of bytes, as hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_of(data: bytes, encoding: str | None) -> str:
    """SHA-256 of what a document is made of: its bytes, and the encoding where the user chose one."""
    return hash_bytes(data if encoding is None else data + f"\0encoding {encoding.lower()}".encode())


def read_file(path: Path, name: str, limit_bytes: int) -> bytes:
    """All bytes of a file.

    Raises:
        InputError: it is larger than the limit.
    """
    with open(path, "rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise InputError(f"{name}: larger than {limit_bytes >> 20} MB, the most that can be read; split it")
    return data


def limit_of(path: str) -> int:
    """The most bytes that a file of a codebase may have."""
    return MAX_NOTEBOOK_BYTES if path.lower().endswith(".ipynb") else MAX_FILE_BYTES


class Unreadable(Exception):
    """One file of many cannot be read; the message is the reason to list."""


@dataclass(frozen=True)
class Entry:
    """A file of a folder or archive, found but not read.

    Attributes:
        path: "/"-separated, from the root of the folder or archive.
        read: gives the bytes, at most one more than `limit_of` its path; raises Unreadable.
    """

    path: str
    size_bytes: int
    read: Callable[[], bytes]


def printable(name: str) -> str:
    """A file name without control characters and broken surrogates, fit for a message or a database."""
    return "".join(char if char.isprintable() else "\ufffd" for char in name)
