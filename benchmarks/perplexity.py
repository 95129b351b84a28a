"""Perplexity of the same tokens with more and more text before them, and of texts whose evidence lies far back.

    python benchmarks/perplexity.py --file BOOK --file BOOK ...

Each book is one document. A book that is shorter than the longest reading follows the end of the book before it.
Compared, paired over documents: lengths, merged query regions (m = 2) with m = 1 and with token by token decode
(C_Q = 1), dense attention at the trained length, and sinks and window (`streaming`) at the same budget. The made
documents repeat, at their end, facts and lines that stood in their first part, far outside the window.
"""

import argparse
import math
import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import perplexity, report, texts
from app.eval.perplexity import PerplexityConfig
from app.tasks import needles
from benchmarks import harness, machine
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.runtime.engine import Engine

TIMES = (1, 4, 16, 64)
FACTS = 12  # repeated in a made document, and as many beginnings of lines
QUOTED_WORDS = 16


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    trained = harness.trained_tokens(args)
    names = ("file", "times", "sample_times", "sample", "counted", "stepped", "made", "made_times", "seed", "device")
    benchmark = Benchmark(
        "perplexity",
        {name: getattr(args, name) for name in names} | {"trained_tokens": trained},
        _parts(args, trained),
        _table,
        partial(_finish, trained),
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _parts(args: argparse.Namespace, trained: int) -> list[Part]:
    """One part per variant: its attention, the books and the multiples of the trained length it reads."""
    books, few = args.file, args.file[: args.sample]
    variants = [
        ("m2", "keep-all", {}, books, args.times),
        ("m1", "keep-all", {"merge": 1}, few, args.sample_times),
        ("dense", "full", {}, books, (1,)),
        ("streaming", "streaming", {}, books, args.sample_times),
    ]
    parts = []
    for name, policy, attention, files, times in variants:
        seconds = harness.reading_s(len(files) * sum(times) * trained)
        run = partial(_books, args, policy, attention, files, [t * trained for t in times])
        parts.append(Part(name, seconds, run))
    longest = max(args.sample_times) * trained
    steps = args.sample * (harness.reading_s(longest) + args.stepped * harness.STEP_S)
    parts.append(Part("step", steps, partial(_steps, args, few, longest)))
    for policy in ("keep-all", "streaming"):
        tokens = args.made_times * trained
        run = partial(_made, args, policy, tokens)
        parts.append(Part(f"made-{policy}", harness.reading_s(args.made * tokens), run))
    return parts


def _document(args: argparse.Namespace, engine: "Engine", file: Path, least: int) -> list[int]:
    """Token ids of a book; when it is short, after the end of the book before it."""
    lines = texts.lines_of(file)
    ids = texts.encode(engine, "\n".join(lines) + "\n")
    place = args.file.index(file)
    while len(ids) < least:
        place = (place - 1) % len(args.file)
        lines = texts.lines_of(args.file[place]) + lines
        ids = texts.encode(engine, "\n".join(lines) + "\n")
    return ids


def _books(
    args: argparse.Namespace, policy: str, attention: Mapping[str, Any], files: Sequence[Path], lengths: list[int]
) -> Values:
    """Nats of the last tokens of each book after readings of every length."""
    engine = harness.engine(args, policy, **attention)
    documents = {}
    for file in files:
        # The longest reading of all variants decides where the counted tokens stand.
        ids = _document(args, engine, file, max(args.times) * harness.trained_tokens(args))
        config = PerplexityConfig(tuple(lengths), counted=args.counted, windows=1)
        told = harness.progress(f"{policy} {file.stem}")
        found = {window.tokens: window.nats for window in perplexity.run(engine, ids, config, on_progress=told)}
        documents[file.name.partition(".")[0]] = {str(tokens): round(nats, 6) for tokens, nats in found.items()}
    return {"policy": policy, "attention": dict(attention), "counted": args.counted, "nats": documents}


def _steps(args: argparse.Namespace, files: Sequence[Path], tokens: int) -> Values:
    """The last tokens read one by one (C_Q = 1, m = 1) and, the same ones, in merged groups."""
    engine = harness.engine(args)
    documents = {}
    for file in files:
        ids = _document(args, engine, file, max(args.times) * harness.trained_tokens(args))
        ids = ids[:1] + ids[len(ids) - tokens + 1 :]
        merged = -engine.log_probs(ids, counted_from=tokens - args.stepped)
        single = -stepwise(engine, ids, tokens - args.stepped)
        documents[file.name.partition(".")[0]] = {
            "merged": round(float(merged.mean()), 6),
            "single": round(float(single.mean()), 6),
        }
    return {"tokens": tokens, "counted": args.stepped, "nats": documents}


def stepwise(engine: "Engine", ids: Sequence[int], counted_from: int) -> Any:
    """Log-probabilities [T - counted_from] of the tokens from `counted_from` on, each run alone as decode does.

    What comes before is read in merged groups, all but the tokens after its last whole group.
    """
    import torch

    group = engine.shape.attention.group_tokens
    start = (counted_from - 1) // group * group
    memory = engine.read(ids[:start])
    cache, rows = engine.open_chat(tail=memory), []
    with torch.no_grad():
        for place in range(start, len(ids) - 1):
            token = torch.tensor([[ids[place]]], device=engine.model.device)
            out = engine.model(input_ids=token, past_key_values=cache, use_cache=True)
            if place + 1 >= counted_from:
                rows.append(torch.log_softmax(out.logits[0, -1].float(), -1)[ids[place + 1]])
    return torch.stack(rows).cpu()


def make(engine: "Engine", lines: Sequence[str], tokens: int, seed: int) -> tuple[list[int], int]:
    """A document whose end repeats facts and lines of its first third.

    Returns:
        (token ids, place of the first repeated token).
    """
    rng = random.Random(seed)
    facts = [needle.sentences[0] for needle in needles.pairs(rng, FACTS, "word")]
    start = rng.randrange(len(lines))
    turned = [line.split() for line in [*lines[start:], *lines[:start]]]
    long = [" ".join(words[:QUOTED_WORDS]) for words in turned if len(words) >= QUOTED_WORDS]
    quotes = rng.sample(long, min(FACTS, len(long)))
    planted = facts + quotes
    depths = [rng.uniform(0, 1 / 3) for _ in planted]
    again = "\n".join(rng.sample(planted, len(planted))) + "\n"
    end = len(texts.encode(engine, again)) - 1
    ids = texts.fit(
        engine,
        lambda: texts.around(lines, random.Random(seed)),
        lambda taken: texts.plant(taken, planted, depths) + again,
        tokens,
    )
    return ids, len(ids) - end


def _made(args: argparse.Namespace, policy: str, tokens: int) -> Values:
    """Nats of the repeated end of each made document."""
    engine, lines = harness.engine(args, policy), texts.lines_of(harness.prose(args, args.file))
    told, documents = harness.progress(f"{policy}, made documents"), {}
    for number in range(args.made):
        ids, repeated = make(engine, lines, tokens, args.seed * 1000 + number)
        documents[str(number)] = round(-float(engine.log_probs(ids, counted_from=repeated).mean()), 6)
        told(number + 1, args.made)
    return {"policy": policy, "tokens": tokens, "nats": documents}


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Values | None:
    """Mean difference theirs - ours over the documents both have, in nats, and its standard error."""
    both = [name for name in ours if name in theirs]
    if not both:
        return None
    differences = [theirs[name] - ours[name] for name in both]
    mean, error = math.fsum(differences) / len(both), report.standard_error(differences)
    return {
        "documents": len(both),
        "nats": round(mean, 6),
        "standard_error": None if error is None else round(error, 6),
        "errors": round(mean / error, 2) if error else None,
        "percent": round(100 * math.expm1(mean), 3),
    }


def _column(values: Values, tokens: int) -> dict[str, float]:
    return {name: nats[str(tokens)] for name, nats in values["nats"].items() if str(tokens) in nats}


def _finish(trained: int, parts: Mapping[str, Values]) -> Values:
    """Paired comparisons; a positive difference says that the second of the two predicts worse."""
    ours = parts["m2"]
    lengths = sorted({int(tokens) for nats in ours["nats"].values() for tokens in nats})
    means = [math.fsum(column.values()) / len(column) for tokens in lengths if (column := _column(ours, tokens))]
    low = min(means)
    values: Values = {
        "perplexity": {str(tokens): round(math.exp(mean), 4) for tokens, mean in zip(lengths, means, strict=True)},
        "varies_percent": round(100 * math.expm1(max(means) - low), 3),
        "rises_percent": round(100 * math.expm1(max(b - min(means[: i + 1]) for i, b in enumerate(means))), 3),
        "longer": {str(tokens): paired(_column(ours, lengths[0]), _column(ours, tokens)) for tokens in lengths[1:]},
        "over_dense": paired(_column(parts["dense"], trained), _column(ours, trained)),
    }
    for name in ("m1", "streaming"):
        common = {int(tokens) for nats in parts[name]["nats"].values() for tokens in nats}
        values[f"{name}_over_m2"] = {
            str(tokens): paired(_column(ours, tokens), _column(parts[name], tokens)) for tokens in sorted(common)
        }
    steps = parts["step"]["nats"]
    values["step_over_m2"] = paired(
        {name: nats["merged"] for name, nats in steps.items()}, {name: nats["single"] for name, nats in steps.items()}
    )
    values["made_streaming_over_ours"] = paired(parts["made-keep-all"]["nats"], parts["made-streaming"]["nats"])
    return values


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for name, values in parts.items():
        columns: dict[str, list[float]] = {}
        for nats in values["nats"].values():
            for column, value in (nats if isinstance(nats, dict) else {str(values["tokens"]): nats}).items():
                columns.setdefault(column, []).append(value)
        for column, nats in columns.items():
            mean = math.fsum(nats) / len(nats)
            rows.append([name, column, len(nats), math.exp(mean), mean, report.standard_error(nats)])
    return ["variant", "tokens", "documents", "perplexity", "nats", "standard error"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "perplexity")
    parser.add_argument("--file", type=Path, action="append", help="a book not trained on; repeat for several")
    parser.add_argument("--times", type=harness.numbers, default=TIMES, help="lengths, times the trained one")
    parser.add_argument("--sample-times", type=harness.numbers, default=(1, 16), help="of m = 1 and streaming")
    parser.add_argument("--sample", type=int, default=4, help="books read with m = 1 and token by token (4)")
    parser.add_argument("--counted", type=int, default=1024, help="tokens scored at the end of each reading (1024)")
    parser.add_argument("--stepped", type=int, default=256, help="tokens run one by one (256)")
    parser.add_argument("--made", type=int, default=12, help="made documents (12)")
    parser.add_argument("--made-times", type=int, default=8, help="their length, times the trained one (8)")
    args = parser.parse_args(argv)
    args.file = args.file or sorted((machine.ROOT / "samples").glob("*.txt"))
    if args.quick:
        args.times, args.sample_times, args.sample, args.made, args.made_times = (1, 4), (1, 4), 1, 2, 80
        args.counted, args.stepped = 24, 20
    return args


if __name__ == "__main__":
    sys.exit(main())
