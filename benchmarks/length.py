"""Read one text of millions of tokens and stop at lengths on the way: time, memory, decode speed, and whether a key is
found.

    python benchmarks/length.py --file book.txt --file other.txt --tokens 4194304

One reading gives every row, so that the rows differ in length alone. Keys are five-digit numbers with names, planted in
the prose; each row asks for one that has been read, and the last row asks for all.
"""

import json
import random
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import passkeys
from app.eval import report, texts
from app.process import peak_bytes
from benchmarks import harness, machine

ROWS = (8_192, 65_536, 131_072, 262_144, 524_288, 1_048_576, 2_097_152, 4_194_304)
DECODED, REPEATS = 16, 3
DEPTHS = (0.001, 0.3, 0.7)


def main() -> int:
    """Measure; the exit code is 1 when the model disagrees with transformers on a short text."""
    parser = harness.flags(__doc__, "length")
    parser.add_argument("--file", type=Path, action="append", help="prose to read; several are joined and repeated")
    parser.add_argument("--tokens", type=int, default=ROWS[-1])
    args = parser.parse_args()
    tokens = 16_384 if args.quick else args.tokens
    if args.estimate:
        print(report.table(["part", "minutes"], [["all", round(harness.reading_s(tokens) / 60, 1)]]))
        return 0
    wrong = harness.same_as_transformers(args)
    if wrong:
        print(f"{wrong}: nothing is measured", file=sys.stderr)
        return 1
    engine = harness.engine(args)
    rows = [n for n in ROWS if n < tokens] + [tokens]
    ids, keys = _text(engine, harness.prose(args, args.file), tokens, random.Random(args.seed))
    print(f"{len(ids):,} tokens, keys {[key.number for key in keys]}", file=sys.stderr, flush=True)
    result = {
        "benchmark": "length",
        "model": Path(args.model).name,
        "weights": harness.weights(args.model),
        "settings": {"tokens": tokens, "depths": DEPTHS, "policy": engine.policy, "threads": args.threads},
        **_read(engine, ids, keys, rows),
        **machine.describe(),
    }
    print(json.dumps(result))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _text(engine, filler: Path, tokens: int, rng: random.Random) -> tuple[list[int], list[passkeys.Passkey]]:
    """A text of `tokens` tokens or a line fewer, with a key at each depth."""
    lines, keys = texts.lines_of(filler), passkeys.draw(rng, len(DEPTHS))
    ids = texts.fit(
        engine,
        lambda: texts.around(lines, random.Random(0)),
        lambda taken: passkeys.plant(taken, keys, DEPTHS),
        tokens,
    )
    return ids, keys


def _read(engine, ids: list[int], keys: list[passkeys.Passkey], rows: list[int]) -> dict[str, Any]:
    """Read on from row to row; each row's memory is that of a text of its length."""
    found, memory, seconds = [], None, 0.0
    group = engine.shape.attention.group_tokens
    for length in rows:
        end = min(length // group * group, len(ids)) if length < rows[-1] else len(ids)
        before = time.perf_counter(), time.process_time(), 0 if memory is None else memory.tokens
        if memory is None:
            memory = engine.read(ids[:end])
            memory.reserve(len(ids))  # later rows must not pay for a copy that one reading would not make
        else:
            memory = engine.read(ids[:end], resume=memory)
        elapsed, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
        seconds += elapsed
        asked = [key for key, depth in zip(keys, DEPTHS, strict=True) if depth < 0.9 * end / len(ids)]
        asked = asked if end == len(ids) else asked[-1:]
        index_bytes = memory.index.size_bytes * end // memory.capacity  # room is reserved, but no memory taken for it
        store_bytes = engine.shape.token_bytes * end + index_bytes
        right = [key.found_in(texts.answer(engine, memory, key.question, 32)) for key in asked]
        row = {
            "tokens": end,
            "seconds": round(seconds, 1),
            "tokens_per_s_since_last_row": round((end - before[2]) / elapsed, 1),
            "cpu_tokens_per_s_since_last_row": round((end - before[2]) / cpu, 1),
            "decode_tokens_per_s": _decode(engine, memory),
            "store_bytes": store_bytes,
            "peak_bytes": peak_bytes(),
            "rest_bytes": peak_bytes() - store_bytes,
            "keys_right": sum(right),
            "keys_asked": len(right),
        }
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(report.table(list(found[0]), [list(row.values()) for row in found]))
    return {"rows": found}


def _decode(engine, memory) -> dict[str, float]:
    """Tokens a second after the first, over a few repeats."""
    from app.runtime.config import GenerationConfig

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


if __name__ == "__main__":
    sys.exit(main())
