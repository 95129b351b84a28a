"""One door for everything that can be read: a path in, a document out, or a message that helps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app.errors import InputError
from app.ingest.codebase import language, load_code_file, load_codebase
from app.ingest.document import load_blocks
from app.ingest.encoding import is_binary
from app.ingest.files import Cancelled, Progress, never, no_progress, printable
from app.ingest.pdf import load_pdf
from app.ingest.registry import find_format
from app.ingest.text import load_text
from app.ingest.tree import is_ignored
from app.records import Document
from app.wellformed import whole

READ_KINDS = (
    "PDF, EPUB, .docx, .pptx, .odt, .rtf, web pages, notebooks, captions, any text, source files, "
    "a folder or a .zip of them"
)
_TEXTS = (None, "Text only", "Markdown", "reStructuredText", "TeX", "Org Mode")  # languages that are read as pages
_HEAD_BYTES = 8192
_ADVICE = {
    "save it as .docx or PDF": ".doc .docx .odt .rtf .pages .wpd",
    "save it as .pptx or PDF": ".ppt .pptx .odp .key",
    "save each sheet as .csv": ".xls .xlsx .ods .numbers",
    "convert it to PDF or text": ".mobi .azw .azw3 .lit .fb2",
    "convert it to PDF": ".djvu .ps .xps",
    "unpack it and add the folder": ".gz .tgz .bz2 .xz .zst .tar .7z .rar",
    "save the message as text or PDF, and what is attached to it as files of their own": ".eml .msg .mbox .pst",
    "put the picture into a PDF and run OCR over it": ".png .jpg .jpeg .gif .tif .tiff .bmp .webp .heic",
    "add a transcript of it": ".mp3 .wav .m4a .ogg .flac .mp4 .mkv .mov .avi .webm",
    "export what it holds as text or .csv": ".sqlite .db .mdb .accdb .parquet .pickle .pkl .npy",
}
_MARKED_UP = (".rtf", ".eml", ".mbox", ".fb2", ".ps")  # text to a program, not to a reader


def load_document(
    path: Path,
    *,
    password: str | None = None,
    name: str | None = None,
    encoding: str | None = None,
    progress: Progress = no_progress,
    cancelled: Cancelled = never,
    ocr_folder: Path | None = None,
) -> Document:
    """Read a PDF, a format of `app.ingest.registry`, a text, a source file, a folder or a zip archive.

    Whatever decodes as text is a text, whatever its name ends in.

    Args:
        password: for an encrypted PDF; it is not kept.
        name: the file's own name, when `path` is a temporary copy with another one.
        encoding: of a text or of files that are not UTF-8, as Python calls it; None finds it.
        progress: called with (pages or files done, of how many).
        cancelled: asked often; True stops the work within a second.
        ocr_folder: read scanned pages of a PDF by OCR, see `load_pdf`.

    Raises:
        PasswordError: a PDF is encrypted and the password is missing or wrong.
        InputError: it cannot be read; the message says why and what to do.
        ConfigError: there is no such encoding.
        CancelledError: `cancelled` said so.
    """
    path = Path(path)
    told = _said_to_be_ignored(path) if name is None else lambda document: document  # a copy says nothing of its file
    name = printable(Path(name or path.absolute()).name or str(path))
    password = whole(password) if password else None
    watch = {"progress": progress, "cancelled": cancelled}
    try:
        if path.is_dir():
            return load_codebase(path, name, encoding=encoding, **watch)
        _check_file(path, name)
        if form := find_format(path, name):
            return told(load_blocks(path, name, form, encoding=encoding, **watch))
        suffix = Path(name).suffix.lower()
        if suffix == ".pdf":
            return told(load_pdf(path, name, password=password, ocr_folder=ocr_folder, **watch))
        if suffix == ".zip":
            return load_codebase(path, name, encoding=encoding, **watch)
        document = _load_single(path, name, suffix, encoding, cancelled)
        progress(1, 1)
        return told(document)
    except OSError as error:
        raise InputError(_explain(path, name, error)) from error


def _said_to_be_ignored(path: Path) -> Callable[[Document], Document]:
    """Adds a note to a file that git ignores: it may be private, and the user should know that it was read."""

    def told(document: Document) -> Document:
        note = "git ignores this file; it was read because you chose it"
        return replace(document, notes=(note, *document.notes)) if is_ignored(path) else document

    return told


def _load_single(path: Path, name: str, suffix: str, encoding: str | None, cancelled: Cancelled) -> Document:
    what = next((what for what, suffixes in _ADVICE.items() if suffix in suffixes.split()), None)
    if what and (suffix in _MARKED_UP or _is_binary(path)):
        raise InputError(f"{name}: {suffix} files cannot be read; {what} (read are {READ_KINDS})")
    options = {"encoding": encoding, "cancelled": cancelled}
    known = language(name) or language(name.lower())
    if known in _TEXTS:
        return load_text(path, name, **options)
    return load_code_file(path, name, **options)


def _is_binary(path: Path) -> bool:
    with open(path, "rb") as file:
        return is_binary(file.read(_HEAD_BYTES))


def _check_file(path: Path, name: str) -> None:
    size_bytes = path.stat().st_size
    if not path.is_file():
        raise InputError(f"{name}: not a regular file or folder ({path}); choose {READ_KINDS}")
    if size_bytes == 0:
        raise InputError(f"{name}: the file is empty (0 bytes); download or copy it again")


def _explain(path: Path, name: str, error: OSError) -> str:
    """What the system's refusal means for the user."""
    if isinstance(error, FileNotFoundError):
        return f"{name}: there is no such file or folder ({path}); check the path, it may have been moved or deleted"
    if isinstance(error, PermissionError):
        return f"{name}: no permission to read it ({path}); change its permissions or copy it elsewhere"
    return f"{name}: cannot be read ({error.strerror or error}); check the path and the disk it is on"
