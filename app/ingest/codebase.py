"""A folder or zip archive of source files to one document, file by file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from app.errors import CancelledError, InputError
from app.ingest.archive import open_archive
from app.ingest.blocks import About, Refused, to_parts
from app.ingest.document import load_blocks
from app.ingest.embedded import named, without_data
from app.ingest.encoding import decode, is_binary, is_utf8
from app.ingest.files import (
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    Cancelled,
    Progress,
    Unreadable,
    digest_of,
    hash_bytes,
    hash_file,
    limit_of,
    never,
    no_progress,
    read_file,
)
from app.ingest.formats.notebook import cells
from app.ingest.registry import NOTEBOOK
from app.ingest.rules import SECRET, content_reason, is_prose
from app.ingest.tree import walk_folder
from app.records import Document, Part, Skipped

GROUP_CHARS = 200_000  # about 50,000 tokens
PART_CHARS = 100_000  # a longer file is several parts
MOSTLY_DATA = 0.9  # of a file's characters: it is left out whole
_MINIFIED = (".js", ".mjs", ".cjs", ".css", ".html", ".json", ".xml")


@dataclass(frozen=True)
class _Source:
    """What is read of one file.

    Attributes:
        places: (first character, label) of a notebook's cells.
        left_out: (place, reason) of what is not read.
        guessed: its encoding was.
    """

    text: str
    places: tuple[tuple[int, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    guessed: bool = False


def load_codebase(
    path: Path,
    name: str,
    *,
    encoding: str | None = None,
    progress: Progress = no_progress,
    cancelled: Cancelled = never,
) -> Document:
    """Read the source files of a folder or zip archive, one part per file.

    Files of one top-level folder form one group (memory), files beside those folders another. A folder of more than
    GROUP_CHARS is divided likewise, so that a changed file has little read again after it.

    Args:
        encoding: of the files that are not UTF-8, which makes it another document; None finds each.
        progress: called with (files done, files).
        cancelled: asked before each file.

    Raises:
        InputError: the archive is refused, nothing in it can be read, or it holds more than MAX_TEXT_BYTES of text.
        CancelledError: `cancelled` said so.
    """
    if path.is_dir():
        title, source, archive = name, None, nullcontext()
        entries, sieve = walk_folder(path, name, cancelled)
    else:
        title, source = Path(name).stem, hash_file(path, cancelled)
        archive, entries, sieve = open_archive(path, name, cancelled)
    entries.sort(key=lambda entry: _reading_order(entry.path))
    sources: dict[str, _Source] = {}
    skipped, digests, guessed, size_bytes = sieve.skipped, [], [], 0
    with archive:
        for done, entry in enumerate(entries, start=1):
            if cancelled():
                raise CancelledError("reading the files was cancelled")
            try:
                data = entry.read()
                sources[entry.path] = found = _read_source(entry.path, data, encoding, cancelled)
                digests.append(f"{entry.path}\0{hash_bytes(data)}\n")
                size_bytes += len(found.text)
                guessed += [entry.path] if found.guessed else []
                skipped += [Skipped(*item) for item in found.left_out]
            except Unreadable as reason:
                skipped.append(Skipped(entry.path, str(reason)))
            if size_bytes > MAX_TEXT_BYTES:
                raise InputError(
                    f"{name}: more than {MAX_TEXT_BYTES >> 20} MB of text by {entry.path} (file {done:,} of "
                    f"{len(entries):,}); add a folder of it, or fewer files"
                )
            progress(done, len(entries))
    if not sources:
        raise InputError(f"{name}: no file in it can be read as text{_counted(skipped)}; choose another")
    digest = source or hash_bytes("".join(sorted(digests)).encode())
    digest = digest_of(bytes.fromhex(digest), encoding) if encoding else digest
    skipped = sorted(skipped, key=lambda item: item.name)
    notes = (*sieve.all_notes(), *_notes(skipped, guessed))
    return Document(title, "code", digest, tuple(_parts(sources)), tuple(skipped), notes)


def load_code_file(path: Path, name: str, *, encoding: str | None = None, cancelled: Cancelled = never) -> Document:
    """Read one source file as a document.

    Raises:
        InputError: it is too large, binary or blank.
        CancelledError: `cancelled` said so.
    """
    data = read_file(path, name, MAX_TEXT_BYTES)
    text, note = decode(data, name, encoding=encoding, cancelled=cancelled)
    if not text.strip():
        raise InputError(f"{name}: holds only blanks ({len(data)} bytes); choose a file with text in it")
    text, left_out = without_data(text, prose=True)
    skipped = tuple(Skipped(*item) for item in named(name, left_out))
    parts, notes = tuple(_parts({name: _Source(text)})), (note,) if note else ()
    keep = encoding is not None or not is_utf8(data)
    return Document(name, "code", digest_of(data, encoding), parts, skipped, notes, keep_file=keep)


@lru_cache(maxsize=4096)
def language(file_name: str) -> str | None:
    """The language of a file by its name alone, as Pygments calls it."""
    from pygments.lexers import find_lexer_class_for_filename

    lexer = find_lexer_class_for_filename(file_name)
    return lexer.name if lexer else None


def _read_source(path: str, data: bytes, encoding: str | None, cancelled: Cancelled) -> _Source:
    """A file that belongs to a codebase.

    Raises:
        Unreadable: it is left out, with the reason.
        CancelledError: `cancelled` said so.
    """
    if is_binary(data):
        raise Unreadable("binary")
    if len(data) > limit_of(path):
        raise Unreadable(f"larger than {limit_of(path) >> 20} MB")
    if path.lower().endswith(".ipynb"):
        return _read_notebook(path, data, cancelled)
    text, note = decode(data, path, encoding=None if encoding is None or is_utf8(data) else encoding)
    if reason := content_reason(path, text):
        raise Unreadable(reason)
    shorter, left_out = without_data(text, prose=is_prose(path))
    if sum(chars for _, chars in left_out) > MOSTLY_DATA * len(text):
        raise Unreadable("minified" if path.lower().endswith(_MINIFIED) else "embedded data alone")
    return _Source(shorter, (), tuple(named(path, left_out)), note is not None)


def _read_notebook(path: str, data: bytes, cancelled: Cancelled) -> _Source:
    """The cells of a notebook; a large one, nearly all pictures, is opened in a process of its own."""
    try:
        if len(data) > MAX_FILE_BYTES:
            with TemporaryDirectory() as folder:
                copy = Path(folder) / "notebook"
                copy.write_bytes(data)
                document = load_blocks(copy, path, NOTEBOOK, cancelled=cancelled)
            parts, notes = document.parts, document.notes
        else:
            about = About()
            parts, notes = tuple(to_parts(cells(data, about))), about.notes
    except (InputError, Refused, ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"no notebook ({str(error).removeprefix(f'{path}: ')})") from error
    text, places = "", []
    for part in parts:
        places.append((len(text), part.label))
        text += part.text + "\n\n"
    if reason := content_reason(path, text):
        raise Unreadable(reason)
    return _Source(text.rstrip("\n") + "\n", tuple(places), tuple((path, note) for note in notes))


def _reading_order(path: str) -> list[tuple[int, str]]:
    """Files of a folder before its subfolders, a README before both."""
    *folders, file = path.lower().split("/")
    return [(1, folder) for folder in folders] + [(0, "" if file.startswith("readme") else file)]


def _parts(sources: dict[str, _Source]) -> list[Part]:
    """A part per file, or several of a long one, headed by its path and language; the header counts as line 0.

    A passage of a notebook is told by its cell instead of lines.
    """
    groups: dict[str, int] = {}
    sizes: Counter[str] = Counter()
    for path, source in sources.items():
        for folder in _folders(path):
            sizes[folder] += len(source.text)
    parts: list[Part] = []
    for path, source in sources.items():
        group = groups.setdefault(_group_folder(path, sizes), len(groups))
        folder = path.rpartition("/")[0] or None
        kind = "notebook" if source.places else language(PurePosixPath(path).name) or "text"
        header = f"{path} ({kind})\n"
        line = start = 0
        for piece in _pieces(header + source.text):
            places = _places(source.places, path, len(header) - start, len(piece))
            first_line = None if source.places else line
            parts.append(Part(len(parts) + 1, path, piece, folder, group, first_line=first_line, places=places))
            line += piece.count("\n")
            start += len(piece)
    return parts


def _places(places: Sequence[tuple[int, str]], path: str, shift: int, size: int) -> tuple[tuple[int, str], ...]:
    """The places of a file's text that a piece of `size` characters holds, which stand `shift` characters later."""
    moved = [(max(0, start + shift), f"{path}, {label}") for start, label in places if start + shift < size]
    before = max((number for number, (start, _) in enumerate(moved) if start == 0), default=0)
    return ((0, moved[before][1]), *moved[before + 1 :]) if moved else ()


