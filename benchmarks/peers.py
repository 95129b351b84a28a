"""Reading and decode beside stock transformers and llama.cpp: same weights, same text, one machine, one thread each.

    pip install gguf xllamacpp
    taskset -c 1 python benchmarks/peers.py --file BOOK

Each contender runs in a process of its own (`contender.py`), so that its peak memory is its own; they take turns. The
peers read beyond the trained length at their original positions, where their words are worth nothing: their speed
counts alone. Then what is ours alone: decode and the next tokens' reading by length, and decode under smaller budgets.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.errors import InputError
from benchmarks import contender, decode, harness
from benchmarks.harness import Benchmark, Part, Values

SIZES, DECODE_SIZES = (8_192, 32_768, 65_536, 131_072), (4_096, 32_768, 131_072, 1_048_576)
FLAT_SIZES, PIECE = (65_536, 131_072, 262_144, 1_048_576), 16_384
BUDGET_SIZES, SHARES = (8_192, 32_768), (1.0, 0.5, 0.2)
READ, ROUNDS, STEPS = 32_768, 3, 24
ONCE_FROM = 32_768  # tokens from which the peers, dense, read once: a part for each kind
OPERATIONS_PER_S = 6e10  # of a peer, one core
START_S = 8.0  # of a contender
OURS = "lectern"
GGUF = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Peer:
    """A contender with its options; `most` is the longest text that it reads, for what others do faster."""

    name: str
    kind: str
    options: Mapping[str, Any]
    most: int = 1 << 40


PEERS = (
    Peer(OURS, "lectern", {}),
    Peer("transformers bfloat16", "transformers", {"dtype": "bfloat16"}),
    Peer("transformers float32", "transformers", {"dtype": "float32"}, 32_768),
    Peer("llama.cpp bfloat16, flash attention", "llama.cpp", {"gguf": "bfloat16", "flash": True}),
    Peer("llama.cpp bfloat16, plain attention", "llama.cpp", {"gguf": "bfloat16", "flash": False}, 32_768),
    Peer("llama.cpp float32, flash attention", "llama.cpp", {"gguf": "float32", "flash": True}, 8_192),
)


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    parts = [
        Part(name, _seconds(args, n, peers), lambda n=n, peers=peers: _read(args, n, peers))
        for n in args.sizes
        for name, peers in _groups(args, n).items()
    ]
    most = max(args.decode_sizes)
    parts.append(Part("decode", 30 + most / 2e4, lambda: _decode(args)))
    parts.append(Part("flat", 30 + most / 2e4 + 5 * args.rounds * len(args.flat_sizes), lambda: _flat(args)))
    parts += [Part(f"budgets-{n}", 60, lambda n=n: _budgets(args, n)) for n in args.budget_sizes]
    settings = {
        name: getattr(args, name)
        for name in (
            "file",
            "sizes",
            "decode_sizes",
            "flat_sizes",
            "budget_sizes",
            "dense",
            "rounds",
            "steps",
            "threads",
        )
    }
    return harness.main(Benchmark("peers", settings, parts, _table, _finish, lambda: _wrong(args)), args)


def _groups(args: argparse.Namespace, tokens: int) -> dict[str, list[Peer]]:
    """Who takes turns at one length, by the name of a part."""
    there = [peer for peer in PEERS if peer.most >= tokens and (peer.kind != "llama.cpp" or args.llama)]
    there = [peer for peer in there if peer.name == OURS or tokens <= args.dense]
    if tokens < ONCE_FROM:
        return {f"read-{tokens}": there}
    groups: dict[str, list[Peer]] = {}
    for peer in there:
        groups.setdefault(f"read-{tokens}-{peer.kind}", []).append(peer)
    return groups


def _seconds(args: argparse.Namespace, tokens: int, peers: Sequence[Peer]) -> float:
    """Of some contenders at one length; the peers' attention takes 2 x 4 x 256 x N^2 operations."""
    dense = 2 * 4 * 256 * tokens**2 / OPERATIONS_PER_S + harness.reading_s(tokens) / 4
    each = (harness.reading_s(tokens) if peer.name == OURS else dense for peer in peers)
    return sum(_rounds(args, tokens, peer) * (START_S + seconds) for peer, seconds in zip(peers, each, strict=True))


def _rounds(args: argparse.Namespace, tokens: int, peer: Peer) -> int:
    return 1 if tokens >= ONCE_FROM and peer.name != OURS else args.rounds


