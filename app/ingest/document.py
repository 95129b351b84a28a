"""A file that is read block by block to a document; a child process does the reading."""

from pathlib import Path
from typing import Any

from app.errors import InputError
from app.ingest import child
from app.ingest.clean import clean_line
from app.ingest.encoding import check_encoding, is_utf8
from app.ingest.files import Cancelled, Progress, digest_of, hash_file, never, no_progress, printable
from app.ingest.registry import Format
from app.records import Document, Part, Skipped

MAX_CHARS = 64_000_000


def load_blocks(
    path: Path,
    name: str,
    form: Format,
    *,
    encoding: str | None = None,
    progress: Progress = no_progress,
    cancelled: Cancelled = never,
) -> Document:
    """Read a file with the reader of its format.

    Args:
        encoding: of a plain file that the user chose, which makes it another document; None: the reader finds it.

    Raises:
        InputError: it is damaged, encrypted, refused, or holds no text.
        ConfigError: there is no such encoding.
        CancelledError: `cancelled` said so.
    """
    encoding = check_encoding(encoding) if encoding and form.plain else None
    digest = hash_file(path, cancelled)
    digest = digest_of(bytes.fromhex(digest), encoding) if encoding else digest
    parts, about, chars = [], {}, 0
    request = {"module": "app.ingest.block_worker", "reader": form.reader, "path": str(path.absolute())}
    request["encoding"] = encoding
    for event in child.events(request, cancelled, form.name):
        if "part" in event:
            parts.append(_part(event["part"]))
            chars += len(parts[-1].text)
            if chars > MAX_CHARS:
                raise InputError(f"{name}: more than {MAX_CHARS:,} characters by {parts[-1].label}; split it")
            progress(min(event["done"], event["total"]), event["total"])
        elif "failed" in event:
            raise InputError(_refusal(name, form, event["failed"], event["detail"], path))
        elif "stopped" in event:
            raise InputError(f"{name}: cannot be read, {event['stopped']}; save it again, or as PDF, and add the copy")
        else:
            about = event.get("about", about)
    if not parts:
        raise InputError(f"{name}: this {form.name} holds no text; choose a file with text in it")
    progress(1, 1)
    skipped = tuple(Skipped(printable(what), reason) for what, reason in about["skipped"])
    title = clean_line(about["title"]) or Path(name).stem
    notes = _other_ending(name, form) + about["notes"]
    keep = form.plain and (encoding is not None or not is_utf8(path.read_bytes()))
    return Document(title, form.kind, digest, tuple(parts), skipped, tuple(notes), keep_file=keep)


def _part(value: dict[str, Any]) -> Part:
    return Part(**{**value, "places": tuple((start, label) for start, label in value["places"]), "boxes": ()})


def _other_ending(name: str, form: Format) -> list[str]:
    ending = Path(name).suffix.lower()
    if not ending or ending in form.endings:
        return []
    return [f"its name ends in {ending}, but it is a {form.name} and was read as one"]


def _refusal(name: str, form: Format, kind: str, detail: str, path: Path) -> str:
    """The message for a file that its reader could not read."""
    if kind == "refused":
        return f"{name}: {detail}"
    if kind == "memory":
        return f"{name}: reading it needs more than {child.MEMORY_BYTES >> 30} GiB of memory; split it"
    if kind == "system":
        return f"{name}: it vanished or was locked while it was read ({path}); put it back and add it again"
    return f"{name}: this {form.name} is damaged ({detail}); save it again where it was made, or as PDF"
