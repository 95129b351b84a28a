"""Look into a zip archive without unpacking it, and refuse the tricks that archives play."""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.errors import CancelledError, InputError
from app.ingest.files import Cancelled, Entry, Unreadable, limit_of, never, printable
from app.ingest.tree import ATTRIBUTE_FILE, IGNORE_FILE, MAX_FILES, Sieve

MAX_TOTAL_BYTES = 1 << 30
MAX_RATIO = 100
RATIO_FROM_BYTES = 10 << 20  # a small file may compress very well without being a bomb
_DIRECTORY_BYTES_PER_FILE = 600
_UTF8_FLAG = 0x800
_CHUNK_BYTES = 1 << 16
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


class Meter:
    """Counts the bytes that really came out of an archive."""

    def __init__(self, name: str, packed_bytes: int) -> None:
        self._name, self._packed_bytes, self._bytes = name, packed_bytes, 0

    def add(self, count: int) -> None:
        self._bytes += count
        check_ratio(self._name, self._bytes, self._packed_bytes)
        if self._bytes > MAX_TOTAL_BYTES:
            raise InputError(f"{self._name}: unpacks to more than 1 GB of text; add a smaller part of it")


def check_ratio(name: str, unpacked_bytes: int, packed_bytes: int) -> None:
    """Refuse what unpacks to far more than it is.

    Raises:
        InputError: it looks like a zip bomb.
    """
    if unpacked_bytes > RATIO_FROM_BYTES and unpacked_bytes > MAX_RATIO * packed_bytes:
        raise InputError(
            f"{name}: looks like a zip bomb, {packed_bytes / 1e6:.1f} MB that unpack to {unpacked_bytes / 1e6:.0f} MB; "
            "if you trust it, unpack it yourself and add the folder"
        )


def open_archive(path: Path, name: str, cancelled: Cancelled = never) -> tuple[zipfile.ZipFile, list[Entry], Sieve]:
    """The files of a zip archive that a codebase is read from, and what left the others out.

    The caller closes the archive. One folder around everything, as GitHub makes it, is not part of the paths.

    Raises:
        InputError: it is damaged, encrypted, a bomb, too full, or holds names that lead out of it.
        CancelledError: `cancelled`, asked now and then, said so.
    """
    packed_bytes = path.stat().st_size
    check_directory(path, name)
    try:
        archive = zipfile.ZipFile(path)
        members = [member for member in archive.infolist() if not member.is_dir()]
    except DAMAGE as error:
        raise InputError(f"{name}: not a zip archive or damaged ({error}); download or pack it again") from error
    try:
        _check_members(name, archive, members, packed_bytes)
        entries, sieve = _entries(archive, members, Meter(name, packed_bytes), cancelled)
    except BaseException:
        archive.close()
        raise
    return archive, entries, sieve


def check_directory(path: Path, name: str) -> None:
    """Look at the size of the list of files before it is loaded; millions of entries would fill the memory."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65_557))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at >= 0 and len(tail) >= at + 16:
        count, directory_bytes = struct.unpack_from("<HI", tail, at + 10)
        if count > MAX_FILES or directory_bytes > MAX_FILES * _DIRECTORY_BYTES_PER_FILE:
            raise InputError(f"{name}: more than {MAX_FILES:,} files in this archive; add a smaller part of it")


def _check_members(name: str, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], packed_bytes: int) -> None:
    if len(members) > MAX_FILES:
        raise InputError(f"{name}: {len(members):,} files, more than {MAX_FILES:,}; add a smaller part of it")
    check_ratio(name, sum(member.file_size for member in members), packed_bytes)
    for member in members:
        shown = printable(_name(member))
        if _leads_out(_name(member)):
            raise InputError(
                f'{name}: refused, it holds the name "{shown}", which leads out of the archive; do not use it'
            )
        if member.flag_bits & 1:
            raise InputError(f'{name}: "{shown}" in it is encrypted; unpack it with its password and add the folder')
        check_ratio(f"{name}: {shown}", member.file_size, member.compress_size)
        if _is_link(member) and _leads_out(_target(archive, member)):
            raise InputError(f'{name}: refused, the link "{shown}" in it leads out of the archive; do not use it')


def _leads_out(path: str) -> bool:
    parts = re.split(r"[/\\]", path)
    return parts[0] == "" or ".." in parts or "\0" in path or re.match(r"[A-Za-z]:", path) is not None


def _is_link(member: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(member.external_attr >> 16)


def _target(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """Where a link points, from the root of the archive; ".." stays in it when the link leads out."""
    try:
        with archive.open(member) as stream:
            target = stream.read(4096).decode("utf-8", "replace")
    except DAMAGE:
        return ".."
    if target.startswith("/") or re.match(r"[A-Za-z]:", target):
        return target
    place = re.split(r"[/\\]", member.filename)[:-1]
    for step in re.split(r"[/\\]", target):
        if step == ".." and place:
            place.pop()
        elif step not in ("", "."):
            place.append(step)
    return "/".join(place) or "."


def _entries(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], meter: Meter, cancelled: Cancelled
) -> tuple[list[Entry], Sieve]:
    paths = _paths(members)
    sieve = Sieve()
    for path, member in paths.items():
        folder, _, file = path.rpartition("/")
        if file in (IGNORE_FILE, ATTRIBUTE_FILE):
            with suppress(Unreadable):  # it is listed when its turn comes
                text = _reader(archive, member, meter)().decode("utf-8", "replace")
                sieve.add_rules(folder, {file: text}.get)
    entries = []
    for count, (path, member) in enumerate(paths.items()):
        if count % 256 == 0 and cancelled():
            raise CancelledError("looking for files was cancelled")
        if _is_link(member):
            sieve.skip(path, "symbolic link")
        elif not sieve.drops_file(path, member.file_size):
            entries.append(Entry(path, member.file_size, _reader(archive, member, meter)))
    return entries, sieve


def _paths(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Clean paths, without a folder that holds everything; of equal ones the last counts, as for unzip."""
    paths = {"/".join(p for p in re.split(r"[/\\]", printable(_name(m))) if p not in ("", ".")): m for m in members}
    tops = {path.partition("/")[0] if "/" in path else "" for path in paths} - {"__MACOSX"}
    if len(tops) == 1 and (top := tops.pop()):
        return {path.removeprefix(f"{top}/"): member for path, member in paths.items()}
    return paths


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name: UTF-8 wherever its bytes are that, whether or not the archive says so."""
    try:
        return member.orig_filename if member.flag_bits & _UTF8_FLAG else member.orig_filename.encode("cp437").decode()
    except UnicodeError:
        return member.orig_filename


def _reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo, meter: Meter) -> Callable[[], bytes]:
    def read() -> bytes:
        data = b""
        try:
            with archive.open(member) as stream:
                while len(data) <= limit_of(member.filename) and (chunk := stream.read(_CHUNK_BYTES)):
                    meter.add(len(chunk))
                    data += chunk
        except DAMAGE as error:
            raise Unreadable(f"damaged in the archive ({error})") from error
        return data

    return read
