"""Files to learn from: texts, code and instructions as entries, and which of them are kept back for validation."""

import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.errors import ConfigError, InputError
from app.ingest.codebase import language
from app.ingest.encoding import decode
from app.ingest.files import read_file
from app.ingest.load import READ_KINDS, load_document
from app.train.tune.instructions import Entry, parse

KINDS = ("text", "code", "instructions")
MAX_FILE_BYTES = 2 << 30
_INSTRUCTION_SUFFIXES = (".jsonl", ".json")
_BOOK_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".pdf")


@dataclass(frozen=True)
class Source:
    """What one file, folder or archive of a recipe holds.

    Attributes:
        kind: one of KINDS.
        notes: what was left out, to be told.
        share: of the tokens learnt from, when a recipe gives shares.
    """

    name: str
    kind: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    share: float = 0.0


def read_sources(paths: Sequence[str | Path], kinds: Sequence[str] = ()) -> list[Source]:
    """Read everything that a recipe names.

    Args:
        kinds: of each path, one of KINDS; "" or none at all: found by looking.

    Raises:
        ConfigError: no path, or a kind that is not known.
        InputError: a path cannot be read, or holds nothing; the message names file, line and what is wanted.
    """
    if not paths:
        raise ConfigError("no files to learn from; name some in the recipe's [data] files")
    if kinds and len(kinds) != len(paths):
        raise ConfigError(f"{len(kinds)} kinds for {len(paths)} files; give one for each, or none")
    return [_read(Path(path), kind) for path, kind in zip(paths, kinds or [""] * len(paths), strict=True)]


def _read(path: Path, kind: str) -> Source:
    if kind not in ("", *KINDS):
        raise ConfigError(f"{path}: kind {kind!r} is not known; choose {', '.join(KINDS)}, or leave it empty")
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; check the path, or [data] files in the recipe")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); download or copy it again")
    kind = kind or look(path)
    if kind == "instructions":
        return _read_instructions(path)
    if kind == "text" and path.is_dir():
        return _read_folder(path)
    if path.suffix == ".xz":
        return Source(path.name, kind, (Entry(path.name, _packed_text(path)),))
    document = load_document(path)
    groups: dict[int, list[str]] = {}
    for part in document.parts:
        groups.setdefault(part.group, []).append(part.text if part.text.endswith("\n") else part.text + "\n")
    notes = (f"{path.name}: {len(document.skipped)} files or pages left out",) if document.skipped else ()
    return Source(path.name, kind, tuple(Entry(path.name, "".join(texts)) for texts in groups.values()), notes)


def look(path: Path) -> str:
    """The kind of a file or folder, from its names alone."""
    if path.is_dir():
        files = [_plain_name(file) for file in _files(path)]
        books = sum(name.lower().endswith((*_BOOK_SUFFIXES, *_INSTRUCTION_SUFFIXES)) for name in files)
        return "text" if 2 * books > len(files) else "code"
    name = _plain_name(path).lower()
    if name.endswith(_INSTRUCTION_SUFFIXES):
        return "instructions"
    return "text" if name.endswith(_BOOK_SUFFIXES) or not language(name) and not name.endswith(".zip") else "code"


def _plain_name(path: Path) -> str:
    """The name without `.xz`."""
    return path.name.removesuffix(".xz")


def _files(folder: Path) -> list[Path]:
    """Files below a folder, sorted; hidden ones and what lies in hidden folders left out."""
    found = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def _packed(path: Path) -> bytes:
    """What a .xz file holds."""
    try:
        with lzma.open(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); download or pack it again") from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path}: unpacks to more than {MAX_FILE_BYTES >> 30} GB; split it")
    return data


def _packed_text(path: Path) -> str:
    text, _ = decode(_packed(path), path.name)
    if not text.strip():
        raise InputError(f"{path}: holds only blanks; choose a file with text in it")
    return text


def _read_instructions(path: Path) -> Source:
    if path.is_dir():
        parts = [_read_instructions(file) for file in _files(path) if look(file) == "instructions"]
        if not parts:
            raise InputError(f"{path}: no .json or .jsonl file lies in it; choose another folder")
        return Source(
            path.name, "instructions", _joined(p.entries for p in parts), _joined(part.notes for part in parts)
        )
    try:
        data = _packed(path) if path.suffix == ".xz" else read_file(path, path.name, MAX_FILE_BYTES)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path.name}, line {line}: not UTF-8; save the file in that encoding") from error
    entries, empty = parse(text, path.name)
    notes = (f"{path.name}: {empty} of {empty + len(entries)} left out, an answer in them is empty",) if empty else ()
    return Source(path.name, "instructions", tuple(entries), notes)


def _read_folder(folder: Path) -> Source:
    """Each readable file of a folder by itself; what is no text is left out and told."""
    parts, left_out = [], []
    for file in _files(folder):
        name = _plain_name(file).lower()
        if name.endswith(_BOOK_SUFFIXES):
            parts.append(_read(file, "text"))
        elif name.endswith(_INSTRUCTION_SUFFIXES):
            parts.append(_read_instructions(file))
        else:
            left_out.append(file.name)
    if not parts:
        raise InputError(f"{folder}: no text lies in it; choose a folder of {READ_KINDS}, also packed as .xz")
    notes = (f"{folder.name}: {len(left_out)} files left out, such as {left_out[0]}",) if left_out else ()
    return Source(folder.name, "text", _joined(p.entries for p in parts), notes + _joined(p.notes for p in parts))


def _joined(groups: Iterator[tuple]) -> tuple:
    return tuple(item for group in groups for item in group)


def divide(sources: Sequence[Source], share: float) -> tuple[list[Source], list[Source]]:
    """Keep a share of the entries back for validation, chosen by the hash of their text alone.

    So the same text, or conversations about the same document, are never on both sides, whichever file they are in and
    whatever else is learnt from.

    Returns:
        (to learn from, to validate with); sources that have nothing on a side are missing there.

    Raises:
        ConfigError: the share is not between 0 and 1, or a side stays empty.
    """
    if not 0 < share < 1:
        raise ConfigError(f"validation share {share}: must lie between 0 and 1")
    kept = {False: [], True: []}
    for source in sources:
        for back in (False, True):
            entries = tuple(entry for entry in source.entries if (int(entry.key[:12], 16) / 16**12 < share) == back)
            kept[back] += [replace(source, entries=entries)] if entries else []
    if not (kept[False] and kept[True]):
        count = sum(len(source.entries) for source in sources)
        missing = "left to learn from" if kept[True] else "kept back"
        raise ConfigError(
            f"validation share {share}: of {count} texts none is {missing}; give more texts, another share, or files "
            "of their own for validation"
        )
    return kept[False], kept[True]


def without(sources: Sequence[Source], validation: Sequence[Source]) -> list[Source]:
    """The sources without what also stands in `validation`; how much that is stands in their notes."""
    kept_back = {entry.key for source in validation for entry in source.entries}
    left = []
    for source in sources:
        entries = tuple(entry for entry in source.entries if entry.key not in kept_back)
        gone = len(source.entries) - len(entries)
        notes = (f"{source.name}: {gone} left out, they are validated with",) if gone else ()
        left += [replace(source, entries=entries, notes=source.notes + notes)] if entries else []
    if not left:
        raise ConfigError("all texts are validated with, none is left to learn from; give others for one of the two")
    return left
