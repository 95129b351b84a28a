"""Reselect: which layers must choose regions for each token of an answer, and which can go on with what was chosen?

    python benchmarks/reselect.py --file BOOK --file BOOK

Named keys stand in prose at 64 times the trained length, twenty to a text. They are asked for with a choice for each
token in every layer; with one for several tokens in every layer, in all layers but one, and in one layer alone.
"""

import argparse
import random
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import needles, report, texts
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

TIMES = 64  # the trained length
TASKS = ("single", "multi-key")  # named numbers, told by a sentence or by a question
LAYERS = 4  # for the estimate


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    names = ("file", "tokens", "readings", "per_reading", "every", "by_layer", "seed", "device")
    seconds = (
        harness.reading_s(args.tokens) + len(_arms(args, LAYERS)) * len(TASKS) * args.per_reading * harness.ANSWER_S
    )
    benchmark = Benchmark(
        "reselect",
        {name: getattr(args, name) for name in names},
        [Part(f"reading-{i}", seconds, partial(_measure, args, i)) for i in range(args.readings)],
        _table,
        _finish,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _arms(args: argparse.Namespace, layers: int) -> dict[str, int | tuple[int, ...]]:
    """By name, how many tokens share a choice, in all layers or by layer."""
    most, arms = args.every[-1], {f"{every} tokens": every for every in (1, *args.every)}
    arms |= {f"{most} but in layer {n}": tuple(1 if m == n else most for m in range(layers)) for n in range(layers)}
    arms |= {f"{most} in layer {n}": tuple(most if m == n else 1 for m in range(layers)) for n in range(layers)}
    return arms | {f"by layer {', '.join(map(str, every))}": tuple(every) for every in args.by_layer}


def _measure(args: argparse.Namespace, number: int) -> Values:
    """One text, and all its keys asked in every way."""
    engine, rng = harness.engine(args, settings={"draft_tokens": 0}), random.Random(f"{args.seed}-{number}")
    lines = texts.lines_of(harness.prose(args, args.file))
    planted = needles.plan(rng, TASKS, args.per_reading)
    ids = needles.document(engine, lines, planted, args.tokens, rng.randrange(2**32))
    memory = engine.read(ids, on_progress=harness.progress(f"reading {number}"))
    rows = {}
    for name, every in _arms(args, engine.shape.layers).items():
        engine.reselect_every, began = every, time.process_time()
        right = sum(asked.score == 1 for asked in needles.ask(engine, memory, planted, args.tokens, 0))
        rows[name] = {"right": right, "processor_s": round(time.process_time() - began, 3)}
    return {"document_tokens": len(ids), "keys": len(planted), "rows": rows}


def _finish(parts: Mapping[str, Values]) -> Values:
    """Keys found and processor seconds of each way over all texts."""
    readings = list(parts.values())
    keys = sum(reading["keys"] for reading in readings)
    rows = []
    for name in readings[0]["rows"]:
        found = [reading["rows"][name] for reading in readings]
        right = sum(row["right"] for row in found)
        rows.append(
            {
                "choices": name,
                "right": right,
                "lower_bound_95": round(report.lower_bound_95(right, keys), 4),
                "seconds_per_answer": round(sum(row["processor_s"] for row in found) / keys, 4),
            }
        )
    return {"keys": keys, "rows": rows}


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = _finish(parts)["rows"]
    return list(rows[0]), [list(row.values()) for row in rows]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "reselect")
    parser.add_argument("--file", type=Path, action="append", help="a book of the prose; several are joined")
    parser.add_argument("--tokens", type=int, help=f"tokens of a text ({TIMES} times the trained length)")
    parser.add_argument("--readings", type=int, default=3, help="texts (3)")
    parser.add_argument("--per-reading", type=int, default=10, help="keys of each kind in a text (10)")
    parser.add_argument(
        "--by-layer", type=harness.numbers, action="append", default=[], help="a number for each layer, as 2,1,16,16"
    )
    parser.add_argument("--every", type=harness.numbers, default=(2, 4, 8), help="tokens that share a choice (2,4,8)")
    args = parser.parse_args(argv)
    args.tokens = args.tokens or TIMES * harness.trained_tokens(args)
    if args.quick:
        args.tokens, args.readings, args.per_reading, args.every = 1500, 1, 2, (4,)
    return args


if __name__ == "__main__":
    sys.exit(main())
