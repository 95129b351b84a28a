"""Passkeys at many times the trained length, single and labelled, and the controls that must fail.

    python benchmarks/passkey.py --file BOOK --file BOOK
    python benchmarks/passkey.py --only 'single-*' --times 1,4,16,64,256 --trials 59 --device cuda --file BOOK

Single keys stand in one text through which the key moves (`eval passkey --one-text`); in prose, eight keys of other
names stand beside it. Labelled keys stand several in a text and are all asked: at 64 times the trained length in a text
for each book and seed, so that the spread is told, and not only how a text or two did. The controls read labelled keys
at the same budget of attended tokens: sinks and window, heavy hitters, regions at random. Three keys in one text of
four million tokens are asked by `length.py`.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import passkey, report
from app.eval.passkey import PasskeyConfig
from app.system import peak_bytes
from benchmarks import controls, harness
from benchmarks.harness import Benchmark, Part, Values

SPREAD = "64:10:5"
LABELLED = "256:20:5"
CONTROL = (64, 20, 10)
FAILED = 0.5  # a control above this accuracy says that the test is too easy
DISTRACTORS = 8


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the model fails at its trained length."""
    args = _arguments(argv)
    trained = harness.trained_tokens(args)
    settings = {
        name: getattr(args, name)
        for name in ("file", "times", "trials", "spread", "labelled", "control", "controls", "seed", "device")
    }
    benchmark = Benchmark(
        "passkey",
        settings | {"trained_tokens": trained},
        _parts(args, trained),
        _table,
        _finish,
        check=partial(_check, args, trained),
    )
    return harness.main(benchmark, args)


def _check(args: argparse.Namespace, trained: int) -> str | None:
    config = PasskeyConfig((args.check_times * trained,), args.check_trials, seed=args.seed)
    accuracy = passkey.summary(list(passkey.run(harness.engine(args), config)))["accuracy"]
    return None if accuracy >= args.needed else f"accuracy {accuracy} at the trained length"


def _parts(args: argparse.Namespace, trained: int) -> list[Part]:
    """Single keys, labelled keys by book and seed, labelled keys in longer texts, controls."""
    parts = []
    for times in args.times:
        tokens, trials = times * trained, args.trials
        seconds = harness.reading_s(tokens * (1 + trials / 2)) + trials * harness.ANSWER_S
        for filler, distractors in (("repeat", 0), ("prose", DISTRACTORS)):
            config = {"trials": trials, "filler": filler, "distractors": distractors, "one_text": True}
            run = partial(_measure, args, "keep-all", tokens, config)
            parts.append(Part(f"single-{filler}-{times}", seconds, run))
    for times, keys, seeds in args.spread:
        for seed in range(seeds):
            for number, book in enumerate(args.file or [None]):
                name = f"spread-{times}-{number}-{seed}"
                parts.append(_spread(args, name, times * trained, keys, book, seed))
    for times, trials, per_reading in args.labelled:
        parts.append(_labelled(args, "keep-all", trained, times, trials, per_reading))
    for policy in args.controls:
        parts.append(_labelled(args, policy, trained, *args.control))
    return parts


def _spread(args: argparse.Namespace, name: str, tokens: int, keys: int, book: Path | None, seed: int) -> Part:
    """All keys of one text, which is made of one book with one seed."""
    config = {"trials": keys, "filler": "prose", "per_reading": keys}
    own = argparse.Namespace(**vars(args) | {"file": [book] if book else None, "seed": seed})

    def run() -> Values:
        return {"book": book.name if book else None, "drawn": seed} | _measure(own, "keep-all", tokens, config)

    return Part(name, harness.reading_s(tokens) + keys * harness.ANSWER_S, run)


