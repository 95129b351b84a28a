"""Find the files of a folder worth reading, as git and common sense see it."""

import os
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

from app.errors import CancelledError, InputError
from app.ingest.files import Cancelled, Entry, Unreadable, limit_of, never, printable
from app.ingest.gitrules import (
    GENERATED,
    VENDORED,
    RuleTree,
    files_above,
    global_ignore,
    path_from,
    read_rules,
    top_of,
)
from app.ingest.rules import folder_reason, name_reason
from app.records import Skipped

MAX_FILES = 20_000
MAX_NAMES = 200_000  # of files and folders, those left out included
MAX_DEPTH = 20
IGNORE_FILE, ATTRIBUTE_FILE = ".gitignore", ".gitattributes"


class Sieve:
    """Says what of a tree to leave out, and keeps the list.

    Attributes:
        skipped: what was left out; of a folder only the folder itself.
        notes: what the user should know of git's rules.
    """

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self._ignored = RuleTree()
        self._attributes = {
            "generated": RuleTree(attribute=GENERATED), "vendored": RuleTree(attribute=VENDORED),
        }  # fmt: skip
        self._folders: dict[str, bool] = {"": False}

    def add_rules(self, folder: str, read: Callable[[str], str | None]) -> None:
        """Rules for everything under `folder` ("" is the root). Add them before asking about its contents.

        Args:
            read: gives the text of a file of the folder by its name, None where there is none.
        """
        place = f"{folder}/" if folder else ""
        if text := read(IGNORE_FILE):
            self._ignored.add(folder, text, place + IGNORE_FILE)
        if text := read(ATTRIBUTE_FILE):
            for tree in self._attributes.values():
                tree.add(folder, text, place + ATTRIBUTE_FILE)

    def add_rules_above(self, root: Path) -> None:
        """Rules of the repository that the root lies in, and of its user; git would not read what they name either.

        Rules that name the root itself say nothing: the user chose to read it. The others hold.
        """
        root = root.resolve()
        if (top := top_of(root)) is None:
            return
        above = list(files_above(top, root, IGNORE_FILE, "exclude"))
        own = global_ignore()
        above = [(path_from(top, root), own), *above] if own else above
        if any([self._ignored.add_above(path, read_rules(file), file.name) for path, file in above]):
            self.notes.append("git ignores this folder; it was read because you chose it")
        for path, file in files_above(top, root, ATTRIBUTE_FILE, "attributes"):
            for tree in self._attributes.values():
                tree.add_above(path, read_rules(file), file.name)

    def all_notes(self) -> list[str]:
        """The notes, and which rules were not used."""
        unused = [f'"{rule}" of {file}' for file, rule in dict.fromkeys(self._ignored.unused)]
        if not unused:
            return self.notes
        listed = ", ".join(unused[:3]) + (" ..." if len(unused) > 3 else "")
        return [*self.notes, f"ignore rules that would take too long to match were not used: {listed}"]

    def drops_folder(self, path: str) -> bool:
        """True when a folder, or one above it, is left out."""
        names = path.split("/", MAX_DEPTH + 1)
        if len(names) > MAX_DEPTH:  # looked at before anything that takes time or memory for each folder above
            path = "/".join(names[: MAX_DEPTH + 1])
        for end in [*(at for at, char in enumerate(path) if char == "/"), len(path)]:
            if self._drops(path[:end]):
                return True
        return False

    def _drops(self, path: str) -> bool:
        """Whether a folder, of which none above is left out, is left out itself."""
        if path not in self._folders:
            reason = folder_reason(path) or (IGNORE_FILE if self._ignored.names(path + "/") else None)
            if path.count("/") >= MAX_DEPTH:
                reason = f"more than {MAX_DEPTH} folders deep"
            self._folders[path] = reason is not None
            if reason:
                self.skip(path + "/", reason)
        return self._folders[path]

    def drops_file(self, path: str, size_bytes: int) -> bool:
        """True when a file, or a folder above it, is left out."""
        if self.drops_folder(path.rpartition("/")[0]):
            return True
        reason = IGNORE_FILE if self._ignored.names(path) else name_reason(path, size_bytes)
        reason = reason or self._given(path)
        if reason:
            self.skip(path, reason)
        return reason is not None

    def _given(self, path: str) -> str | None:
        """Why a file is left out by its attributes."""
        return next((f"{what} ({ATTRIBUTE_FILE})" for what, tree in self._attributes.items() if tree.names(path)), None)

    def names(self, path: str) -> bool:
        """Whether git ignores a path."""
        return self._ignored.names(path)

    def skip(self, path: str, reason: str) -> None:
        """List something that is left out."""
        self.skipped.append(Skipped(path, reason))


def is_ignored(path: Path) -> bool:
    """Whether git ignores a file that the user chose."""
    path = path.resolve()
    if top_of(path.parent) is None:
        return False
    sieve = Sieve()
    sieve.add_rules_above(path.parent)
    sieve.add_rules("", lambda name: read_rules(path.parent / name))
    return bool(sieve.notes) or sieve.names(path.name)


def walk_folder(root: Path, name: str, cancelled: Cancelled = never) -> tuple[list[Entry], Sieve]:
    """The files of a folder that a codebase is read from, and what left the others out.

    Symbolic links are not followed; fifos, sockets and devices are not opened. What vanishes meanwhile is listed.

    Raises:
        InputError: there are too many files.
        CancelledError: `cancelled`, asked now and then, said so.
        OSError: the folder itself cannot be opened.
    """
    sieve, entries, waiting = Sieve(), [], [""]
    sieve.add_rules_above(root)
    seen = 0
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(os.path.join(root, prefix)) as items:
                found = sorted(islice(items, MAX_NAMES + 1), key=lambda item: item.name)
        except OSError as error:
            if not prefix:
                raise
            sieve.skip(printable(prefix), f"cannot be opened: {error.strerror}")
            continue
        seen += len(found)
        if seen > MAX_NAMES:
            raise InputError(f"{name}: more than {MAX_NAMES:,} files and folders; choose a folder inside it")
        if any(item.name in (IGNORE_FILE, ATTRIBUTE_FILE) for item in found):
            sieve.add_rules(prefix.rstrip("/"), partial(_rule_file, Path(root, prefix)))
        folders = []
        for count, item in enumerate(found):
            if count % 256 == 0 and cancelled():
                raise CancelledError("looking for files was cancelled")
            if _look_at(item, prefix, sieve, entries):
                folders.append(f"{prefix}{item.name}/")
        waiting += reversed(folders)
        if len(entries) > MAX_FILES:
            raise InputError(f"{name}: more than {MAX_FILES:,} files; choose a folder inside it")
    return entries, sieve


def _look_at(item: os.DirEntry, prefix: str, sieve: Sieve, entries: list[Entry]) -> bool:
    """Put a file that is read into the entries, or the reason into the sieve; True for a folder to go into."""
    path = printable(prefix + item.name)
    try:
        if item.is_symlink():
            sieve.skip(path, "symbolic link")
        elif item.is_dir():
            return not sieve.drops_folder(prefix + item.name)
        elif not item.is_file():
            sieve.skip(path, "not a regular file")
        elif not sieve.drops_file(path, size_bytes := item.stat().st_size):
            entries.append(Entry(path, size_bytes, _reader(item.path)))
    except OSError as error:
        sieve.skip(path, f"cannot be read: {error.strerror}")
    return False


def _reader(path: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read(limit_of(path) + 1)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from error

    return read


def _rule_file(folder: Path, name: str) -> str:
    return read_rules(folder / name)
