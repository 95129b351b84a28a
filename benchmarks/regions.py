"""Sizes of regions, ways to score them, codecs of keys and values: retrieval, perplexity and reading speed.

    python benchmarks/regions.py --file BOOK --file BOOK

Each variant reads the same text with several keys and is asked for them, and predicts the same last tokens of each
book.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import needles, perplexity, texts
from app.eval.needles import NeedlesConfig
from app.eval.perplexity import PerplexityConfig
from benchmarks import harness, machine
from benchmarks.harness import Benchmark, Part, Values

SIZES = (16, 32, 128, 256)  # beside the default of 64
CANDIDATE_TOKENS = 8192  # that the first cut leaves, whatever the size of a region
EXACT = 1 << 20


@dataclass(frozen=True)
class Variant:
    """A policy, changes to the attention recipe, and changes to the settings."""

    policy: str = "keep-all"
    attention: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def variants() -> dict[str, Variant]:
    """All variants by name. Groups of queries fill whole key regions: small query regions merge more of them."""
    found = {"default": Variant()}
    for size in SIZES:
        changes = {"region_tokens": size, "query_region_tokens": 64, "candidates": CANDIDATE_TOKENS // size}
        found[f"key-region-{size}"] = Variant(attention=changes | {"merge": max(2, size // 64)})
    for size in SIZES:
        changes = {"query_region_tokens": size, "merge": max(2, 64 // size)}
        found[f"query-region-{size}"] = Variant(attention=changes)
    return found | {
        "plain-mean": Variant(attention={"query_sub": 64, "key_sub": 64, "coarse_sub": 64}),
        "max-max": Variant(attention={"candidates": EXACT}),
        "minmax": Variant(attention={"score": "minmax"}),
        "infllm": Variant("infllm"),
        "int8": Variant(settings={"kv_codec": "int8"}),
        "int4": Variant(settings={"kv_codec": "int4"}),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    seconds = harness.reading_s(args.tokens * (1 + len(args.file))) + args.questions * harness.ANSWER_S
    known = variants()
    names = [name for name in known if not args.quick or name in ("default", "max-max")]
    benchmark = Benchmark(
        "regions",
        {name: getattr(args, name) for name in ("file", "tokens", "questions", "counted", "seed", "device")},
        [Part(name, seconds, partial(_measure, args, known[name])) for name in names],
        _table,
        _finish,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _measure(args: argparse.Namespace, variant: Variant) -> Values:
    engine = harness.engine(args, variant.policy, {"draft_tokens": 0, **variant.settings}, **variant.attention)
    asked = needles.summary(list(needles.run(engine, keys(args))))
    nats, started, read = [], time.perf_counter(), 0
    for file in args.file:
        ids = texts.encode(engine, "\n".join(texts.lines_of(file)) + "\n")
        lengths = PerplexityConfig((min(args.tokens, len(ids)),), counted=args.counted, windows=1)
        for window in perplexity.run(engine, ids, lengths):
            nats.append(window.nats)
            read += window.tokens
    seconds = time.perf_counter() - started
    return {
        **asdict(variant),
        **{name: asked[name] for name in ("right", "trials", "lower_bound_95")},
        "nats": [round(value, 6) for value in nats],
        "perplexity": round(math.exp(math.fsum(nats) / len(nats)), 4),
        "tokens_per_s": round(read / seconds, 1),
    }


def keys(args: argparse.Namespace) -> NeedlesConfig:
    """Keys of one form in one text, each asked once."""
    return NeedlesConfig(
        ("multi-key",),
        (args.tokens,),
        trials=args.questions,
        per_reading=args.questions,
        second=0,
        filler_file=harness.prose(args, args.file),
        seed=args.seed,
    )


def _finish(parts: Mapping[str, Values]) -> Values:
    """Perplexity over the default's, in percent."""
    base = parts["default"]["perplexity"]
    return {"over_default_percent": {n: round(100 * (v["perplexity"] / base - 1), 3) for n, v in parts.items()}}


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    columns = ["right", "trials", "lower_bound_95", "perplexity", "tokens_per_s"]
    return ["variant", *columns], [[name, *(values[column] for column in columns)] for name, values in parts.items()]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "regions")
    parser.add_argument("--file", type=Path, action="append", help="a book not trained on; repeat for several")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of each reading (16384)")
    parser.add_argument("--questions", type=int, default=20, help="keys in the text, each asked (20)")
    parser.add_argument("--books", type=int, default=2, help="books whose end is predicted (2)")
    parser.add_argument("--counted", type=int, default=1024, help="tokens scored at the end of each book (1024)")
    args = parser.parse_args(argv)
    args.file = (args.file or sorted((machine.ROOT / "samples").glob("*.txt")))[: args.books]
    if args.quick:
        args.tokens, args.questions, args.counted = 1000, 1, 40
    return args


if __name__ == "__main__":
    sys.exit(main())
