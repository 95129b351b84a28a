"""Questions whose passage is hidden in 16K to 256K tokens of a book: by words and attention, by attention, and rivals.

    python launch.py eval questions --data DATA --out questions.jsonl
    python benchmarks/hidden.py --questions questions.jsonl --file BOOK --file BOOK --model MODEL
    python benchmarks/hidden.py --questions questions.jsonl --file BOOK --model MODEL --count 20 --lengths 16384

Each reading is read once and asked in every way. The rivals have the same weights: eight passages that words found
pasted into a prompt, with nothing else read, and the text cut to what fits a window. `alone` reads each passage by
itself.
"""

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.errors import LecternError
from app.eval import qa, texts
from app.eval.texts import WordIndex
from app.eval.qa import Answered, QaConfig, Question
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.memory.memory import RegionMemory
    from app.runtime.engine import Engine

LENGTHS = (16_384, 65_536, 262_144)
OURS, RIVALS = ("both", "attention"), ("pasted", "cut")
PASTED = 8
WINDOW, LEFT = 8192, 256
DRAFT_TOKENS = 16
READ_S, ANSWERED_S = 1 / 300, 6.0  # seconds a token and an answer, 135 M parameters on one core


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        questions = qa.draw(qa.load(args.questions)[0], args.count, args.seed)
    except LecternError as error:
        print(error, file=sys.stderr)
        return 1
    names = ("questions", "file", "count", "per_reading", "lengths", "seed")
    benchmark = Benchmark(
        "hidden",
        {name: getattr(args, name) for name in names},
        _parts(args, questions),
        partial(_table, questions),
        partial(_finish, questions),
        details=("answered",),
    )
    return harness.main(benchmark, args)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__ or "", "hidden")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="from `eval questions`")
    parser.add_argument("--file", type=Path, action="append", help="a book to hide passages in; more than one")
    parser.add_argument("--count", type=int, default=300, metavar="N", help="questions (300)")
    parser.add_argument("--per-reading", type=int, default=25, metavar="N", help="passages in one reading (25)")
    parser.add_argument("--lengths", type=harness.numbers, default=LENGTHS, metavar="N,N", help="tokens of a reading")
    args = parser.parse_args(argv)
    if args.quick:
        args.count, args.lengths = 2, (400,)
    return args


def _parts(args: argparse.Namespace, questions: list[Question]) -> list[Part]:
    parts = [Part("alone", len(questions) * ANSWERED_S, partial(_alone, args, questions))]
    for length in args.lengths:
        for number, here in enumerate(qa.deal(questions, args.per_reading, random.Random(args.seed))):
            seconds = (length + WINDOW + 2500 * len(here)) * READ_S + 5 * len(here) * ANSWERED_S
            parts.append(Part(f"{length}-{number}", seconds, partial(_reading, args, length, number, here)))
    return parts


def _alone(args: argparse.Namespace, questions: list[Question]) -> Values:
    told = harness.progress("questions, each of its passage")
    answered = qa.run(harness.engine(args), questions, QaConfig(), on_progress=told)
    return {"tokens": None, "answered": {"alone": [*map(_plain, answered)]}}


def _reading(args: argparse.Namespace, length: int, number: int, questions: list[Question]) -> Values:
    """One reading, asked in every way; a quarter of the questions a second time with `both`, as a chat's second."""
    engine, rng = harness.engine(args), random.Random(f"{args.seed}-{length}-{number}")
    engine.draft_tokens = engine.draft_tokens or DRAFT_TOKENS
    passages = list(dict.fromkeys(q.text for q in questions))
    filler = texts.lines_of(harness.prose(args, args.file))
    depths = [rng.random() for _ in passages]
    ids = texts.filled(engine, filler, passages, depths, length, rng.randrange(2**32))
    memory = engine.read(ids, on_progress=harness.progress(f"{length:,} tokens, reading {number}"))
    answered: dict[str, list[Values]] = {}
    for way in OURS:
        engine.lookup = way
        second = len(questions) // 4 if way == "both" else 0
        answered[way] = [_plain(a) for a in qa.ask(engine, memory, questions, second)]
    words = WordIndex(engine, [memory])
    answered["pasted"] = [_plain(_pasted(engine, words, q)) for q in questions]
    answered["cut"] = [_plain(a) for a in _cut(engine, memory, questions)]
    return {"tokens": length, "answered": answered}


def _pasted(engine: "Engine", words: WordIndex, question: Question) -> Answered:
    """What an app without a memory does: the best passages in the prompt."""
    text = "\n\n".join(words.passages(question.question, PASTED)) or "\n"
    memory = engine.read(texts.encode(engine, text))
    engine.lookup = "attention"
    (answered,) = qa.ask(engine, memory, [question])
    return answered


def _cut(engine: "Engine", memory: "RegionMemory", questions: Sequence[Question]) -> list[Answered]:
    """The beginning of the text that fits a window, all of it seen."""
    from app.runtime import policies

    whole = engine.under(policies.named("full"))
    whole.lookup = "attention"
    return list(qa.ask(whole, whole.read(memory.token_ids[: WINDOW - LEFT]), questions))


def _plain(a: Answered) -> Values:
    plain = {name: getattr(a, name) for name in ("answer", "document_tokens", "turn", "rank")}
    return {"id": a.question.id, **plain}


def _rows(questions: list[Question], parts: Mapping[str, Values]) -> dict[str, dict[str, list[Answered]]]:
    """Answers by where the passage stood (`alone`, or tokens) and by way."""
    by_id = {q.id: q for q in questions}
    found: dict[str, dict[str, list[Answered]]] = {}
    for part in parts.values():
        for way, answered in part["answered"].items():
            rows = [Answered(by_id[a.pop("id")], **a) for a in map(dict, answered)]
            found.setdefault(str(part["tokens"] or "alone"), {}).setdefault(way, []).extend(rows)
    return found


def _finish(questions: list[Question], parts: Mapping[str, Values]) -> Values:
    rows = _rows(questions, parts)
    scores = {place: {way: qa.summary(a) for way, a in ways.items()} for place, ways in rows.items()}
    near = scores["alone"]["alone"]["f1"]
    kept = {
        place: {way: round(s["f1"] / near, 4) for way, s in ways.items() if near and s["f1"] is not None}
        for place, ways in scores.items()
        if place != "alone"
    }
    return {"scores": scores, "retention": kept}


def _table(questions: list[Question], parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for place, ways in _rows(questions, parts).items():
        for way, answered in ways.items():
            s = qa.summary(answered)
            second = s["second"]["f1"] if s["second"] else None
            shown = s["evidence"]
            rows.append([place, way, s["n"], s["f1"], s["exact"], second, shown["right"], shown["top_3"]])
    return ["tokens", "way", "asked", "F1", "exact", "F1 second", "right", "shown of them"], rows


if __name__ == "__main__":
    sys.exit(main())
