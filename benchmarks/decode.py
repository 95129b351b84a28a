"""Decode speed against length, side by side: the lengths take turns, so that other work on the machine slows all alike.

    python benchmarks/decode.py --lengths 4096,32768,131072,524288
    python benchmarks/decode.py --reselect 1,4,8

One text is read. Its keys and values, again and again with a little noise, make the longer memories: what a step costs
depends on how many there are and how like each other, not on what they say. Tokens share choices of regions as the
recipe says; with `--reselect` as many as that too, in turns. A step's time is the mean of an answer's, of these the
median. Steps that choose are timed, so nothing is drafted; `answers` tells what a token of a whole answer takes,
with the question and the draft.
"""

import argparse
import json
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.eval import report, texts
from benchmarks import harness, machine

LENGTHS = (4_096, 8_192, 32_768, 131_072, 262_144, 524_288)
READ_TOKENS = 32_768
WARM, DECODED, ROUNDS = 2, 32, 5
NOISE = 0.02
PIECE_TOKENS = 8_192


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit code is 1 when the model disagrees with transformers on a short text."""
    args = _arguments(argv)
    if args.estimate:
        seconds = (
            harness.reading_s(args.read)
            + args.rounds * (1 + len(args.reselect)) * len(args.lengths) * (DECODED + WARM) * harness.STEP_S
        )
        print(report.table(["part", "minutes"], [["all", round(seconds / 60 + sum(args.lengths) / 3e6, 1)]]))
        return 0
    wrong = harness.same_as_transformers(args)
    if wrong:
        print(f"{wrong}: nothing is measured", file=sys.stderr)
        return 1
    engine = harness.engine(args)
    read = engine.read(text_of(engine, harness.prose(args, args.file), args.read))
    memories = {tokens: filled(engine, read, tokens, seed=args.seed) for tokens in args.lengths}
    firsts = {tokens: _first_step(engine, memory) for tokens, memory in memories.items()}
    arms, draft = dict.fromkeys((engine.reselect_every, *args.reselect)), engine.draft_tokens
    times: dict[tuple[int | tuple[int, ...], int], list[tuple[float, float]]] = {
        (every, tokens): [] for every in arms for tokens in memories
    }
    answers: dict[int, list[tuple[float, float]]] = {tokens: [] for tokens in memories}
    for _ in range(args.rounds):
        engine.draft_tokens = 0
        for (engine.reselect_every, tokens), taken in times.items():
            taken.append(per_token(steps(engine, memories[tokens])))
        engine.reselect_every, engine.draft_tokens = next(iter(arms)), draft
        for tokens, taken in answers.items():
            taken.append(per_token(steps(engine, memories[tokens], warm=0)))
    rows = [
        {
            "reselect_every": every,
            "tokens": tokens,
            "processor_ms": milliseconds(taken, 0),
            "wall_ms": milliseconds(taken, 1),
            "tokens_per_processor_s": round(1000 / milliseconds(taken, 0), 1),
            "of_shortest": round(milliseconds(times[every, args.lengths[0]], 0) / milliseconds(taken, 0), 3),
            "first_step_ms": round(1000 * firsts[tokens], 1),
            "index_bytes_per_token": round(memories[tokens].index.size_bytes / memories[tokens].capacity, 1),
        }
        for (every, tokens), taken in times.items()
    ]
    whole = [
        {
            "draft_tokens": draft,
            "tokens": tokens,
            "processor_ms": milliseconds(taken, 0),
            "wall_ms": milliseconds(taken, 1),
            "of_shortest": round(milliseconds(answers[args.lengths[0]], 0) / milliseconds(taken, 0), 3),
        }
        for tokens, taken in answers.items()
    ]
    for table in (rows, whole):
        print(report.table(list(table[0]), [list(row.values()) for row in table]))
    result = {
        "benchmark": "decode",
        "model": Path(args.model).name,
        "weights": harness.weights(args.model),
        "settings": {name: getattr(args, name) for name in ("lengths", "reselect", "read", "rounds", "threads")},
        "rows": rows,
        "answers": whole,
        **machine.describe(),
    }
    print(json.dumps(result))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def text_of(engine, filler: Path, tokens: int) -> list[int]:
    """The first tokens of a file, which begins again at its end."""
    text = texts.encode(engine, "\n".join(texts.lines_of(filler)) + "\n")
    return (text * (1 + tokens // len(text)))[:tokens]


def filled(engine, read, tokens: int, *, room: int = 0, seed: int = 0) -> Any:
    """A memory of an engine with so many tokens: those of `read`, then again with a little noise.

    Args:
        read: a memory that keeps every token, of the same model.
        room: tokens that it shall have room for besides.
    """
    import torch

    from app.memory.memory import RegionMemory

    generator, memory = torch.Generator().manual_seed(seed), RegionMemory(engine.shape, tokens + room)
    rule = engine.shape.compaction
    piece = min(rule.stretch_tokens if rule else PIECE_TOKENS, read.tokens)
    for start in range(0, tokens, piece):
        place = start % read.tokens
        end = place + min(piece, read.tokens - place, tokens - start)
        memory.make_room(end - place)
        for layer in range(engine.shape.layers):
            keys, values = read.pages.rows(layer, place, end)
            if start >= read.tokens:
                keys = keys + NOISE * torch.randn(keys.shape, generator=generator).to(keys)
            memory.append(layer, keys, values)
        memory.token_ids += read.token_ids[place:end]
    return memory.freeze()


def _first_step(engine, memory) -> float:
    """Processor seconds of the first question's first token, when what a single query reads is made."""
    started = time.process_time()
    steps(engine, memory, count=1)
    return time.process_time() - started


