"""Find the files of a folder worth reading, as git and common sense see it."""

import os
from collections.abc import Callable
from pathlib import Path

import pathspec

from app.errors import CancelledError, InputError
from app.ingest.files import MAX_FILE_BYTES, Cancelled, Entry, Unreadable, never, printable
from app.ingest.rules import folder_reason, name_reason
from app.records import Skipped

MAX_FILES = 20_000
MAX_DEPTH = 20


class Sieve:
    """Says what of a tree to leave out, and keeps the list.

    Attributes:
        skipped: what was left out; of a folder only the folder itself.
    """

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self._rules: dict[str, pathspec.GitIgnoreSpec] = {}
        self._folders: dict[str, bool] = {"": False}

    def add_gitignore(self, folder: str, text: str) -> None:
        """Rules for everything under `folder` ("" is the root). Add them before asking about its contents."""
        self._rules[folder] = pathspec.GitIgnoreSpec.from_lines(text.splitlines())

    def drops_folder(self, path: str) -> bool:
        """True when a folder, or one above it, is left out."""
        if path not in self._folders:
            above = path.rpartition("/")[0]
            reason = folder_reason(path) or (".gitignore" if self._ignored(path + "/") else None)
            if path.count("/") >= MAX_DEPTH:
                reason = f"more than {MAX_DEPTH} folders deep"
            self._folders[path] = self.drops_folder(above) or reason is not None
            if reason and not self._folders[above]:
                self.skip(path + "/", reason)
        return self._folders[path]

    def drops_file(self, path: str, size_bytes: int) -> bool:
        """True when a file, or a folder above it, is left out."""
        if self.drops_folder(path.rpartition("/")[0]):
            return True
        reason = ".gitignore" if self._ignored(path) else name_reason(path, size_bytes)
        if reason:
            self.skip(path, reason)
        return reason is not None

    def skip(self, path: str, reason: str) -> None:
        """List something that is left out."""
        self.skipped.append(Skipped(path, reason))

    def _ignored(self, path: str) -> bool:
        """The last rule that matches decides, and rules deeper in the tree come last, as in git."""
        decision, folder, names = False, "", path.rstrip("/").split("/")
        for depth in range(len(names)):
            rules = self._rules.get(folder)
            if rules is not None:
                matched = rules.check_file(path[len(folder) + 1 :] if folder else path).include
                decision = decision if matched is None else matched
            folder = "/".join(names[: depth + 1])
        return decision


def walk_folder(root: Path, name: str, cancelled: Cancelled = never) -> tuple[list[Entry], list[Skipped]]:
    """The files of a folder that a codebase is read from, and what is left out.

    Symbolic links are not followed; fifos, sockets and devices are not opened.

    Raises:
        InputError: there are too many files.
        CancelledError: `cancelled`, asked in every folder, said so.
    """
    sieve, entries = Sieve(), []

    def unreadable(error: OSError) -> None:
        sieve.skip(printable(os.path.relpath(error.filename, root)) + "/", f"cannot be opened: {error.strerror}")

    for place, folders, files in os.walk(root, onerror=unreadable):
        if cancelled():
            raise CancelledError("looking for files was cancelled")
        above = Path(place).relative_to(root).as_posix()
        prefix = "" if above == "." else f"{above}/"
        if ".gitignore" in files:
            sieve.add_gitignore(prefix.rstrip("/"), _read_rules(Path(place, ".gitignore")))
        linked = {folder for folder in folders if os.path.islink(os.path.join(place, folder))}
        for folder in sorted(linked):
            sieve.skip(printable(prefix + folder), "symbolic link")
        folders[:] = sorted(f for f in folders if f not in linked and not sieve.drops_folder(prefix + f))
        entries += _files_of(place, prefix, sorted(files), sieve)
        if len(entries) > MAX_FILES:
            raise InputError(f"{name}: more than {MAX_FILES:,} files; choose a folder inside it")
    return entries, sieve.skipped


def _files_of(place: str, prefix: str, names: list[str], sieve: Sieve) -> list[Entry]:
    entries = []
    with os.scandir(place) as items:
        found = {item.name: item for item in items}
    for name in names:
        path, item = printable(prefix + name), found.get(name)
        if item is None or item.is_symlink() or not item.is_file():
            sieve.skip(path, "symbolic link" if item and item.is_symlink() else "not a regular file")
            continue
        size_bytes = item.stat().st_size
        if not sieve.drops_file(path, size_bytes):
            entries.append(Entry(path, size_bytes, _reader(item.path)))
    return entries


def _reader(path: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from error

    return read


def _read_rules(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # the file itself is listed as unreadable when its turn comes
