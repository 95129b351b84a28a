"""Words kept, their order and labels, by Lectern and by other libraries on the same files; speed and memory.

    python benchmarks/formats.py --others PYTHON --epubs FOLDER --pdfs FOLDER

`formats_made.py` makes the files with the libraries of another Python, which is named by `--others`, and
`formats_others.py` reads them there. The shared books and PDFs are checked against what `expect.jsonl` says of them.
Without the model a PDF of 1,000 pages and an EPUB of 500 files are read, in a process each.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import report
from app.ingest import spans
from app.ingest.load import load_document
from app.records import Document
from benchmarks import machine
from tests.browser import chromium
from tests.ingest.pdf_maker import drawn, page_objects, pdf_bytes

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WORD = re.compile(r"(?<![a-z])(?:dx|pp|nb|ep|ht|sr|md)\d{3}(?!\d)")
LETTERS = re.compile(r"m\s?d\s?(?=\d{3})")  # of a formula, whose letters are names of their own
PAGES, FILES = 1_000, 500
PROSE = "The harbour bell rings at noon, and the boats come home before the tide turns again. "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--others", help="a Python with the other libraries; without it only speed is measured")
    parser.add_argument("--epubs", type=Path, help="folder of books, for which chapters and labels are counted")
    parser.add_argument("--pdfs", type=Path, help="folder with PDFs and an expect.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "formats.json")
    parser.add_argument("--large", type=Path, help=argparse.SUPPRESS)  # what the child process reads
    args = parser.parse_args()
    if args.large:
        print(json.dumps(_read_large(args.large)))
        return 0
    result: dict[str, Any] = {"benchmark": "formats"}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.others:
            result |= made(folder / "made", args.others)
        result["books"] = [book(path) for path in sorted(args.epubs.glob("*.epub"))] if args.epubs else []
        result["pdfs"] = pdfs(args.pdfs) if args.pdfs else {}
        result["large"] = [large(_large_pdf(folder), PAGES), large(_large_epub(folder), FILES)]
    result |= machine.describe()
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in result.get("rows", ()):
        if row["problems"]:
            print(row["reader"], row["file"], row["problems"], file=sys.stderr)
    heads = ["reader", "file", "kept", "lost", "twice", "out of order", "never seen"]
    print(report.table(heads, [[row[head.split()[0]] for head in heads] for row in result.get("rows", ())]))
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    return 0


def made(folder: Path, python: str) -> dict[str, Any]:
    """Every reader's words of every made file."""
    subprocess.run([python, str(HERE / "formats_made.py"), str(folder)], check=True)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    save_page(folder / "page.html", folder / "saved.mhtml")
    expected["saved.mhtml"] = expected["page.html"]
    rows = []
    for name, wanted in expected.items():
        document = load_document(folder / name)
        rows.append(row("Lectern", name, _text(document), wanted, _wrong_labels(document, wanted["labels"])))
    run = subprocess.run([python, str(HERE / "formats_others.py"), str(folder)], check=True, capture_output=True)
    for reader, texts in json.loads(run.stdout).items():
        rows += [row(reader, name, text, expected[name]) for name, text in texts.items() if name in expected]
    return {"rows": rows, "loses": _loses(rows)}


def save_page(page: Path, to: Path) -> None:
    """Save a page with all that belongs to it, as Chromium does."""
    with chromium() as browser:
        tab = browser.new_page()
        tab.goto(page.as_uri())
        saved = tab.context.new_cdp_session(tab).send("Page.captureSnapshot", {"format": "mhtml"})["data"]
    to.write_text(saved, encoding="utf-8", newline="")


def row(reader: str, name: str, text: str, wanted: dict[str, Any], labels: list[str] = ()) -> dict[str, Any]:
    """How the words of one file came out."""
    found = WORD.findall(LETTERS.sub("md", unicodedata.normalize("NFKC", text)))
    counts, words = Counter(found), wanted["words"]
    lost = [word for word in words if word not in counts]
    twice = [word for word in words if counts[word] > 1 and word not in wanted.get("twice", ())]
    free = {*wanted.get("free", ()), *wanted.get("twice", ())}
    order = [word for word in dict.fromkeys(found) if word in words and word not in free]
    right = [word for word in words if word in counts and word not in free]
    moved = [a for a, b in zip(order, right, strict=False) if a != b]
    seen = [word for word in wanted["never"] if word in counts]
    return {
        "reader": reader, "file": name, "kept": f"{len(words) - len(lost)} of {len(words)}", "lost": len(lost),
        "twice": len(twice), "out": len(moved), "never": len(seen),
        "problems": {"lost": lost, "twice": twice, "moved": moved[:5], "seen": seen, "labels": list(labels)}
        if lost or twice or moved or seen or labels else {},
    }  # fmt: skip


