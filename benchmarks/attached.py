"""Two documents read apart and attached to one chat, against the same two read together as one text.

    python benchmarks/attached.py --file BOOK --file BOOK

Facts stand in both halves, each asked in a chat of its own: over the two memories, over them in the other order, and
over the memory of the whole.
"""

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import needles, report, texts
from app.eval.needles import Planted
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.runtime.engine import Engine

WAYS = ("together", "attached", "other_order")
ANSWER_TOKENS = 48
NEAR_POINTS = 2


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    seconds = harness.reading_s(4 * args.tokens) + len(WAYS) * args.per_pair * harness.ANSWER_S
    benchmark = Benchmark(
        "attached",
        {name: getattr(args, name) for name in ("file", "tokens", "pairs", "per_pair", "seed", "device")},
        [Part(f"pair-{i}", seconds, partial(_measure, args, i)) for i in range(args.pairs)],
        _table,
        _finish,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _measure(args: argparse.Namespace, number: int) -> Values:
    engine, rng = harness.engine(args), random.Random(f"{args.seed}-{number}")
    lines = texts.lines_of(harness.prose(args, args.file))
    planted = needles.plan(rng, ["multi-key"], args.per_pair)
    return {"scores": compare(engine, lines, planted, args.tokens, rng.randrange(2**32))}


def compare(
    engine: "Engine", lines: Sequence[str], planted: Sequence[Planted], tokens: int, seed: int
) -> dict[str, list[float]]:
    """Score of every fact in each way of reading; the first half of the facts stands in the first document."""
    half = -(-len(planted) // 2)
    halves = [
        needles.document(engine, lines, part, tokens, seed + i)
        for i, part in enumerate((planted[:half], planted[half:]))
    ]
    apart = [engine.read(ids) for ids in halves]
    whole = engine.read([*halves[0], *halves[1][1:]])  # one BOS
    ways = dict(zip(WAYS, ([whole], apart, apart[::-1]), strict=True))
    scores: dict[str, list[float]] = {way: [] for way in WAYS}
    for way, memories in ways.items():
        for place in planted:
            (reply,) = texts.converse(engine, memories, [place.needle.question], ANSWER_TOKENS)
            scores[way].append(place.needle.score(reply.text))
    return scores


def _finish(parts: Mapping[str, Values]) -> Values:
    """Points of 100 in each way, and whether attaching keeps them."""
    scores = {way: [score for values in parts.values() for score in values["scores"][way]] for way in WAYS}
    points = {way: round(100 * sum(found) / len(found), 2) for way, found in scores.items()}
    return {
        "facts": len(scores["together"]),
        "points": points,
        "same": abs(points["attached"] - points["together"]) <= NEAR_POINTS,
        "lower_bound_95": {
            way: round(report.lower_bound_95(sum(score == 1 for score in found), len(found)), 4)
            for way, found in scores.items()
        },
    }


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = [[name, *(_finish({name: values})["points"][way] for way in WAYS)] for name, values in parts.items()]
    return ["pair", *WAYS], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "attached")
    parser.add_argument("--file", type=Path, action="append", help="a book of the prose; several are joined")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of each document (8192)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of documents (5)")
    parser.add_argument("--per-pair", type=int, default=20, help="facts in both together (20)")
    args = parser.parse_args(argv)
    if args.quick:
        args.tokens, args.pairs, args.per_pair = 700, 1, 2
    return args


if __name__ == "__main__":
    sys.exit(main())
