"""The formats that are read block by block. One more is a line here, a module in `app.ingest.formats`, and its tests.

What a file holds decides; its ending only where several formats begin alike.
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from app.ingest.archive import check_directory
from app.records import DocumentKind

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Format:
    """A format and what reads it.

    Attributes:
        name: as messages call it.
        reader: module in `app.ingest.formats` whose `blocks(path, about)` reads it.
        endings: of file names, lower case.
        content: what the file says it is: media type in a package, or a pattern of the first bytes; None: the ending.
    """

    name: str
    kind: DocumentKind
    reader: str
    endings: tuple[str, ...]
    content: str | re.Pattern[bytes] | None = None


FORMATS = (
    Format("notebook", "notebook", "notebook", (".ipynb",)),
    Format("subtitle file", "captions", "subtitles", (".srt", ".vtt"), re.compile(rb"\s*WEBVTT[\s]")),
)
ENDINGS = tuple(ending for form in FORMATS for ending in form.endings)
PACKAGED = {form.content: form for form in FORMATS if isinstance(form.content, str)}


def find_format(path: Path, name: str) -> Format | None:
    """The format of a file, None when it is none of `FORMATS`."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"PK\3\4"):
        return PACKAGED.get(_package_type(path, name))
    head = head.removeprefix(b"\xef\xbb\xbf")
    for form in FORMATS:
        if isinstance(form.content, re.Pattern) and form.content.match(head):
            return form
    ending = Path(name).suffix.lower()
    return next((form for form in FORMATS if ending in form.endings and not isinstance(form.content, str)), None)


def _package_type(path: Path, name: str) -> str:
    """The media type that a zip package names for what it holds, "" for another zip archive."""
    check_directory(path, name)
    try:
        with zipfile.ZipFile(path) as package:
            names = package.namelist()
            if names[:1] == ["mimetype"] or "mimetype" in names and "META-INF/container.xml" in names:
                with package.open("mimetype") as stream:
                    return stream.read(200).decode("ascii", "replace").strip()
            if "META-INF/container.xml" in names:
                return "application/epub+zip"
            if "[Content_Types].xml" not in names:
                return ""
            with package.open("[Content_Types].xml") as stream:
                types = stream.read(1 << 20).decode("utf-8", "replace")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return ""
    return next((known for known in PACKAGED if known in types), "")
