"""Zip packages of e-books and office files: members by name, within the limits of archives."""

import posixpath
import zipfile
from pathlib import Path
from urllib.parse import unquote

from lxml import etree

from app.errors import InputError
from app.ingest.archive import DAMAGE, Meter, check_directory, check_ratio
from app.ingest.blocks import Refused
from app.ingest.formats.parse import parse_xml

MAX_MEMBER_BYTES = 200 << 20
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # also what an office file becomes when a password is set
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")


class Package:
    """A zip package that is read member by member; nothing is unpacked to disk.

    Attributes:
        names: of the members, in the order of its directory.

    Raises:
        Refused: it is no zip package, cut off, encrypted, or has too many members.
    """

    def __init__(self, path: Path) -> None:
        try:
            check_directory(path, "package")
            self._zip = zipfile.ZipFile(path)
            members = self._zip.infolist()
            check_ratio("package", sum(member.file_size for member in members), path.stat().st_size)
        except InputError as error:
            raise Refused(str(error).removeprefix("package: ")) from error
        except zipfile.BadZipFile as error:
            raise Refused(_no_package(path, error)) from error
        self._meter = Meter("package", path.stat().st_size)
        self._members = {member.filename: member for member in members if not member.is_dir()}
        self._lower = {name.lower(): name for name in self._members}
        self.names = list(self._members)

    def find(self, name: str) -> str | None:
        """A member's own name; writers do not agree on upper case."""
        return name if name in self._members else self._lower.get(name.lower())

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            KeyError: there is none of this name.
            Refused: it is damaged, encrypted or too large.
        """
        member = self._members[self.find(name) or name]
        if member.flag_bits & 1:
            raise Refused(f'"{name}" in it is encrypted; save a copy without a password')
        if member.file_size > MAX_MEMBER_BYTES:
            raise Refused(f'"{name}" in it has {member.file_size / 1e6:.0f} MB, more than can be read; split the file')
        try:
            with self._zip.open(member) as stream:
                data = stream.read(MAX_MEMBER_BYTES + 1)
        except DAMAGE as error:
            raise Refused(f'"{name}" in it is damaged ({error}); download or copy the file again') from error
        try:
            self._meter.add(len(data))
        except InputError as error:
            raise Refused(str(error).removeprefix("package: ")) from error
        return data

    def xml(self, name: str) -> etree._Element | None:
        """The root of a member that is XML, None when there is no such member.

        Raises:
            Refused: it is damaged, or no XML.
        """
        if self.find(name) is None:
            return None
        try:
            return parse_xml(self.read(name))
        except etree.XMLSyntaxError as error:
            raise Refused(f'"{name}" in it is damaged ({error}); save the file again where it was made') from error


def resolve(base: str, link: str) -> tuple[str, str]:
    """Where a link in member `base` leads: (member's name, fragment)."""
    place, _, fragment = link.partition("#")
    if not place:
        return base, unquote(fragment)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(place)))
    return target.lstrip("/"), unquote(fragment)


def _no_package(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        head = file.read(1 << 20)
    if head.startswith(OLD_OFFICE):
        if _ENCRYPTED in head:
            return "encrypted with a password; open it with its password, save a copy without one and add that"
        return "a file of old Office versions (.doc, .ppt); save it as .docx, .pptx or PDF"
    if not head.startswith(b"PK"):
        return f"it starts with {head[:8]!r}, not as such a file does; check what it is"
    return f"damaged or cut off ({error}); download or copy it again"
