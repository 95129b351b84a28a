"""Several keys, UUID pairs and chains of variables in book prose: policies by lengths, second questions included.

    python benchmarks/needles.py --file BOOK --file BOOK

One reading per policy and length holds the needles of all tasks, so that they also distract from each other. `full`
sees everything and stops at 32K tokens; `bounded` has room for a part of the longer texts.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import needles
from app.eval.needles import NeedlesConfig
from benchmarks import controls, harness
from benchmarks.harness import Benchmark, Part, Values

TASKS = ("multi-key", "uuid", "tracking")
LENGTHS = (4096, 32_768, 262_144)
POLICIES = "keep-all,bounded,h2o,streaming,infllm,full"
FULL_MOST = 32_768
FULL_TOKENS = 8_192  # at this length plain attention takes as long again as everything else
STEPS = {"multi-key": 16, "key-value": 20, "uuid": 80, "multi-value": 32, "tracking": 32}  # of an answer


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    names = ("file", "tasks", "lengths", "policies", "per_reading", "readings", "second", "cap_mb", "seed", "device")
    benchmark = Benchmark(
        "needles",
        {name: getattr(args, name) for name in names},
        _parts(args),
        _table,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _parts(args: argparse.Namespace) -> list[Part]:
    parts = []
    for policy in args.policies:
        for tokens in args.lengths:
            if policy == "full" and tokens > FULL_MOST:
                continue
            steps = sum(STEPS[task] for task in args.tasks) * (args.per_reading + 2 * args.second)
            slower = 1 + tokens / FULL_TOKENS if policy == "full" else 1
            seconds = args.readings * slower * (harness.reading_s(tokens) + steps * harness.STEP_S)
            parts.append(Part(f"{policy}-{tokens}", seconds, partial(_measure, args, policy, tokens)))
    return parts


def _measure(args: argparse.Namespace, policy: str, tokens: int) -> Values:
    config = NeedlesConfig(
        args.tasks,
        (tokens,),
        trials=args.readings * args.per_reading,
        per_reading=args.per_reading,
        second=args.second,
        filler_file=harness.prose(args, args.file),
        seed=args.seed,
    )
    told = harness.progress(f"{policy}, {tokens:,} tokens")
    engine = controls.engine(args, policy, {"memory_cap_mb": args.cap_mb} if policy == "bounded" else None)
    values = needles.summary(list(needles.run(engine, config, on_progress=told)))
    return {"policy": policy, "tokens": tokens, "rows": values["rows"], "misses": values["misses"]}


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for values in parts.values():
        for row in values["rows"]:
            second = row["second"] or {"score": None, "trials": 0}
            first = [row[name] for name in ("task", "score", "right", "trials", "lower_bound_95")]
            rows.append([values["policy"], values["tokens"], *first, second["score"], second["trials"]])
    headings = ["policy", "tokens", "task", "score", "right", "of", "at least", "second question", "of them"]
    return headings, rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "needles")
    parser.add_argument("--file", type=Path, action="append", help="a book of the prose; several are joined")
    parser.add_argument("--tasks", type=lambda text: tuple(text.split(",")), default=TASKS)
    parser.add_argument("--lengths", type=harness.numbers, default=LENGTHS)
    parser.add_argument("--policies", type=lambda text: text.split(","), default=POLICIES.split(","))
    parser.add_argument("--readings", type=int, default=1, help="texts per policy and length (1)")
    parser.add_argument("--per-reading", type=int, default=6, help="questions per task and text (6)")
    parser.add_argument("--second", type=int, default=2, help="of those, followed by a second question (2)")
    parser.add_argument("--cap-mb", type=int, default=64, help="memory of one text under `bounded`, in MB (64)")
    args = parser.parse_args(argv)
    if args.quick:
        args.lengths, args.policies, args.per_reading, args.second = (2000,), ["keep-all", "streaming"], 1, 1
    return args


if __name__ == "__main__":
    sys.exit(main())
