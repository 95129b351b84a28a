"""A real model on this CPU, side by side: reading and a token of the answer, in processor time of one core.

    pip install xllamacpp
    python benchmarks/cpu.py --model MODEL --gguf FILE --file BOOK

Ours with the weights that it takes by itself and with float32, stock transformers in each data type, llama.cpp on the
GGUF files with flash and with plain attention; each in a process of its own (`contender.py`), in turns. The peer's best
counts. Processor time bears other work on the machine, but for what that does to caches: `others_cores` tells how much.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness, peers
from benchmarks.harness import Benchmark, Part, Values
from benchmarks.peers import Peer

SIZES, ROUNDS, STEPS = (4_096, 8_192), 3, 24
OURS = "lectern"
TOKENS_PER_S = 60.0  # of all contenders, about


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    there = _contenders(args)
    parts = [
        Part(f"{n}", args.rounds * len(there) * n / TOKENS_PER_S, lambda n=n: peers.in_turns(args, n, there))
        for n in args.sizes
    ]
    names = ("model", "gguf", "file", "sizes", "rounds", "steps", "threads")
    settings = {name: getattr(args, name) for name in names}
    return harness.main(
        Benchmark("cpu", settings, parts, _table, _finish, lambda: harness.same_as_transformers(args)), args
    )


def _contenders(args: argparse.Namespace) -> list[Peer]:
    found = [
        Peer(OURS, "lectern", {}),
        Peer(f"{OURS} float32", "lectern", {"weights": "float32"}),
        *(Peer(f"transformers {dtype}", "transformers", {"dtype": dtype}) for dtype in args.dtypes),
    ]
    for file, (kind, flash) in product(args.gguf or (), (("flash", True), ("plain", False))):
        found.append(
            Peer(f"llama.cpp {Path(file).stem}, {kind} attention", "llama.cpp", {"gguf": file, "flash": flash})
        )
    return found


def _finish(parts: Mapping[str, Values]) -> Values:
    """Ours against the best of each kind of peer: reading above 1 is faster, a token's time below 1 is faster."""
    return {"ratios": [_ratios(part["tokens"], part["contenders"]) for part in parts.values()]}


def _ratios(tokens: int, contenders: Mapping[str, Values]) -> Values:
    ours, found = contenders[OURS], {"tokens": tokens}
    for kind in ("transformers", "llama.cpp"):
        theirs = [values for name, values in contenders.items() if name.startswith(kind)]
        if theirs:
            read = min(values["read_processor_s"] for values in theirs)
            step = min(values["step_processor_ms"] for values in theirs)
            found[f"read_times_faster_than_{kind}"] = round(read / ours["read_processor_s"], 2)
            found[f"step_over_{kind}"] = round(ours["step_processor_ms"] / step, 2)
    return found


def _table(parts: Mapping[str, Values]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    rows = [
        [part["tokens"], who, round(part["tokens"] / v["read_processor_s"]), v["step_processor_ms"], v["runs"]]
        for part in parts.values()
        for who, v in part["contenders"].items()
    ]
    return ["tokens", "who", "tokens per second of a core", "a token, ms of a core", "runs"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "cpu")
    parser.add_argument("--gguf", action="append", help="the same model for llama.cpp, which is left out without")
    parser.add_argument("--file", type=Path, action="append", help="prose to read; the sample book when not given")
    parser.add_argument("--sizes", type=harness.numbers, default=SIZES, help="tokens that everybody reads")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contender ({ROUNDS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"tokens of an answer ({STEPS})")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], help="of transformers; bfloat16 is slow without AVX-512"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.rounds, args.steps = (512,), 1, 4
    return args


if __name__ == "__main__":
    sys.exit(main())
