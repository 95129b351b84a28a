"""PDF to document. A child process reads the file; this side guards it, cleans the text and names the trouble."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InputError, PasswordError
from app.ingest import child, ocr
from app.ingest.clean import clean_line, clean_pages
from app.ingest.files import Cancelled, Progress, hash_file, never, no_progress
from app.records import MOSTLY_UNREAD, Document, Part, Skipped

MAX_RESTARTS = 10
MANY_PAGES = 5_000
MAX_CHARS = 64_000_000
WELL_READ_SHARE = 0.5  # of a page's characters: one that keeps fewer is not read

_READERS = (("pypdfium2", "pypdf"), ("pypdfium2",), ("pypdf",))  # a file that stops one may pass another


@dataclass
class _Raw:
    """What the workers said about a file. `damage`: what one of the readers stumbled over, if any did."""

    count: int
    labels: list[str]
    outline: list[tuple[int, int | None, str]]
    readers: list[str]
    damage: str | None
    text: dict[int, str] = field(default_factory=dict)
    images: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    chars: int = 0

    @property
    def done(self) -> int:
        """Pages read or given up, which is also the index of the next."""
        return len(self.text) + len(self.failed)

    def take(self, event: dict[str, Any]) -> None:
        """Keep what a worker said about one page."""
        if "error" in event:
            self.failed[event["page"]] = event["error"]
            return
        self.text[event["page"]] = event["text"]
        self.chars += len(event["text"])
        if event["image"]:
            self.images.add(event["page"])


@dataclass(frozen=True)
class _Left:
    """Pages that stay unread: pictures, and those with lines whose letters have no Unicode values.

    Attributes:
        blank: pictures on which OCR found no text; they are not unread.
    """

    images: list[int]
    noisy: list[int]
    blank: list[int]


def load_pdf(
    path: Path,
    name: str,
    *,
    password: str | None = None,
    progress: Progress = no_progress,
    cancelled: Cancelled = never,
    ocr_folder: Path | None = None,
) -> Document:
    """Read a PDF, one part per page; a page that cannot be read is an empty part and listed as skipped.

    Args:
        name: what to call the file in messages; its stem becomes the title.
        progress: called with (pages done, pages), again for the pages that OCR reads.
        ocr_folder: read pages that are pictures, or whose letters have no Unicode values, by OCR; what was recognised
            waits there if it is cancelled. None: do not.
        cancelled: asked ten times a second.

    Raises:
        PasswordError: it is encrypted and the password is missing or wrong.
        InputError: it is no PDF, damaged, cut off, without pages or without text.
        CancelledError: `cancelled` said so.
    """
    _check_head(path, name)
    digest = hash_file(path, cancelled)
    raw = _read(path, name, password, progress, cancelled)
    if raw.count == 0:
        raise InputError(f"{name}: this PDF has no pages (0); export or download it again")
    pages, noisy = clean_pages([raw.text.get(index, "") for index in range(raw.count)])
    labels = [clean_line(label) or str(i + 1) for i, label in enumerate(raw.labels)][: raw.count]
    labels += [str(i + 1) for i in range(len(labels), raw.count)]
    found, poor = ocr.Recognised(), sorted({*raw.images, *noisy})
    if ocr_folder is not None and poor:
        kept = ocr_folder / f"{digest}.jsonl"
        found = ocr.recognise(path, name, poor, password=password, progress=progress, cancelled=cancelled, kept=kept)
        raw.failed.update(found.failed)
        pages = [found.pages[i][0] if i in found.pages else text for i, text in enumerate(pages)]
    blank = raw.images - found.pages.keys() - found.failed.keys() if ocr_folder is not None else set()
    noisy = [page for page in noisy if page not in found.pages]
    left = _Left(sorted(raw.images - found.pages.keys() - blank), noisy, sorted(blank))
    if not any(text.strip() for index, text in enumerate(pages) if index not in left.images):
        raise InputError(_no_text(name, raw, left))
    chapters = chapter_of_pages(raw.outline, raw.count)
    boxes = {page: boxes for page, (_, boxes) in found.pages.items()}
    parts = [Part(i + 1, labels[i], pages[i], chapters[i], boxes=boxes.get(i, ())) for i in range(raw.count)]
    skipped = [Skipped(f"page {labels[i]}", reason) for i, reason in sorted(raw.failed.items())]
    notes = [
        *_unread(name, raw, left, pages),
        *_read_by_ocr(found, raw.count, labels),
        *_notes(name, raw, labels, left),
    ]
    if ocr_folder is not None:
        (ocr_folder / f"{digest}.jsonl").unlink(missing_ok=True)
    keep = not password  # which is not kept, so that its pages could not be drawn
    return Document(Path(name).stem, "pdf", digest, tuple(parts), tuple(skipped), tuple(notes), keep_file=keep)


def chapter_of_pages(outline: Sequence[Sequence[Any]], count: int) -> list[str | None]:
    """The chapter of each page, from the deepest outline level whose entries still lie three pages apart.

    So a novel in parts is told by its chapters, and a manual by its chapters rather than 500 sections.

    Args:
        outline: (level, page index or None, title) in outline order.
    """
    entries = [(level, page, clean_line(title)) for level, page, title in outline]
    entries = [e for e in entries if e[1] is not None and 0 <= e[1] < count and e[2]]
    depth = 0
    for level in sorted({level for level, _, _ in entries}):
        if len({page for at, page, _ in entries if at <= level}) * 3 <= count:
            depth = level
    starts: dict[int, list[tuple[int, str]]] = {}
    for level, page, title in entries:
        if level <= depth:
            starts.setdefault(page, []).append((level, title))
    chapters, current = [], None
    for page in range(count):
        begun = starts.get(page, [])
        finest = max((level for level, _ in begun), default=0)
        chapters.append(next((title for level, title in begun if level == finest), current))
        current = begun[-1][1] if begun else current
    return chapters


def _check_head(path: Path, name: str) -> None:
    with open(path, "rb") as file:
        head = file.read(1024)
    if b"%PDF-" not in head:
        raise InputError(f"{name}: not a PDF, it starts with {head[:8]!r} instead of %PDF; check what the file is")


def _is_cut_off(path: Path) -> bool:
    """A whole PDF ends with %%EOF, though some writers add a little after it."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2048))
        return b"%%EOF" not in file.read()