def _pieces(text: str) -> Iterator[str]:
    """A file's text in pieces of about PART_CHARS, cut at line ends where there are some."""
    start = 0
    while len(text) - start > PART_CHARS:
        end = text.rfind("\n", start, start + PART_CHARS) + 1 or start + PART_CHARS
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _folders(path: str) -> list[str]:
    """The folders that a file lies in, outermost first."""
    names = path.split("/")[:-1]
    return ["/".join(names[: depth + 1]) for depth in range(len(names))]


def _group_folder(path: str, sizes: Counter[str]) -> str:
    """The outermost folder of a file whose whole text is no more than GROUP_CHARS, else the one it lies in."""
    folders = _folders(path)
    return next((folder for folder in folders if sizes[folder] <= GROUP_CHARS), folders[-1] if folders else "")


def _notes(skipped: Sequence[Skipped], guessed: Sequence[str]) -> tuple[str, ...]:
    secrets = [item.name for item in skipped if item.reason.startswith(SECRET)]
    notes = []
    if secrets:
        notes.append(f"left out because they may hold secrets: {_listed(secrets)}")
    if guessed:
        notes.append(f"{len(guessed)} files are not plain UTF-8, their encoding was guessed: {_listed(guessed)}")
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _counted(skipped: Sequence[Skipped]) -> str:
    """Why files were left out, most frequent reason first."""
    reasons = Counter(item.reason.partition(" (")[0] for item in skipped).most_common(4)
    return f" ({', '.join(f'{count} {reason}' for reason, count in reasons)})" if reasons else " (it is empty)"
