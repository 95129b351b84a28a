"""Two versions of a text: how many of 50 sentences that were changed, added or taken out does a comparison find?

    python benchmarks/compare.py --book BOOK --book BOOK

The second version of each book has 20 sentences with a word more, 15 sentences more and 15 less, and new line ends.
Through the app's library, so parts are cut as they are for a user. No model is asked.
"""

import argparse
import lzma
import random
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

CHANGED, ADDED, GONE = 20, 15, 15


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    parts = [Part(f"book-{n}", 20, partial(_measure, args, path, n)) for n, path in enumerate(args.book)]
    settings = {"book": [path.name for path in args.book], "seed": args.seed}
    return harness.main(Benchmark("compare", settings, parts, _table, _finish), args)


def _measure(args: argparse.Namespace, path: Path, number: int) -> Values:
    from app.ingest.load import load_document
    from app.tasks.versions import changes

    read = lzma.open if path.suffix == ".xz" else open
    with read(path, "rt", encoding="utf-8") as file:
        paragraphs = re.split(r"\n\s*\n", file.read())
    rng = random.Random(f"{args.seed}-{number}")
    fit = [
        n for n, text in enumerate(paragraphs) if re.search(r"[a-z]\. [A-Z][^.?!]{40,}\. [A-Z]", " ".join(text.split()))
    ]
    chosen = rng.sample(fit, CHANGED + ADDED + GONE)
    newer, marks = [" ".join(text.split()) for text in paragraphs], []
    for place, n in enumerate(chosen):
        inside = re.search(r"(?<=[a-z]\. )[A-Z][^.?!]{40,}\.(?= [A-Z])", newer[n])
        assert inside
        sentence, mark = inside[0], f"zq{place}x"
        if place < CHANGED:
            newer[n] = newer[n].replace(sentence, sentence[:-1] + f" {mark}.", 1)
            marks.append((mark, sentence))
        elif place < CHANGED + ADDED:
            newer[n] = newer[n].replace(sentence, f"{sentence} It was {mark} that came.", 1)
            marks.append((mark, ""))
        else:
            newer[n] = newer[n].replace(sentence + " ", "", 1)
            marks.append(("", sentence))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("old.txt", "new.txt")]
        files[0].write_text("\n\n".join(paragraphs), encoding="utf-8")
        files[1].write_text(
            "\n\n".join(textwrap.fill(text, 60, break_on_hyphens=False, break_long_words=False) for text in newer),
            encoding="utf-8",
        )
        before, after = (load_document(file).parts for file in files)
    started = time.perf_counter()
    told = changes(before, after)
    found = sum(
        any(
            (not mark or bool(c.after) and mark in c.after.words)
            and (not sentence or bool(c.before) and " ".join(sentence.split()) in c.before.words)
            for c in told
        )
        for mark, sentence in marks
    )
    return {
        "planted": len(marks),
        "found": found,
        "told": len(told),
        "characters": sum(len(part.text) for part in before),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _finish(parts: Mapping[str, Values]) -> Values:
    names = ("planted", "found", "told")
    totals = {name: sum(values[name] for values in parts.values()) for name in names}
    return totals | {"least_found": min((values["found"] for values in parts.values()), default=0)}


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    columns = ["planted", "found", "told", "characters", "seconds"]
    return ["text", *columns], [[name, *(values[column] for column in columns)] for name, values in parts.items()]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "compare")
    parser.add_argument("--book", type=Path, action="append", required=True, help="a book; repeat for several")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
