"""One door for everything that can be read: a path in, a document out, or a message that helps."""

from pathlib import Path

from app.errors import InputError
from app.ingest.codebase import language, load_code_file, load_codebase
from app.ingest.document import load_blocks
from app.ingest.files import Cancelled, Progress, never, no_progress, printable
from app.ingest.pdf import load_pdf
from app.ingest.registry import find_format
from app.ingest.text import load_text
from app.records import Document

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".log", ".csv", ".tsv", "")
READ_KINDS = (
    "PDF, EPUB, .docx, .pptx, .odt, .rtf, web pages, notebooks, captions, .txt, .md, source files, "
    "a folder or a .zip of them"
)
_ADVICE = {
    ".doc": "save it as .docx or PDF",
    ".ppt": "save it as .pptx or PDF",
    ".xlsx": "save the sheet as .csv",
    ".xls": "save the sheet as .csv",
    ".ods": "save the sheet as .csv",
    ".odp": "save it as PDF",
    ".pages": "save it as .docx or PDF",
    ".key": "save it as .pptx or PDF",
    ".eml": "save the message's text, or add what is attached to it by itself",
    ".msg": "save the message's text, or add what is attached to it by itself",
    ".mbox": "save the messages' text, or add what is attached to them by itself",
    ".mobi": "convert it to PDF or text",
    ".djvu": "convert it to PDF",
    ".gz": "unpack it and add the folder",
    ".tgz": "unpack it and add the folder",
    ".tar": "unpack it and add the folder",
    ".7z": "unpack it and add the folder",
    ".rar": "unpack it and add the folder",
}


def load_document(
    path: Path,
    *,
    password: str | None = None,
    name: str | None = None,
    progress: Progress = no_progress,
    cancelled: Cancelled = never,
) -> Document:
    """Read a PDF, a format of `app.ingest.registry`, a text, a source file, a folder or a zip archive.

    Args:
        password: for an encrypted PDF; it is not kept.
        name: the file's own name, when `path` is a temporary copy with another one.
        progress: called with (pages or files done, of how many).
        cancelled: asked often; True stops the work within a second.

    Raises:
        PasswordError: a PDF is encrypted and the password is missing or wrong.
        InputError: it cannot be read; the message says why and what to do.
        CancelledError: `cancelled` said so.
    """
    path = Path(path)
    name = printable(Path(name or path.absolute()).name or str(path))
    watch = {"progress": progress, "cancelled": cancelled}
    try:
        if path.is_dir():
            return load_codebase(path, name, **watch)
        _check_file(path, name)
        if form := find_format(path, name):
            return load_blocks(path, name, form, **watch)
        suffix = Path(name).suffix.lower()
        if suffix == ".pdf":
            return load_pdf(path, name, password=password, **watch)
        if suffix == ".zip":
            return load_codebase(path, name, **watch)
        document = _load_single(path, name, suffix, cancelled)
        progress(1, 1)
        return document
    except OSError as error:
        raise InputError(_explain(path, name, error)) from error


def _load_single(path: Path, name: str, suffix: str, cancelled: Cancelled) -> Document:
    if suffix in TEXT_SUFFIXES and language(name) in (None, "Text only", "Markdown", "reStructuredText"):
        return load_text(path, name, cancelled=cancelled)
    if suffix not in _ADVICE and language(name):
        return load_code_file(path, name, cancelled=cancelled)
    what = _ADVICE.get(suffix, "if it is text, rename it to .txt")
    raise InputError(f"{name}: {suffix} files cannot be read; {what} (read are {READ_KINDS})")


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