def _labelled(args: argparse.Namespace, policy: str, trained: int, times: int, trials: int, per_reading: int) -> Part:
    name = f"labelled-{times}" if policy == "keep-all" else f"control-{policy}"
    seconds = harness.reading_s(times * trained * -(-trials // per_reading)) + trials * harness.ANSWER_S
    config = {"trials": trials, "filler": "prose", "per_reading": per_reading}
    return Part(name, seconds, partial(_measure, args, policy, times * trained, config))


def _measure(args: argparse.Namespace, policy: str, tokens: int, config: dict[str, Any]) -> Values:
    """Accuracy, time and memory of one length; `marks` tells how long the first text took up to each power of two."""
    file = harness.prose(args, args.file) if config["filler"] == "prose" else None
    chosen = PasskeyConfig((tokens,), **config, filler_file=file, seed=args.seed)
    engine = controls.engine(args, policy)
    told, marks, started = harness.progress(f"{policy}, {tokens:,} tokens"), {}, time.perf_counter()

    def on_progress(done: int, total: int) -> None:
        told(done, total)
        power = 1 << (done.bit_length() - 1)
        if done <= tokens and power not in marks:
            marks[power] = {"tokens": done, "seconds": round(time.perf_counter() - started, 2), "peak": peak_bytes()}

    cells = list(passkey.run(engine, chosen, on_progress=on_progress))
    values = passkey.summary(cells)
    (length,) = values.pop("lengths")
    return {
        "policy": policy,
        "tokens": length["document_tokens"],
        "budget_tokens": engine.budget_tokens,
        **config,
        **values,
        "depths": length["depths"],
        "seconds": round(time.perf_counter() - started, 1),
        "peak_bytes": peak_bytes(),
        "marks": [marks[power] for power in sorted(marks)],
    }


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    columns = ["policy", "tokens", "filler", "right", "trials", "lower_bound_95", "seconds", "peak_bytes"]
    return ["part", *columns], [[name, *(values[column] for column in columns)] for name, values in parts.items()]


def _finish(parts: Mapping[str, Values]) -> Values:
    """Whether every key was found, and whether every control failed."""
    ours = [values for name, values in parts.items() if not name.startswith("control-")]
    others = [values for name, values in parts.items() if name.startswith("control-")]
    return {
        "all_found": all(values["right"] == values["trials"] for values in ours),
        "controls_failed": all(values["accuracy"] < FAILED for values in others),
        "spread": spread([values for name, values in parts.items() if name.startswith("spread-")]),
    }


def spread(readings: Sequence[Values]) -> Values | None:
    """How far readings of other books and seeds lie apart; None where there are none."""
    if not readings:
        return None
    right, trials = (sum(values[name] for values in readings) for name in ("right", "trials"))
    by = {name: Counter({values[name]: 0 for values in readings}) for name in ("book", "drawn")}
    for name, counts in by.items():
        for values in readings:
            counts[values[name]] += values["right"]
    rights = [values["right"] for values in readings]
    return {
        "readings": len(readings),
        "right": right,
        "trials": trials,
        "lower_bound_95": report.lower_bound_95(right, trials),
        "worst": min(rights),
        "median": statistics.median(rights),
        "best": max(rights),
        "by_book": {str(book): count for book, count in by["book"].items()},
        "by_seed": {str(seed): count for seed, count in by["drawn"].items()},
    }


def _triples(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(number) for number in word.split(":")) for word in text.split(","))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "passkey")
    parser.add_argument("--file", type=Path, action="append", help="a book of the prose filler; several are joined")
    parser.add_argument("--times", type=harness.numbers, default=(64,), help="single keys: times the trained length")
    parser.add_argument("--trials", type=int, default=20, help="single keys per length and filler (20)")
    parser.add_argument(
        "--spread", type=_triples, default=_triples(SPREAD), help=f"times:keys:seeds, for each book ({SPREAD})"
    )
    parser.add_argument(
        "--labelled", type=_triples, default=_triples(LABELLED), help=f"times:trials:keys in a text ({LABELLED})"
    )
    parser.add_argument("--controls", type=lambda text: text.split(","), default=["streaming", "h2o", "random"])
    parser.add_argument("--needed", type=float, default=0.9, help="least accuracy at the trained length")
    args = parser.parse_args(argv)
    args.control, args.check_times, args.check_trials = CONTROL, 1, 10
    if args.quick:  # texts of bytes, not words: short multiples have no room
        args.times, args.trials, args.labelled, args.control = (25,), 2, ((30, 2, 2),), (30, 2, 2)
        args.spread = ((30, 2, 1),)
        args.controls, args.check_times, args.check_trials = ["streaming", "random"], 8, 2
    return args


if __name__ == "__main__":
    sys.exit(main())