def _loses(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Words that each reader lost, gave twice or gave though nobody sees them."""
    total: Counter[str] = Counter()
    for one in rows:
        total[one["reader"]] += one["lost"] + one["twice"] + one["never"]
    return dict(total)


def _text(document: Document) -> str:
    return "\n".join(part.text for part in document.parts)


def _wrong_labels(document: Document, labels: dict[str, str]) -> list[str]:
    wrong = []
    for word, label in labels.items():
        part = next((part for part in document.parts if word in part.text), None)
        start = part.text.index(word) if part else 0
        found = spans.label(part, start, start + len(word)) if part else "lost"
        wrong += [] if found.startswith(label) else [f"{word}: {found} instead of {label}"]
    return wrong


def book(path: Path) -> dict[str, Any]:
    """One e-book against `formats_books.json`, which was written down from its navigation and text by hand.

    Chapters, in order; printed pages; phrases in their chapter and at their label.
    """
    document = load_document(path)
    wanted = json.loads((HERE / "formats_books.json").read_text(encoding="utf-8")).get(path.name)
    chapters = list(dict.fromkeys(part.chapter for part in document.parts if part.chapter))
    pages = {label.removeprefix("page ") for part in document.parts for _, label in part.places if "page " in label}
    told = {"book": path.name, "parts": len(document.parts), "words": len(_text(document).split())}
    told |= {"skipped": len(document.skipped), "chapters": len(chapters), "printed_pages": len(pages)}
    if wanted is None:
        return told
    first, last = wanted.get("pages", (1, 0))
    wrong = [] if chapters == wanted["chapters"] else [f"chapters {chapters}"]
    wrong += [f"page {number} is missing" for number in range(first, last + 1) if str(number) not in pages]
    wrong += [problem for phrase in wanted["phrases"] if (problem := _misplaced(document, phrase))]
    return told | {"chapters_expected": len(wanted["chapters"]), "phrases": len(wanted["phrases"]), "wrong": wrong}


def _misplaced(document: Document, phrase: dict[str, str]) -> str:
    """What is wrong with a phrase's place; "" for nothing."""
    plain = [" ".join(part.text.split()) for part in document.parts]
    found = [part for part, text in zip(document.parts, plain, strict=True) if phrase["text"] in text]
    if len(found) != 1:
        return f"{phrase['text']}: found {len(found)} times"
    words = phrase["text"].split()
    at = re.search(r"\s+".join(map(re.escape, words)), found[0].text).start()
    label = spans.label(found[0], at, at + len(words[0]))
    right = found[0].chapter == phrase["chapter"] and phrase["label"] in label
    return "" if right else f"{phrase['text']}: {found[0].chapter}, {label}"


def pdfs(folder: Path) -> dict[str, Any]:
    """Phrases and page labels that `expect.jsonl` names, found at their page; ligatures and hyphens aside."""
    right, labels, wrong = 0, 0, []
    for line in (folder / "expect.jsonl").read_text(encoding="utf-8").splitlines():
        wanted = json.loads(line)
        if not wanted.get("must_contain"):
            continue
        try:
            document = load_document(folder / wanted["file"], password=wanted.get("password"))
        except Exception as error:
            wrong.append(f"{wanted['file']}: {error}")
            continue
        for phrase in wanted["must_contain"]:
            here = _plain(phrase["text"]) in _plain(document.parts[phrase["page"] - 1].text)
            right += here
            wrong += [] if here else [f"{wanted['file']} page {phrase['page']}: {phrase['text'][:60]}"]
        # a page without a label is called by its number
        first = [str(label) or str(number) for number, label in enumerate(wanted.get("first_labels") or (), start=1)]
        found = [part.label for part in document.parts[: len(first)]]
        labels += sum(a == b for a, b in zip(first, found, strict=False))
        wrong += [f"{wanted['file']}: labels {found} instead of {first}"] if first and first != found else []
    return {"phrases_right": right, "labels_right": labels, "wrong": wrong}


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).replace("-", "").split())


def large(path: Path, count: int) -> dict[str, Any]:
    """Read a large file in a process of its own: pages or files a second, and the peak memory of it and its child."""
    run = subprocess.run(
        [sys.executable, "-P", __file__, "--large", str(path)], check=True, capture_output=True, text=True
    )  # fmt: skip
    found = json.loads(run.stdout)
    speed = {"a_second": round(count / found["seconds"], 1), "a_cpu_second": round(count / found["cpu_s"], 1)}
    return {"file": path.name, "count": count, **found, **speed}


def _read_large(path: Path) -> dict[str, Any]:
    began = time.monotonic()
    document = load_document(path)
    seconds = time.monotonic() - began
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = time.process_time() + child.ru_utime + child.ru_stime
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2),
            "peak_mb": round(sum(peaks) / 1024), "parts": len(document.parts)}  # fmt: skip


def _large_pdf(folder: Path) -> Path:
    contents = [drawn("\n".join(f"{PROSE}Line {line} of {page}." for line in range(40))) for page in range(PAGES)]
    path = folder / "thousand.pdf"
    path.write_bytes(pdf_bytes(page_objects(contents)))
    return path


def _large_epub(folder: Path) -> Path:
    path = folder / "files.epub"
    names = [f"c{number}.xhtml" for number in range(FILES)]
    items = "".join(f'<item id="{n}" href="{n}" media-type="application/xhtml+xml"/>' for n in names)
    refs = "".join(f'<itemref idref="{name}"/>' for name in names)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="o.opf"/></rootfiles></container>'
        )
        archive.writestr(
            "o.opf", f"<package><metadata/><manifest>{items}</manifest><spine>{refs}</spine></package>"
        )  # fmt: skip
        for number, name in enumerate(names):
            body = f"<h1>Chapter {number}</h1>" + f"<p>{PROSE * 10}</p>" * 10
            archive.writestr(name, f"<html><body>{body}</body></html>")
    return path


if __name__ == "__main__":
    raise SystemExit(main())