def _read(path: Path, name: str, password: str | None, progress: Progress, cancelled: Cancelled) -> _Raw:
    """Run workers over the file until each page is read or given up."""
    raw, stopped = None, ""
    request = {"module": "app.ingest.pdf_worker", "path": str(path.absolute()), "password": password}
    for readers in _READERS:
        for _ in range(MAX_RESTARTS + 1):
            asked = {**request, "readers": readers, "first": raw.done if raw else 0}
            for event in child.events(asked, cancelled, "PDF"):
                if "failed" in event:
                    raise _refusal(name, event["failed"], event["detail"], path)
                if "structure" in event:
                    raw = raw or _Raw(**event["structure"])
                elif "page" in event:
                    raw.take(event)
                    if raw.chars > MAX_CHARS:
                        raise InputError(f"{name}: more than {MAX_CHARS:,} characters by page {raw.done}; split it")
                    progress(raw.done, raw.count)
                elif "end" in event:
                    if raw.damage and _is_cut_off(path):
                        raw.damage = "cut off, its end mark %%EOF is missing"
                    return raw
                else:
                    stopped = event["stopped"]
            if raw is None:
                break
            raw.failed[raw.done] = stopped
        if raw is not None:
            raw.failed.update({i: "not tried, after many such pages" for i in range(raw.done, raw.count)})
            return raw
    raise InputError(f"{name}: cannot be opened, {stopped}; try to save it again with a PDF viewer and add the copy")


