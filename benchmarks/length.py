"""Read texts of up to millions of tokens and stop at lengths on the way: time, memory, decode speed, and keys found.

    python benchmarks/length.py --file BOOK --file BOOK --tokens 4194304

A part is one reading from the first token on; the rows on its way differ in length alone. Longer parts begin anew, so
that a stop loses one, and tell only rows that no shorter one told. Keys are five-digit numbers with names, planted in
the prose; each row asks for one that has been read, and the last row of a part for all three.

Memory: `host_bytes` is what is held of the text: keys and values, index, H2O mass, token ids, the script's own too;
`rest_bytes` is the peak while reading less that: the model, a segment's work, the program. It should not grow with the
text.
"""

import argparse
import gc
import json
import multiprocessing
import random
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import texts
from app.system import forget_peak, peak_bytes
from app.tasks import needles
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.memory.memory import RegionMemory
    from app.runtime.engine import Engine

ROWS = (8_192, 65_536, 131_072, 262_144, 524_288, 1_048_576, 2_097_152, 4_194_304)
ENDS = (262_144, 1_048_576, 4_194_304)  # of the readings
DECODED, REPEATS = 16, 3
DEPTHS = (0.001, 0.3, 0.7)
FLAT_FROM = 65_536
MORE_ROOM = 65_536  # tokens, for questions: slots that exceed their limit are all copied
ID_BYTES = 40  # of a token id in a list of Python's: the number, as it is allocated, and the place that holds it
MOST_GROWTH, MOST_REST, LEAST_DECODE = 2.1, 1.05, 0.8


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    benchmark = Benchmark(
        "length",
        {name: getattr(args, name) for name in ("file", "rows", "segment", "seed", "device", "threads")}
        | {"depths": DEPTHS},
        _parts(args),
        _table,
        _finish,
        check=partial(harness.same_as_transformers, args),
    )
    return harness.main(benchmark, args)


def _parts(args: argparse.Namespace) -> list[Part]:
    parts, told = [], 0
    for end in [*(end for end in ENDS if end < args.rows[-1]), args.rows[-1]]:
        rows = [tokens for tokens in args.rows if told < tokens <= end]
        asked = (len(rows) + len(DEPTHS)) * harness.ANSWER_S + len(rows) * REPEATS * (DECODED + 16) * harness.STEP_S
        parts.append(Part(str(end), harness.reading_s(1.1 * end) + 2 * asked, partial(_measure, args, rows)))
        told = end
    return parts