def steps(engine, memory, count: int = DECODED, warm: int = WARM) -> list[tuple[float, float]]:
    """(processor, wall) seconds of each token after the first `warm` ones; the first has the question and the draft."""
    from app.memory.config import GenerationConfig

    cache, taken = engine.open_chat([memory]), []
    turn = engine.encode_turn([{"role": "user", "content": "What happens next, and who is there?"}])
    stop_ids, engine.stop_ids = engine.stop_ids, frozenset()  # every length takes the same number of steps
    try:
        tokens = engine.generate(cache, turn, GenerationConfig(max_new_tokens=warm + count))
        for _ in islice(tokens, warm):
            pass
        for _ in range(count):
            before = time.process_time(), time.perf_counter()
            next(tokens)
            taken.append((time.process_time() - before[0], time.perf_counter() - before[1]))
        tokens.close()
    finally:
        engine.stop_ids = stop_ids
    return taken


def per_token(taken: list[tuple[float, float]]) -> tuple[float, float]:
    """The means of an answer: of tokens that share a choice, one pays for it."""
    return tuple(statistics.fmean(pair[which] for pair in taken) for which in range(2))


def milliseconds(taken: list[tuple[float, float]], which: int) -> float:
    """The median: an answer that another process disturbed does not count more than one that none did."""
    return round(1000 * statistics.median(pair[which] for pair in taken), 2)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "decode")
    parser.add_argument("--file", type=Path, action="append", help="prose to read; the sample book when not given")
    parser.add_argument("--lengths", type=harness.numbers, default=LENGTHS, help="tokens, ascending")
    parser.add_argument(
        "--reselect",
        type=harness.numbers,
        default=(),
        help="tokens that share a choice, beside what the recipe says",
    )
    parser.add_argument("--read", type=int, default=READ_TOKENS, help=f"tokens that are really read ({READ_TOKENS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each length is measured ({ROUNDS})")
    args = parser.parse_args(argv)
    if args.quick:
        args.lengths, args.read, args.rounds, args.reselect = (2_048, 8_192), 2_048, 1, (1, 4)
    return args


if __name__ == "__main__":
    sys.exit(main())
