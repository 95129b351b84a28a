"""OCR as Lectern runs it, on made pages and on scans: a table, one JSON line and one file.

    python benchmarks/ocr.py --book BOOK --font A.ttf --font B.ttf --scan a.pdf --scan b.pdf

For each font: 300 and 150 dpi, plain, turned by 2 degrees, in two columns, noisy, in small print. Told are the share of
characters that are wrong (edit distance, blanks of one kind), boxes whose edges lie within a line's height, and pages a
second of processor time. Scans are told by time and confidence.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import report
from app.ingest import ocr
from app.ingest.files import never, no_progress
from app.ingest.pdf import load_pdf
from app.records import Box
from benchmarks import machine
from benchmarks.ocr_pages import Page, pages

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--book", type=Path, required=True, help="text, UTF-8")
    parser.add_argument("--font", type=Path, action="append", required=True)
    parser.add_argument("--scan", type=Path, action="append", default=[])
    parser.add_argument("--pages", type=int, default=20, help="made pages at most")
    parser.add_argument("--out", type=Path, default=RESULTS / "ocr.json")
    args = parser.parse_args()
    made = list(pages(args.book.read_text(encoding="utf-8"), args.font))[: args.pages]
    rows, used = measure(made)
    print(rows, used, file=sys.stderr, flush=True)
    scans = [scan(path) for path in args.scan]
    clean = [row["wrong"] for row in rows if row["page"].endswith("300 plain")]
    result = {
        "benchmark": "ocr", "pages": rows, "scans": scans, "wrong": round(fmean(row["wrong"] for row in rows), 5),
        "wrong_clean_300": round(fmean(clean), 5) if clean else None,
        "boxes_right": round(fmean(row["boxes"] for row in rows), 4),
        "pages_per_cpu_s": round(len(rows) / used, 3), "cpu_s": round(used, 1), **machine.describe(),
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(report.table(["page", "wrong", "boxes"], [list(row.values()) for row in rows]))
    print(json.dumps({key: value for key, value in result.items() if key != "pages"}))
    return 0


def measure(made: list[Page]) -> tuple[list[dict[str, Any]], float]:
    """The made pages, read from one PDF as a user's scan is; and processor seconds, loading the models among them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages.pdf"
        first, *others = (page.image.resize((1800, 2700)) if page.image.width < 1800 else page.image for page in made)
        first.save(path, resolution=300, save_all=True, append_images=others)
        used = cpu_s()
        found = ocr.recognise(
            path, path.name, range(len(made)), password=None, progress=no_progress, cancelled=never
        )  # fmt: skip
        used = cpu_s() - used
    rows = []
    for number, page in enumerate(made):
        text, boxes = found.pages.get(number, ("", ()))
        wrong = distance(page.text, " ".join(text.split())) / len(page.text)
        rows.append({"page": page.name, "wrong": round(wrong, 5), "boxes": round(placed(page, text, boxes), 4)})
    return rows, used


def placed(page: Page, text: str, boxes: tuple[Box, ...]) -> float:
    """The share of boxes whose upper and lower edge lie within a line's height of their line's."""
    right = 0
    for box in boxes:
        said = text[box.char_start : box.char_end]
        near = [line for line in page.lines if abs(line[2] + line[4] - box.top - box.bottom) < 6 * page.line_height]
        line = max(near, key=lambda line: SequenceMatcher(None, line[0], said, autojunk=False).ratio(), default=None)
        right += line is not None and max(abs(line[2] - box.top), abs(line[4] - box.bottom)) <= page.line_height
    return right / len(boxes) if boxes else 0.0


def scan(path: Path) -> dict[str, Any]:
    """A PDF of scans, or with a bad text layer, as Lectern reads it."""
    used, began = cpu_s(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            document = load_pdf(path, path.name, ocr_folder=Path(folder))
        except Exception as error:
            return {"scan": path.name, "failed": str(error), "cpu_s": round(cpu_s() - used, 2)}
    read = [part for part in document.parts if part.boxes]
    sure = ocr.mean_confidence(box for part in read for box in part.boxes)
    return {
        "scan": path.name, "pages": len(document.parts), "by_ocr": len(read), "confidence": round(sure, 3),
        "chars": sum(len(part.text) for part in document.parts), "begins": read[0].text[:80] if read else "",
        "cpu_s": round(cpu_s() - used, 2), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def cpu_s() -> float:
    """Processor time of the children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def distance(a: str, b: str) -> int:
    """Edit distance, row by row."""
    other, steps = np.array([ord(char) for char in b]), np.arange(len(b) + 1)
    row = steps.copy()
    for number, char in enumerate(a, 1):
        new = np.empty_like(row)
        new[0] = number
        new[1:] = np.minimum(row[1:] + 1, row[:-1] + (other != ord(char)))
        row = np.minimum.accumulate(new - steps) + steps
    return int(row[-1])


if __name__ == "__main__":
    raise SystemExit(main())
