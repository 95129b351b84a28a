"""The formats that are read block by block. One more is a line here, a module in `app.ingest.formats`, and its tests.

What a file holds decides; its ending only where several formats begin alike.
"""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from app.errors import InputError
from app.ingest.archive import DAMAGE, check_directory
from app.records import DocumentKind

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Format:
    """A format and what reads it.

    Attributes:
        name: as messages call it.
        reader: module in `app.ingest.formats` whose `blocks(path, about)` reads it.
        endings: of file names, lower case.
        plain: it is a file of text, whose encoding may be chosen.
        content: what the file says it is: media type in a package, or a pattern of the first bytes; None: the ending.
    """

    name: str
    kind: DocumentKind
    reader: str
    endings: tuple[str, ...]
    content: str | re.Pattern[bytes] | None = None
    plain: bool = False


_OFFICE = "application/vnd.openxmlformats-officedocument."
_HTML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!doctype html|<html[\s>])", re.IGNORECASE | re.DOTALL)
_MHTML = re.compile(rb"(?=.*^MIME-Version:)(?=.*^Content-Type:\s*multipart/related)", re.I | re.M | re.S)

FORMATS = (
    Format("EPUB", "book", "epub", (".epub",), "application/epub+zip"),
    Format("Word file", "document", "docx", (".docx", ".docm", ".dotx"), _OFFICE + "wordprocessingml"),
    Format("PowerPoint file", "slides", "pptx", (".pptx", ".pptm", ".ppsx"), _OFFICE + "presentationml"),
    Format("OpenDocument text", "document", "odt", (".odt", ".ott"), "application/vnd.oasis.opendocument.text"),
    Format("RTF file", "document", "rtf", (".rtf",), re.compile(rb"\s*\{\\rtf")),
    Format("notebook", "notebook", "notebook", (".ipynb",)),
    Format("subtitle file", "captions", "subtitles", (".srt", ".vtt"), re.compile(rb"\s*WEBVTT[\s]"), plain=True),
    Format("saved web page", "web", "mhtml", (".mhtml", ".mht"), _MHTML),
    Format("web page", "web", "html", (".html", ".htm", ".xhtml", ".xht"), _HTML, plain=True),
)
ENDINGS = tuple(ending for form in FORMATS for ending in form.endings)
NOTEBOOK = next(form for form in FORMATS if form.name == "notebook")
PACKAGED = {form.content: form for form in FORMATS if isinstance(form.content, str)}


def find_format(path: Path, name: str) -> Format | None:
    """The format of a file, None when it is none of `FORMATS`.

    Source files may begin as a web page does, so what stands in a file decides over no other ending than ours.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    ending = Path(name).suffix.lower()
    if head.startswith(b"PK\3\4") and (found := PACKAGED.get(_package_type(path))):
        return found
    if ending in ("", ".txt", *ENDINGS):
        for form in FORMATS:
            if isinstance(form.content, re.Pattern) and form.content.match(head.removeprefix(b"\xef\xbb\xbf")):
                return form
    return next((form for form in FORMATS if ending in form.endings), None)


def _package_type(path: Path) -> str:
    """The media type that a zip package names for what it holds, "" for another or a damaged zip archive."""
    try:
        check_directory(path, path.name)
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
    except (InputError, *DAMAGE):
        return ""
    return next((known for known in PACKAGED if known in types), "")