def _refusal(name: str, kind: str, detail: str, path: Path) -> InputError:
    """The message for a file that no reader could open."""
    if kind == "password":
        return PasswordError(f"{name}: this PDF is encrypted and needs a password; give it and add the file again")
    if kind == "wrong-password":
        return PasswordError(f"{name}: this PDF is encrypted and the password given does not open it; try another")
    if kind == "encryption":
        return InputError(f"{name}: encrypted in a way that cannot be opened ({detail}); save a copy without it")
    if kind == "many-pages":
        return InputError(f"{name}: it claims {detail} pages, more than can be read; split it or repair it")
    if kind == "memory":
        return InputError(
            f"{name}: opening it needs more than {child.MEMORY_BYTES >> 30} GiB of memory; split or repair it"
        )
    if kind == "system":
        return InputError(f"{name}: it vanished or was locked while it was read ({path}); put it back and add it again")
    if _is_cut_off(path):
        return InputError(
            f"{name}: this PDF is cut off, its end mark %%EOF is missing ({path.stat().st_size:,} bytes); "
            "download or copy it again"
        )
    return InputError(
        f"{name}: this PDF is damaged and cannot be opened ({detail}); repair it, "
        'for example with "qpdf in.pdf out.pdf", or export it again'
    )


def _no_text(name: str, raw: _Raw, left: _Left) -> str:
    """Why a PDF gave no text at all."""
    way_out = ocr.offer(name)
    if left.blank:
        return (
            f"{name}: OCR found no text on {len(left.blank)} of {raw.count} pages, and no other holds any; they are "
            "blank, or drawings: check the scan"
        )
    if left.images:
        return (
            f"{name}: a scan, {len(left.images)} of {raw.count} pages hold only images and none holds text; {way_out}"
        )
    if left.noisy:
        return f"{name}: its fonts do not say which letters they draw ({raw.count} pages); {way_out}"
    if raw.failed:
        return f"{name}: none of its {raw.count} pages could be read, {raw.failed[min(raw.failed)]}; export it again"
    if raw.damage:
        return f"{name}: this PDF is damaged ({raw.damage}) and no text is left in it; get it again from its source"
    return f"{name}: no text on any of its {raw.count} pages; if they hold drawings of text, {way_out}"


def _unread(name: str, raw: _Raw, left: _Left, pages: Sequence[str]) -> list[str]:
    """The first thing to say of a document that was read for the lesser part only."""
    lost = [page for page in left.noisy if len(pages[page]) < WELL_READ_SHARE * len(raw.text.get(page, ""))]
    unread = {*left.images, *lost, *raw.failed}
    if len(unread) * 2 <= raw.count:
        return []
    return [f"{MOSTLY_UNREAD}: {len(unread)} of {raw.count} pages; {ocr.offer(name)}"]


def _read_by_ocr(found: ocr.Recognised, count: int, labels: Sequence[str]) -> list[str]:
    if not found.pages:
        return []
    pages = sorted(found.pages)
    sure = f"mean confidence {found.confidence:.0%}"
    return [f"{len(pages)} of {count} pages were read by OCR, {sure} ({_listed(pages, labels)})"]


def _notes(name: str, raw: _Raw, labels: Sequence[str], left: _Left) -> list[str]:
    """Facts about a PDF that was read, but not perfectly."""
    notes = []
    if "pypdfium2" not in raw.readers and not raw.damage:
        notes.append("read with pypdf alone, which is slower and less exact: install pypdfium2")
    if raw.damage:
        notes.append(f"the file is damaged ({raw.damage}); what could be saved was read")
    if left.blank:
        notes.append(f"OCR found no text on {len(left.blank)} of {raw.count} pages ({_listed(left.blank, labels)})")
    if raw.count > MANY_PAGES:
        notes.append(f"{raw.count:,} pages: reading will take long")
    for pages, what in (
        (left.images, "hold only images"),
        (left.noisy, "hold lines whose fonts do not say which letters they draw, left out"),
    ):
        if pages:
            notes.append(f"{len(pages)} of {raw.count} pages {what} ({_listed(pages, labels)}); {ocr.offer(name)}")
    return notes


def _listed(pages: Sequence[int], labels: Sequence[str]) -> str:
    names = [labels[page] for page in pages[:10]]
    return "page " + ", ".join(names) + (" ..." if len(pages) > 10 else "")