# --- side by side


def _read(args: argparse.Namespace, tokens: int, peers: Sequence[Peer]) -> Values:
    """Each reads so many tokens and decodes after them."""
    made = [
        replace(peer, options={**peer.options, "gguf": str(_gguf(args, peer.options["gguf"]))})
        if "gguf" in peer.options
        else peer
        for peer in peers
    ]
    return in_turns(args, tokens, made, _rounds)


def in_turns(
    args: argparse.Namespace,
    tokens: int,
    peers: Sequence[Peer],
    rounds: Callable[[argparse.Namespace, int, Peer], int] = lambda args, tokens, peer: args.rounds,
) -> Values:
    """Contenders in turns, each with its own number of `rounds`: medians and spreads of what they measured."""
    ids, found, busy = _ids(args, tokens + 1), {}, _Busy()
    for turn in range(args.rounds):
        for peer in peers:
            if turn >= rounds(args, tokens, peer):
                continue
            options = dict(peer.options)
            job = contender.Job(peer.kind, args.model, str(ids), tokens, args.steps, args.threads, options)
            values = contender.run(job, args.work, f"{peer.kind}-{tokens}")
            found.setdefault(peer.name, []).append(values)
            told = f"{values['read_s'][0]:.1f} s, {values['step_ms'][0]:.1f} ms a token"
            print(f"{peer.name}, {tokens:,} tokens: {told}", file=sys.stderr, flush=True)
    return {"tokens": tokens, "contenders": {name: _summary(runs) for name, runs in found.items()}, **busy.told()}


def _summary(runs: Sequence[Values]) -> Values:
    """Medians over the runs, and the spread where there are several."""
    columns = {
        "read_s": [run["read_s"][0] for run in runs],
        "read_processor_s": [run["read_s"][1] for run in runs],
        "first_step_s": [run["first_step_s"][0] for run in runs],
        "step_ms": [run["step_ms"][0] for run in runs],
        "step_processor_ms": [run["step_ms"][1] for run in runs],
        "peak_bytes": [run["peak_bytes"] for run in runs],
        "grown_bytes": [run["peak_bytes"] - run["held_bytes"] for run in runs],
    }
    values: Values = {name: round(statistics.median(column), 4) for name, column in columns.items()}
    spread = {name: [round(min(c), 4), round(max(c), 4)] for name, c in columns.items()} if len(runs) > 1 else {}
    return {"runs": len(runs), **values, "spread": spread}


def _ids(args: argparse.Namespace, tokens: int) -> Path:
    """A file with the token ids of the text."""
    engine = harness.engine(args)
    path = args.work / f"ids-{tokens}.json"
    path.write_text(json.dumps(decode.text_of(engine, harness.prose(args, args.file), tokens)), encoding="utf-8")
    return path


def _gguf(args: argparse.Namespace, dtype: str) -> Path:
    """The model as GGUF, stating a length that all texts fit."""
    from scripts.to_gguf import convert

    path = args.work / f"{harness.weights(args.model)}-{dtype}.gguf"
    if not path.exists():
        convert(Path(args.model), path, dtype, context=1 << 20)
    return path


def _wrong(args: argparse.Namespace) -> str | None:
    """What differs on short texts: log-probabilities of ours, greedy text of llama.cpp, against transformers."""
    args.work.mkdir(parents=True, exist_ok=True)
    wrong = harness.same_as_transformers(args)
    if wrong or not args.llama:
        return wrong
    from scripts.to_gguf import check

    try:
        return "llama.cpp differs" if check(Path(args.model), _gguf(args, "float32")) else None
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install gguf xllamacpp, or --no-llama") from error


class _Busy:
    """What else ran on the machine meanwhile, in cores."""

    def __init__(self) -> None:
        self.started, self.before = time.perf_counter(), self._seconds()

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """(all processors were busy, this process and its children were)."""
        own = sum(os.times()[:4])
        try:
            fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
        except OSError:
            return own, own
        ticks = [int(x) for x in fields]
        return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), own

    def told(self) -> Values:
        elapsed = time.perf_counter() - self.started
        busy, own = (after - before for after, before in zip(self._seconds(), self.before, strict=True))
        return {"others_cores": round(max(0.0, busy - own) / elapsed, 2), "cores": os.cpu_count()}


# --- ours alone


