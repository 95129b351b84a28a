"""A checked container: a zip file whose manifest names SHA-256 and size of every entry. Holds bytes and JSON only."""

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.errors import InputError, StoreError
from app.wellformed import whole_values

FORMAT = "lectern-chat"
VERSION = 1
MANIFEST = "manifest.json"
MAX_ENTRIES = 300_000
MAX_JSON_BYTES = 64 << 20
MAX_JSON_VALUES = 3_000_000  # each takes 50 to 250 bytes of memory, however few it takes in the file
_COPY_BYTES = 1 << 20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, UnicodeError)


class BundleWriter:
    """Entries go in one by one; the manifest comes last, so that a file cut short has none."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self._entries: dict[str, dict[str, Any]] = {}

    def add(self, name: str, data: bytes) -> None:
        """An entry as it is; K/V hardly compress."""
        self._entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        self._file.writestr(zipfile.ZipInfo(name), data)

    def add_json(self, name: str, value: Any) -> None:
        """An entry of text, compressed."""
        data = json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
        if _too_large(data):
            raise StoreError(f"{name}: {len(data) >> 20} MiB of text are too much for a chat file; export it as JSON")
        self._entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        self._file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the manifest with what the file is about."""
        manifest = {"format": FORMAT, "version": VERSION, **facts, "entries": self._entries}
        self._file.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest, sort_keys=True), zipfile.ZIP_DEFLATED)


@contextmanager
def writing(path: Path) -> Iterator[BundleWriter]:
    """A new bundle; one that breaks off leaves nothing behind.

    Raises:
        StoreError: the file cannot be written.
    """
    fresh = path.with_name(path.name + ".part")
    try:
        try:
            with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as file:
                yield BundleWriter(file)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}; choose another file") from error


class BundleReader:
    """A bundle whose entries have all been checked.

    Attributes:
        facts: the manifest, without its entries.
    """

    def __init__(self, file: zipfile.ZipFile, name: str) -> None:
        """Check the manifest and every entry, before anything of it is used."""
        self._file, self._name = file, name
        self._check_directory()
        manifest = self._manifest()
        self._entries: dict[str, dict[str, Any]] = manifest.pop("entries", None)
        self.facts = manifest
        names = file.namelist()
        listed = isinstance(self._entries, dict) and len(names) == len(set(names)) <= MAX_ENTRIES
        if not listed or set(names) - {MANIFEST} != self._entries.keys():
            raise self._damaged("its contents are not those that its manifest names")
        for entry in self._entries:
            self._check(entry)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def read(self, name: str) -> bytes:
        """The bytes of an entry.

        Raises:
            InputError: it is not there, or not what the manifest says.
        """
        facts = self._entries.get(name)
        if facts is None:
            raise self._damaged(f"{name} is missing")
        with self._explained(), self._file.open(name) as source:
            data = source.read(facts["bytes"] + 1)
        if len(data) != facts["bytes"] or hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise self._damaged(f"{name} fails its check")
        return data

    def read_json(self, name: str) -> Any:
        """An entry of text; raises like `read`."""
        data = self.read(name)
        if _too_large(data):
            raise self._damaged(f"{name} holds more than a chat does")
        with self._explained():
            return whole_values(json.loads(data))

    def _check_directory(self) -> None:
        """Refuse what would grow while it is read: packed blocks, texts beyond the bounds, entries that share bytes."""
        infos = self._file.infolist()
        if len(infos) > MAX_ENTRIES or sum(info.compress_size for info in infos) > self._size():
            raise self._damaged("more entries than its bytes can hold")
        for info in infos:
            text = info.filename.endswith(".json")
            if not text and (info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size):
                raise self._damaged(f"{info.filename:.80} is packed; Lectern writes blocks as they are")
            if text and info.file_size > MAX_JSON_BYTES:
                raise self._damaged(f"{info.filename:.80} is larger than {MAX_JSON_BYTES >> 20} MiB")

    def _size(self) -> int:
        assert self._file.fp is not None
        return self._file.fp.seek(0, 2)

    def _manifest(self) -> dict[str, Any]:
        if MANIFEST not in self._file.namelist():
            raise InputError(f"{self._name}: not a chat that Lectern exported, or cut short; choose another file")
        with self._explained(), self._file.open(MANIFEST) as source:
            data = source.read(MAX_JSON_BYTES + 1)
            manifest = None if _too_large(data) else json.loads(data)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(f"{self._name}: not a chat that Lectern exported; choose another file")
        if manifest.get("version") != VERSION:
            if (found := manifest.get("version")) is None:
                raise InputError(f"{self._name}: it does not say which version of the format it has; export it again")
            raise InputError(f"{self._name}: version {found!r:.20}, this Lectern reads {VERSION}; update Lectern")
        return manifest

    def _check(self, name: str) -> None:
        """Compare an entry with the manifest, a piece at a time; no more is unpacked than the manifest allows."""
        facts = self._entries[name]
        if not isinstance(facts, dict) or type(facts.get("bytes")) is not int:
            raise self._damaged(f"{name} has no size")
        digest, size = hashlib.sha256(), 0
        with self._explained(), self._file.open(name) as source:
            while piece := source.read(_COPY_BYTES):
                digest.update(piece)
                size += len(piece)
                if size > facts["bytes"]:
                    break
        if size != facts["bytes"] or digest.hexdigest() != facts.get("sha256"):
            raise self._damaged(f"{name} fails its check")

    def _damaged(self, reason: str) -> InputError:
        return InputError(f"{self._name}: damaged ({reason}); nothing of it was taken, get the file again")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (*_BROKEN, ValueError, RecursionError, OSError) as error:
            raise self._damaged(str(error)) from error


@contextmanager
def reading(path: Path) -> Iterator[BundleReader]:
    """A bundle, checked whole.

    Raises:
        InputError: it is no bundle, from a newer release, or damaged.
    """
    try:
        file = zipfile.ZipFile(path)
    except (OSError, *_BROKEN, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a chat that Lectern exported, or cut short"
        raise InputError(f"{path.name}: {reason}; choose another file") from error
    with file:
        yield BundleReader(file, path.name)


def _too_large(data: bytes) -> bool:
    """Whether JSON would take more memory than any chat or document needs."""
    return len(data) > MAX_JSON_BYTES or sum(map(data.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES


def pack_block(tokens: bytes, index: bytes, kv: Sequence[bytes], codec: str) -> bytes:
    """A memory block as one run of bytes."""
    name = codec.encode()
    sizes = [len(name), len(tokens), len(index), *map(len, kv)]
    return struct.pack(f"<I{len(sizes)}I", len(sizes), *sizes) + name + tokens + index + b"".join(kv)


def unpack_block(data: bytes) -> tuple[bytes, bytes, list[bytes], str]:
    """(tokens, index, K/V rows, codec) as `pack_block` got them.

    Raises:
        ValueError: the sizes do not add up.
    """
    try:
        (count,) = struct.unpack_from("<I", data)
        sizes = struct.unpack_from(f"<{count}I", data, 4) if 3 <= count <= len(data) // 4 else ()
    except struct.error as error:
        raise ValueError(str(error)) from error
    offset = 4 + 4 * len(sizes)
    if not sizes or offset + sum(sizes) != len(data):
        raise ValueError("a block's sizes do not add up")
    pieces = []
    for size in sizes:
        pieces.append(data[offset : offset + size])
        offset += size
    codec, tokens, index, *kv = pieces
    return tokens, index, kv, codec.decode("ascii", "replace")
