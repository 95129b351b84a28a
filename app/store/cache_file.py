"""CacheFile: a SQLite file of what can be made again, written by one thread and begun anew when it is damaged."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from app.errors import DamagedBlock
from app.store.database import DamagedFile, SqliteFile, set_aside
from app.store.migrations import Schema
from app.store.writer import Operation, Writer

log = logging.getLogger(__name__)


class CacheFile:
    """One writer thread, readers in any thread. A damaged file is renamed and an empty one takes its place.

    Attributes:
        writer: applies queued writes, many to a transaction.
        notes: what the user should know, such as a damaged file that was set aside.
    """

    def __init__(self, path: Path, schema: Schema, thread: str) -> None:
        """Open the file.

        Args:
            thread: name of the one that writes.

        Raises:
            StoreError: the file cannot be read and written, or is from a newer release.
        """
        self.path, self.notes = path, list[str]()
        self._schema = schema
        self._broken_generation = -1
        try:
            self._file = self._open()
        except DamagedFile as error:
            self._note_aside(set_aside(path), error.reason)
            self._file = self._open()
        self.writer = Writer(self._apply, thread)

    @property
    def generation(self) -> int:
        """How often the file was begun anew."""
        return self._file.generation

    @contextmanager
    def read(self) -> Iterator[Database]:
        """A connection for reading.

        Raises:
            DamagedBlock: the file turns out to be broken; an empty one is about to take its place.
        """
        generation = self.generation
        try:
            with self._file.read() as db:
                yield db
        except DamagedFile as error:
            self.report_broken(generation)
            raise DamagedBlock(
                f"{self.path}: {error.reason}. An empty file takes its place; what was read has to be read again"
            ) from error

    def report_broken(self, generation: int) -> None:
        """Have the writer thread replace the file, unless it did so already."""
        self._broken_generation = generation
        self.writer.submit(lambda db: None)

    def problems(self) -> list[str]:
        """What is wrong with the structure of the file."""
        return self._file.problems()

    def size_bytes(self) -> int:
        """Bytes on the disk."""
        return self._file.size_bytes()

    def compact(self) -> None:
        """Fold the write-ahead log into the file."""
        self._file.fold()

    def close(self) -> None:
        """Write what is queued and close."""
        self.writer.close()
        self._file.close()

    def _open(self) -> SqliteFile:
        # Bytes: a flipped bit in a TEXT column must not become a decoding error.
        return SqliteFile(self.path, self._schema, text_factory=bytes)

    def _apply(self, operations: list[Operation]) -> None:
        """Run a batch in one transaction, on the writer thread."""
        if self._broken_generation == self.generation:
            self._start_anew("its structure is damaged")
        try:
            self._transact(operations)
        except DamagedFile as error:
            self._start_anew(error.reason)
            self._transact(operations)

    def _transact(self, operations: list[Operation]) -> None:
        with self._file.write() as db:
            for operation in operations:
                operation(db)

    def _start_anew(self, reason: str) -> None:
        self._note_aside(self._file.start_anew(), reason)

    def _note_aside(self, aside: Path, reason: str) -> None:
        note = f"{self.path}: {reason}; set aside as {aside.name}. What was read is read again when asked"
        log.warning(note)
        self.notes.append(note)