def _source(args: argparse.Namespace) -> tuple[Any, Any]:
    """(engine, a memory that it read)."""
    engine = harness.engine(args)
    return engine, engine.read(decode.text_of(engine, harness.prose(args, args.file), args.read))


def _in_turns(args: argparse.Namespace, cases: Mapping[Any, Any], measure: Any) -> dict[Any, list[Any]]:
    """What `measure` gives for each case, round by round."""
    found: dict[Any, list[Any]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, case in cases.items():
            found[name] += measure(case)
    return found


def _decode(args: argparse.Namespace) -> Values:
    """Decode by length."""
    busy, (engine, read) = _Busy(), _source(args)
    memories = {n: decode.filled(engine, read, n, seed=args.seed) for n in args.decode_sizes}
    found = _in_turns(args, memories, lambda memory: decode.steps(engine, memory))
    return {"rows": _rows("tokens", found), **busy.told()}


def _rows(name: str, found: Mapping[Any, Sequence[tuple[float, float]]]) -> list[Values]:
    """A row for each case: milliseconds of a step, and the share of the first case's speed."""
    ms = {case: [1000 * statistics.median(x) for x in zip(*taken, strict=True)] for case, taken in found.items()}
    first = next(iter(ms.values()))[0]
    tenths = {case: statistics.quantiles((x[0] for x in taken * 2), n=10) for case, taken in found.items()}
    return [
        {
            name: case,
            "processor_ms": round(processor, 4),
            "wall_ms": round(wall, 4),
            "spread_ms": [round(1000 * tenths[case][i], 4) for i in (0, -1)],
            "of_first": round(first / processor, 3),
        }
        for case, (processor, wall) in ms.items()
    ]


def _flat(args: argparse.Namespace) -> Values:
    """Reading by length: what the next tokens of a text cost."""
    busy, (engine, read) = _Busy(), _source(args)
    piece = min(PIECE, read.tokens)
    memories = {n: decode.filled(engine, read, n, room=piece, seed=args.seed) for n in args.flat_sizes}

    def measure(memory: Any) -> list[tuple[float, float]]:
        tokens = memory.tokens
        before = time.process_time(), time.perf_counter()
        engine.read([*memory.token_ids, *read.token_ids[:piece]], resume=memory)
        taken = time.process_time() - before[0], time.perf_counter() - before[1]
        memory.truncate(tokens)
        return [(taken[0] / piece, taken[1] / piece)]

    measure(next(iter(memories.values())))  # segments grow to their size
    return {"piece": piece, "rows": _rows("tokens", _in_turns(args, memories, measure)), **busy.told()}


def _budgets(args: argparse.Namespace, tokens: int) -> Values:
    """Decode with a part of the text: heavy hitters that stay, or regions that are chosen."""
    busy, (shipped, read) = _Busy(), _source(args)
    group = shipped.shape.attention.group_tokens
    engines = {"full": harness.engine(args, "full")}
    for policy, name in (("h2o", "heavy hitters"), ("keep-all", "regions")):
        for share in SHARES:
            budget = round(tokens * share) // group * group
            engines[f"{name} {share:.0%}"] = _with_budget(args, policy, budget)
    cases = {name: (engine, decode.filled(engine, read, tokens, seed=args.seed)) for name, engine in engines.items()}
    found = _in_turns(args, cases, lambda case: decode.steps(*case))
    rows = _rows("cache", found)
    for row in rows:
        row["memory_bytes"] = cases[row["cache"]][1].size_bytes
    return {"tokens": tokens, "rows": rows, **busy.told()}


def _with_budget(args: argparse.Namespace, policy: str, tokens: int) -> Any:
    from app.runtime import policies

    return harness.engine(args, policies.named(policy), budget_tokens=tokens)


# --- what is told


def _finish(parts: Mapping[str, Values]) -> Values:
    sides = [_ratios(tokens, contenders) for tokens, contenders in side_by_side(parts).items()]
    speeds = [row["of_first"] for row in parts["decode"]["rows"]]
    costs = [row["processor_ms"] for row in parts["flat"]["rows"]]
    met = {
        "decode_within_20_percent": min(speeds) >= 0.8,
        "reading_flat_within_10_percent": max(costs) <= 1.1 * min(costs),
    }
    for side in sides:
        if side["tokens"] == 8_192:
            met["reads_8k_like_transformers"] = side["read_over_transformers"] <= 1.1
        if side["tokens"] == 131_072:
            met["reads_128k_5_times_faster"] = side["read_times_faster"] >= 5 and side["peak_over_fastest"] <= 1
    return {"met": met, "ratios": sides}


def side_by_side(parts: Mapping[str, Values]) -> dict[int, dict[str, Values]]:
    """What each contender measured, by length; where ours alone read, what the peers' shorter lengths foretell."""
    sides: dict[int, dict[str, Values]] = {}
    for part in parts.values():
        if "contenders" in part:
            sides.setdefault(part["tokens"], {}).update(part["contenders"])
    for tokens, side in sides.items():
        if list(side) != [OURS]:
            continue
        for name in sorted({name for n, other in sides.items() if n < tokens for name in other} - {OURS}):
            two = sorted(n for n, other in sides.items() if n < tokens and "peak_bytes" in other.get(name, {}))[-2:]
            if len(two) == 2 and two[-1] == max(n for n in sides if n < tokens):
                side[name] = _fitted(tokens, *((n, sides[n][name]) for n in two))
    return sides


def _fitted(tokens: int, *two: tuple[int, Values]) -> Values:
    """Reading as a N + b N^2, everything else as a + b N, through two lengths."""
    (n, x), (m, y) = two
    values: Values = {"fitted_from": [n, m]}
    for name in ("read_processor_s", "step_processor_ms", "peak_bytes", "grown_bytes"):
        power = int(name == "read_processor_s")
        first, second = x[name] / n**power, y[name] / m**power
        values[name] = round((first + (second - first) * (tokens - n) / (m - n)) * tokens**power, 4)
    return values


def _ratios(tokens: int, contenders: Mapping[str, Values]) -> Values:
    """Ours against the fastest peer in reading and in decode, and against transformers."""
    ours = contenders[OURS]
    peers = {name: values for name, values in contenders.items() if name != OURS}
    stock = [v["read_processor_s"] for name, v in peers.items() if name.startswith("transformers")]
    fastest = min(peers.values(), key=lambda values: values["read_processor_s"])
    return {
        "tokens": tokens,
        "read_times_faster": round(fastest["read_processor_s"] / ours["read_processor_s"], 2),
        "read_over_transformers": round(ours["read_processor_s"] / min(stock), 2),
        "peak_over_fastest": round(ours["peak_bytes"] / fastest["peak_bytes"], 2),
        "decode_times_faster": {
            name: round(values["step_processor_ms"] / ours["step_processor_ms"], 2) for name, values in peers.items()
        },
    }


def _table(parts: Mapping[str, Values]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    rows = []
    for name, part in parts.items():
        for who, v in part.get("contenders", {}).items():
            megabytes = [round(v[key] / 1e6) for key in ("peak_bytes", "grown_bytes")]
            rows.append(
                [name, who, round(v["read_s"], 2), round(v["read_processor_s"], 2), v["step_processor_ms"], *megabytes]
            )
        for row in part.get("rows", ()):
            held = round(row["memory_bytes"] / 1e6) if "memory_bytes" in row else ""
            case = row.get("tokens", row.get("cache"))
            rows.append([name, case, "", "", row["processor_ms"], held, ""])
    return ["part", "who", "read s", "read processor s", "step processor ms", "peak MB", "grown MB"], rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "peers")
    parser.add_argument("--file", type=Path, action="append", help="prose to read; the sample book when not given")
    parser.add_argument("--sizes", type=harness.numbers, default=SIZES, help="tokens that everybody reads")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contender ({ROUNDS})")
    parser.add_argument(
        "--dense", type=int, default=SIZES[-1], help="longest text that the peers read; what longer ones take is fitted"
    )
    parser.add_argument("--no-llama", dest="llama", action="store_false", help="leave llama.cpp out")
    args = parser.parse_args(argv)
    args.decode_sizes, args.flat_sizes, args.budget_sizes = DECODE_SIZES, FLAT_SIZES, BUDGET_SIZES
    args.read, args.steps = READ, STEPS
    if args.quick:
        args.sizes, args.rounds, args.read, args.steps = (512,), 1, 2_048, 4
        args.decode_sizes, args.flat_sizes, args.budget_sizes = (1_024, 2_048), (1_024, 2_048), (1_024,)
    return args


if __name__ == "__main__":
    sys.exit(main())