def _measure(args: argparse.Namespace, rows: Sequence[int]) -> Values:
    """One reading, in a process of its own, as is the making of its text: what is left of others must not count."""
    ids, keys = _apart(make_text, args, harness.prose(args, args.file), rows[-1])
    return _apart(read, args, rows, ids, keys)


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def read(args: argparse.Namespace, rows: Sequence[int], ids: array, keys: list[needles.Passkey]) -> Values:
    """One reading; half of its first row is timed as well, to be compared with."""
    from app.memory.memory import RegionMemory

    engine = harness.engine(args)
    room = engine.shape.token_bytes * (len(ids) + MORE_ROOM)
    engine = harness.engine(args, settings={"host_budget_gb": room / 1e9})
    held = memoryview(ids)  # a slice of an array is a copy
    group = engine.shape.attention.group_tokens
    engine.segment_tokens = engine.most_segment_tokens = args.segment  # else a faster moment would take more memory
    gc.collect()
    forget_peak()
    found, seconds = [], 0.0
    memory = RegionMemory(engine.shape, len(ids))  # no row pays for growth, which one reading does not have
    for length in [rows[0] // 2, *rows]:
        end = len(ids) if length == rows[-1] else length // group * group
        started, spent = time.perf_counter(), time.process_time()
        done = memory.tokens
        memory = engine.read(held[:end], resume=memory)
        elapsed, cpu = time.perf_counter() - started, time.process_time() - spent
        seconds += cpu
        row = {"tokens": end, "cpu_seconds": round(seconds, 3)} | _speeds(end - done, elapsed, cpu)
        if length in rows:
            row |= _bytes(memory, ids) | _asked(engine, memory, keys, end / len(ids))
            row["decode_tokens_per_s"] = _decode(engine, memory)
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return {"rows": found}


def make_text(args: argparse.Namespace, filler: Path, tokens: int) -> tuple[array, list[needles.Passkey]]:
    """Token ids of a text of `tokens` tokens or a line fewer, with a key at each depth."""
    engine, lines = harness.engine(args), texts.lines_of(filler)
    keys = needles.draw(random.Random(args.seed), len(DEPTHS))
    ids = texts.fit(
        engine,
        lambda: texts.around(lines, random.Random(0)),
        lambda taken: needles.plant(taken, keys, DEPTHS),
        tokens,
    )
    return array("I", ids), keys


def _speeds(tokens: int, elapsed_s: float, cpu_s: float) -> Values:
    return {"tokens_per_s": round(tokens / elapsed_s, 1), "cpu_tokens_per_s": round(tokens / cpu_s, 1)}


def _bytes(memory: "RegionMemory", ids: array) -> Values:
    """What is held; room for more is reserved, but no memory is taken for it, save by the codes of single queries."""
    whole = memory.pages.size_bytes + memory.index.sketch.size_bytes
    grown = (memory.size_bytes - whole) * memory.slots // memory.capacity
    host = whole + grown + ID_BYTES * memory.tokens + ids.itemsize * len(ids)
    peak = peak_bytes()
    return {"host_bytes": host, "peak_bytes": peak, "rest_bytes": peak - host}


def _asked(engine: "Engine", memory: "RegionMemory", keys: Sequence[needles.Passkey], read: float) -> Values:
    """How many of the keys are found: one that has been read, or all at the end."""
    asked = [key for key, depth in zip(keys, DEPTHS, strict=True) if depth < 0.9 * read]
    asked = asked if read == 1 else asked[-1:]
    right = [key.found_in(texts.answer(engine, memory, key.question, 32)) for key in asked]
    return {"keys_right": sum(right), "keys_asked": len(right)}


def _decode(engine: "Engine", memory: "RegionMemory") -> Values:
    """Tokens a second after the first, before which there may be a draft, over a few repeats."""
    from app.memory.config import GenerationConfig

    speeds = []
    for _ in range(REPEATS):
        cache = engine.open_chat([memory])
        turn = engine.encode_turn([{"role": "user", "content": "What happens next, and who is there?"}])
        engine.stop_ids, stop_ids = frozenset(), engine.stop_ids  # every repeat takes the same number of steps
        try:
            tokens = engine.generate(cache, turn, GenerationConfig(max_new_tokens=DECODED + 1))
            next(tokens)
            started = time.perf_counter()
            count = sum(1 for _ in islice(tokens, DECODED))
            speeds.append(count / (time.perf_counter() - started))
            tokens.close()
        finally:
            engine.stop_ids = stop_ids
    return {
        "median": round(statistics.median(speeds), 2),
        "least": round(min(speeds), 2),
        "most": round(max(speeds), 2),
    }


def _finish(parts: Mapping[str, Values]) -> Values:
    """time(2N) / time(N) within each reading, the spread of what is not the text, decode against the shortest."""
    growth: dict[str, float] = {}
    for values in parts.values():
        seconds = {row["tokens"]: row["cpu_seconds"] for row in values["rows"]}
        for tokens, spent in seconds.items():
            half = next((n for n in seconds if abs(2 * n - tokens) < 0.01 * tokens), None)
            if half and seconds[half]:
                growth[str(tokens)] = round(spent / seconds[half], 3)
    rows = [row for values in parts.values() for row in values["rows"] if "host_bytes" in row]
    rest = [row["rest_bytes"] for row in rows if row["tokens"] >= FLAT_FROM] or [rows[-1]["rest_bytes"]]
    decode = [row["decode_tokens_per_s"]["median"] for row in rows]
    asked = sum(row["keys_asked"] for row in rows)
    return {
        "time_2n_over_n": growth,
        "rest_most_over_least": round(max(rest) / min(rest), 4),
        "decode_of_shortest": {
            str(row["tokens"]): round(speed / decode[0], 3) for row, speed in zip(rows, decode, strict=True)
        },
        "met": {
            "time": all(ratio <= MOST_GROWTH for ratio in growth.values()),
            "memory": max(rest) / min(rest) <= MOST_REST,
            "decode": min(decode) >= LEAST_DECODE * decode[0],
            "keys": sum(row["keys_right"] for row in rows) == asked,
        },
    }


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for values in parts.values():
        for row in values["rows"]:
            if "host_bytes" in row:
                speeds = [row["cpu_tokens_per_s"], row["decode_tokens_per_s"]["median"]]
                sizes = [round(row[name] / 1e6) for name in ("host_bytes", "peak_bytes", "rest_bytes")]
                keys = f"{row['keys_right']} of {row['keys_asked']}"
                rows.append([row["tokens"], row["cpu_seconds"], *speeds, *sizes, keys])
    headings = ["tokens", "CPU s", "read/s of CPU", "decode/s", "held MB", "peak MB", "rest MB", "keys"]
    return headings, rows


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "length")
    parser.add_argument("--file", type=Path, action="append", help="prose to read; several are joined and repeated")
    parser.add_argument("--tokens", type=int, default=ROWS[-1], help="of the longest reading (4,194,304)")
    parser.add_argument("--segment", type=int, default=2048, help="tokens that are run together (2048; GPU: 8192)")
    args = parser.parse_args(argv)
    tokens = 2_000 if args.quick else args.tokens
    args.rows = [1000, tokens] if args.quick else [*(n for n in ROWS if n < tokens), tokens]
    return args


if __name__ == "__main__":
    sys.exit(main())
