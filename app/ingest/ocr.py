"""Text of pages that are pictures, by OCR in a child process; what was recognised is kept until the document is."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from app.errors import InputError
from app.ingest import child
from app.ingest.clean import normalise, visible
from app.ingest.files import Cancelled, Progress
from app.records import Box

INSTALL = "python launch.py setup --with ocr"
PAGE_TIMEOUT_S = 180.0
MEMORY_BYTES = 6 << 30  # of address space; the engine maps its models and buffers into it
MAX_RESTARTS = 5
ROW_SHARE = 0.5  # of a line's height: lines that share so much stand in one row
PARAGRAPH_GAP = 0.8  # of a line's height: more room above begins a paragraph
MOST_CROSSING = 0.15  # of the lines: more across a gap and it is none between columns
COLUMN_LINES = 4  # fewer lines beside each other are no columns


@dataclass
class Recognised:
    """What OCR made of pages.

    Attributes:
        pages: text and boxes by page index; pages without text are not in it.
        failed: reasons by page index.
    """

    pages: dict[int, tuple[str, tuple[Box, ...]]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """Mean of the lines, weighted by their length."""
        return mean_confidence(box for _, boxes in self.pages.values() for box in boxes)


def available() -> bool:
    """True when an engine is installed."""
    return find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None


def offer(name: str) -> str:
    """What a user can do about pages that are pictures."""
    if available():
        return f'read them by OCR: "python launch.py read --ocr {name}", or tick OCR where files are dropped'
    return f'install OCR with "{INSTALL}" and read it with --ocr, or run "ocrmypdf in.pdf out.pdf" and add the result'


def mean_confidence(boxes: Iterable[Box]) -> float:
    """Of lines, weighted by their length; 0 for none."""
    weighted = [(box.char_end - box.char_start, box.confidence) for box in boxes]
    total = sum(length for length, _ in weighted)
    return sum(length * sure for length, sure in weighted) / total if total else 0.0


def recognise(
    path: Path,
    name: str,
    pages: Sequence[int],
    *,
    password: str | None,
    progress: Progress,
    cancelled: Cancelled,
    kept: Path | None = None,
) -> Recognised:
    """Read pages of a PDF by OCR.

    Args:
        progress: called with (pages done, pages).
        kept: file in which recognised pages wait, so that a reading that was cancelled goes on where it stopped.

    Raises:
        InputError: no engine is installed.
        CancelledError: `cancelled` said so.
    """
    if not available():
        raise InputError(f'{name}: OCR is not installed; install it with "{INSTALL}" and try again')
    raw = _kept(kept)
    found = Recognised()
    request = {"module": "app.ingest.ocr_worker", "path": str(path.absolute()), "password": password}
    for _ in range(MAX_RESTARTS):
        todo = [page for page in pages if page not in raw and page not in found.failed]
        progress(len(pages) - len(todo), len(pages))
        if not todo:
            break
        asked = {**request, "pages": todo, "memory_bytes": MEMORY_BYTES}
        for event in child.events(asked, cancelled, "OCR", next_timeout_s=PAGE_TIMEOUT_S):
            if "lines" in event:
                raw[event["page"]] = event["lines"]
                _keep(kept, event)
            elif "error" in event:
                found.failed[event["page"]] = event["error"]
            elif "failed" in event:
                raise InputError(f"{name}: OCR cannot be used ({event['detail']}); install it again with {INSTALL!r}")
            elif "stopped" in event:
                stuck = next(page for page in todo if page not in raw and page not in found.failed)
                found.failed[stuck] = event["stopped"]
            progress(sum(page in raw or page in found.failed for page in pages), len(pages))
    for page in pages:
        if raw.get(page):
            found.pages[page] = arrange(raw[page])
        elif page not in raw:
            found.failed.setdefault(page, "not tried, after many such pages")
    return found


def arrange(lines: Sequence[Sequence[Any]]) -> tuple[str, tuple[Box, ...]]:
    """Put recognised lines in reading order.

    Returns:
        The page's text, and where each line of it stands; a word broken at a line's end is joined.
    """
    text, boxes = "", []
    before: Sequence[Any] | None = None
    for row in _order([line for line in lines if line[0]]):
        for i, line in enumerate(row):
            piece = visible(normalise(line[0]))
            if before is None:
                joint = ""
            elif i:
                joint = " "
            elif text.endswith("-") and text[-2:-1].isalpha() and piece[:1].islower():
                text, joint = text[:-1], ""
                boxes[-1] = boxes[-1]._replace(char_end=len(text))
            else:
                gap = line[2] - before[4]
                joint = "\n\n" if gap > PARAGRAPH_GAP * (line[4] - line[2]) or gap < -0.1 else "\n"
            text += joint
            boxes.append(Box(len(text), len(text) + len(piece), *line[1:]))
            text += piece
            before = line
    return text, tuple(boxes)


def _order(lines: list[Sequence[Any]]) -> list[list[Sequence[Any]]]:
    """Rows in reading order: column by column where there are columns, from top to bottom."""
    gap = _column_gap(lines)
    if gap is None:
        return _rows(lines)
    wide = sorted((line for line in lines if line[1] < gap < line[3]), key=lambda line: line[2])
    rows: list[list[Sequence[Any]]] = []
    top = -1.0
    for below in [*wide, None]:
        bottom = below[2] if below is not None else 2.0
        band = [line for line in lines if line not in wide and top <= (line[2] + line[4]) / 2 < bottom]
        rows += _order([line for line in band if line[3] <= gap]) + _order([line for line in band if line[1] >= gap])
        rows += [[below]] if below is not None else []
        top = bottom
    return rows


def _column_gap(lines: Sequence[Sequence[Any]]) -> float | None:
    """Where a gap runs down between two columns, None when there is none."""
    best = None
    edges = sorted({line[3] for line in lines})
    for edge in edges:
        right = [line for line in lines if line[1] > edge]
        left = [line for line in lines if line[3] <= edge]
        crossing = len(lines) - len(right) - len(left)
        if min(len(left), len(right)) < COLUMN_LINES or crossing > MOST_CROSSING * len(lines):
            continue
        beside = sum(any(_same_row(a, b) for b in right) for a in left)
        width = min(line[1] for line in right) - edge
        wordy = fmean(len(line[0]) for line in (*left, *right)) >= 12  # else cells of a table, which read across
        if beside >= COLUMN_LINES and width > 0 and wordy and (best is None or (-crossing, width) > best[0]):
            best = ((-crossing, width), edge + width / 2)
    return best[1] if best else None


def _same_row(a: Sequence[Any], b: Sequence[Any]) -> bool:
    shared = min(a[4], b[4]) - max(a[2], b[2])
    return shared > ROW_SHARE * min(a[4] - a[2], b[4] - b[2])


def _rows(lines: Sequence[Sequence[Any]]) -> list[list[Sequence[Any]]]:
    rows: list[list[Sequence[Any]]] = []
    for line in sorted(lines, key=lambda line: (line[2] + line[4]) / 2):
        if rows and _same_row(rows[-1][-1], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line[1]) for row in rows]


def _kept(path: Path | None) -> dict[int, list[Any]]:
    """Pages that an earlier reading recognised; a line that was cut off is left out."""
    found: dict[int, list[Any]] = {}
    if path is not None and path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
                found[int(event["page"])] = event["lines"]
            except (ValueError, KeyError, TypeError):
                continue
    return found


def _keep(path: Path | None, event: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
