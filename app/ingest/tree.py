"""Find the files of a folder worth reading, as git and common sense see it."""

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pathspec

from app.errors import CancelledError, InputError
from app.ingest.files import MAX_FILE_BYTES, Cancelled, Entry, Unreadable, never, printable
from app.ingest.rules import folder_reason, name_reason
from app.records import Skipped

MAX_FILES = 20_000
MAX_NAMES = 200_000  # of files and folders, those left out included
MAX_DEPTH = 20


class Sieve:
    """Says what of a tree to leave out, and keeps the list.

    Attributes:
        skipped: what was left out; of a folder only the folder itself.
    """

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self._above: list[tuple[str, pathspec.GitIgnoreSpec]] = []
        self._rules: dict[str, pathspec.GitIgnoreSpec] = {}
        self._folders: dict[str, bool] = {"": False}

    def add_gitignore(self, folder: str, text: str) -> None:
        """Rules for everything under `folder` ("" is the root). Add them before asking about its contents."""
        self._rules[folder] = _compiled(text)

    def add_rules_above(self, root: Path) -> None:
        """Rules of the repository that the root lies in; git would not read what they name either.

        Where they name the root itself the user chose to read it, and they say nothing.
        """
        for path, text in _rules_above(root):
            rules = _compiled(text)
            if not (path and any(rules.check_file(path[: at + 1]).include for at, c in enumerate(path) if c == "/")):
                self._above.append((path, rules))

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
            reason = folder_reason(path) or (".gitignore" if self._ignored(path + "/") else None)
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
        reason = ".gitignore" if self._ignored(path) else name_reason(path, size_bytes)
        if reason:
            self.skip(path, reason)
        return reason is not None

    def skip(self, path: str, reason: str) -> None:
        """List something that is left out."""
        self.skipped.append(Skipped(path, reason))

    def _ignored(self, path: str) -> bool:
        """The last rule that matches decides, and rules deeper in the tree come last, as in git."""
        decision = False
        for above, rules in self._above:
            matched = rules.check_file(above + path).include
            decision = decision if matched is None else matched
        folder, names = "", path.rstrip("/").split("/")
        for depth in range(len(names)):
            rules = self._rules.get(folder)
            if rules is not None:
                matched = rules.check_file(path[len(folder) + 1 :] if folder else path).include
                decision = decision if matched is None else matched
            folder = "/".join(names[: depth + 1])
        return decision


def _compiled(text: str) -> pathspec.GitIgnoreSpec:
    """Rules of one file; a line that git could not use either says nothing."""
    patterns = []
    for line in text.removeprefix("\ufeff").split("\n"):
        try:
            patterns += pathspec.GitIgnoreSpec.from_lines([line.removesuffix("\r")]).patterns
        except (ValueError, re.error):
            continue
    return pathspec.GitIgnoreSpec(patterns)


def _rules_above(root: Path) -> Iterator[tuple[str, str]]:
    """(path of the root from there, rules) of the repository that a folder lies in, as git reads them, its own last."""
    root = root.resolve()
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
    if top is None:
        return
    inside = [top, *reversed([folder for folder in root.parents if folder.is_relative_to(top) and folder != top])]
    yield _from(top, root), _read_rules(top / ".git" / "info" / "exclude")
    for folder in inside:
        if folder != root:
            yield _from(folder, root), _read_rules(folder / ".gitignore")


def _from(folder: Path, root: Path) -> str:
    path = root.relative_to(folder).as_posix()
    return "" if path == "." else f"{path}/"


def walk_folder(root: Path, name: str, cancelled: Cancelled = never) -> tuple[list[Entry], list[Skipped]]:
    """The files of a folder that a codebase is read from, and what is left out.

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
        if any(item.name == ".gitignore" for item in found):
            sieve.add_gitignore(prefix.rstrip("/"), _read_rules(Path(root, prefix, ".gitignore")))
        folders = []
        for count, item in enumerate(found):
            if count % 256 == 0 and cancelled():
                raise CancelledError("looking for files was cancelled")
            if _look_at(item, prefix, sieve, entries):
                folders.append(f"{prefix}{item.name}/")
        waiting += reversed(folders)
        if len(entries) > MAX_FILES:
            raise InputError(f"{name}: more than {MAX_FILES:,} files; choose a folder inside it")
    return entries, sieve.skipped


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
                return file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from error

    return read


def _read_rules(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # the file itself is listed as unreadable when its turn comes
