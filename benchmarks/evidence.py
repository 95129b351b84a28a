"""Evidence: is the region that holds a planted fact among the three that the answer looked at most, and is it needed?

    python benchmarks/evidence.py --file BOOK --file BOOK

Facts stand in book prose, several to a text. For each: the answer's attention by region; then the answer that the text
gives is scored again with the fact's regions muted, and with each of 20 random others muted.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import needles, report, texts
from app.eval.needles import Planted
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.memory.memory import RegionMemory
    from app.runtime.engine import Engine

TOP = 3
DEEPEST = 0.98  # what stands nearer to the question is seen whatever it says, and is no evidence
ANSWER_TOKENS = 48
TURN_TOKENS = 40  # of a question and its answer


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    names = ("file", "tokens", "readings", "per_reading", "others", "seed", "device")
    scoring = (args.others + 2) * args.per_reading * (harness.reading_s(TURN_TOKENS) + harness.STEP_S)
    seconds = harness.reading_s(args.tokens) + args.per_reading * harness.ANSWER_S + scoring
    benchmark = Benchmark(
        "evidence",
        {name: getattr(args, name) for name in names},
        [Part(f"reading-{i}", seconds, partial(_measure, args, i)) for i in range(args.readings)],
        _table,
        _finish,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _measure(args: argparse.Namespace, number: int) -> Values:
    engine, rng = harness.engine(args), random.Random(f"{args.seed}-{number}")
    lines = texts.lines_of(harness.prose(args, args.file))
    planted = needles.plan(rng, ["multi-key"], args.per_reading)
    planted = [replace(place, depths=(DEEPEST * place.depths[0],)) for place in planted]
    ids = needles.document(engine, lines, planted, args.tokens, rng.randrange(2**32))
    memory = engine.read(ids, on_progress=harness.progress(f"reading {number}"))
    return {"document_tokens": len(ids), "facts": list(trials(engine, memory, planted, args.others, rng))}


def trials(
    engine: "Engine", memory: "RegionMemory", planted: Sequence[Planted], others: int, rng: random.Random
) -> Iterator[Values]:
    """Ask for each fact and take its regions, then others, away."""
    for place in planted:
        (reply,) = texts.converse(engine, [memory], [place.needle.question], ANSWER_TOKENS)
        held = texts.regions_of(engine, memory, place.needle.sentences[0])
        free = [region for region in range(1, memory.regions) if region not in held]
        chosen = rng.sample(free, min(others, len(free)))
        whole = _score(engine, memory, place, ())
        without = _score(engine, memory, place, held)
        yield {
            "depth": round(place.depths[0], 4),
            "right": place.needle.score(reply.text) == 1,
            "rank": min((reply.looked.index(region) + 1 for region in held if region in reply.looked), default=None),
            "loss": round(whole - without, 4),
            "most_loss_of_others": round(max(whole - _score(engine, memory, place, (r,)) for r in chosen), 4),
        }


def _score(engine: "Engine", memory: "RegionMemory", place: Planted, muted: Sequence[int]) -> float:
    """Log-probability of the right answer with some regions muted, in nats."""
    cache = engine.open_chat([memory])
    if muted:
        cache.allow([region not in muted for region in range(memory.regions)])
    turn = engine.encode_turn([{"role": "user", "content": place.needle.question}])
    answer = engine.text_tokenizer.encode(place.needle.answer, add_special_tokens=False).ids
    return float(engine.score(cache, turn, answer).sum())


def _facts(parts: Mapping[str, Values]) -> list[Values]:
    return [fact for values in parts.values() for fact in values["facts"]]


def _finish(parts: Mapping[str, Values]) -> Values:
    """How many facts stood among the first regions, and how many mattered more than every other region."""
    facts = _facts(parts)
    shown = sum(fact["rank"] is not None and fact["rank"] <= TOP for fact in facts)
    needed = sum(fact["loss"] > fact["most_loss_of_others"] for fact in facts)
    return {
        "facts": len(facts),
        "right": sum(fact["right"] for fact in facts),
        f"top_{TOP}": shown,
        "top_lower_bound_95": round(report.lower_bound_95(shown, len(facts)), 4),
        "removal_lowers_most": needed,
        "removal_lower_bound_95": round(report.lower_bound_95(needed, len(facts)), 4),
    }


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for name, values in parts.items():
        found = _finish({name: values})
        rows.append([name, *(found[column] for column in ("facts", "right", f"top_{TOP}", "removal_lowers_most"))])
    return ["part", "facts", "right", f"top {TOP}", "removal lowers most"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "evidence")
    parser.add_argument("--file", type=Path, action="append", help="a book of the prose; several are joined")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of a text (16384)")
    parser.add_argument("--readings", type=int, default=4, help="texts (4)")
    parser.add_argument("--per-reading", type=int, default=25, help="facts in a text (25)")
    parser.add_argument("--others", type=int, default=20, help="random regions muted one by one (20)")
    args = parser.parse_args(argv)
    if args.quick:
        args.tokens, args.readings, args.per_reading, args.others = 1500, 1, 2, 3
    return args


if __name__ == "__main__":
    sys.exit(main())
