"""What the model that ships finds, answers, refuses and shows, from the trained length to 256K tokens.

    python launch.py eval questions --data DATA --out questions.jsonl
    python benchmarks/shipped.py --questions questions.jsonl --file BOOK --file BOOK
    python benchmarks/shipped.py --questions questions.jsonl --share 0.2 --work runs/try --output try.json

Everything that is asked at one length stands in the same readings of book prose: passages with validation questions,
facts of the four kinds that are to be found (`FIND`), and those that are told apart (`APART`). What is asked of four
million tokens and of perplexity is taken from the results of length.py and perplexity.py, for the same weights.
"""

import argparse
import hashlib
import math
import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.errors import ConfigError, LecternError
from app.eval import needles, qa, report, texts
from app.eval.needles import Asked, NeedlesConfig, Planted
from app.eval.qa import Answered, QaConfig, Question
from app.system import peak_bytes
from app.tasks.scoring import f1
from app.train.pretrain.quoting import asked_words, sentence_places
from benchmarks import bars, harness
from benchmarks.bars import FIND
from benchmarks.harness import Benchmark, Part, Values

APART = ("uuid", "tracking", "common-words", "frequent-words")
BATCH = 5  # readings of a part
STEPS = {"find": 30, "apart": 45}  # of an answer, on average
QUESTIONS = "questions"


@dataclass(frozen=True)
class Length:
    """What is asked in the readings of one length.

    Attributes:
        find: readings that hold needles of FIND, the first ones.
        apart: readings that hold one needle of each kind of APART, the last ones.
        passages: passages with questions in every reading; 0: no questions.
    """

    tokens: int
    find: int
    apart: int
    passages: int

    def readings(self, questions: int) -> int:
        """Enough for `questions` passages, and for the needles apart from each other."""
        return max(self.find + self.apart, -(-questions // self.passages) if self.passages else 0)


LENGTHS = (
    Length(2048, 3, 10, 0),
    Length(8192, 3, 0, 0),
    Length(16_384, 0, 10, 10),
    Length(32_768, 3, 0, 0),
    Length(65_536, 6, 10, 10),
    Length(131_072, 3, 0, 0),
    Length(262_144, 3, 10, 24),
)
PAIRS = NeedlesConfig(("key-value",), (65_536,), trials=300, per_reading=50, second=5, distractors=950, filler="repeat")
SPEED_TOKENS, SPEED_THREADS = 262_144, 2


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    try:
        questions = _questions(args)
    except LecternError as error:
        print(error, file=sys.stderr)
        return 1
    names = ("file", "questions", "share", "seed", "device")
    benchmark = Benchmark(
        "shipped",
        {name: getattr(args, name) for name in names}
        | {
            "asked": hashlib.sha256(repr(questions).encode()).hexdigest()[:16],
            "lengths": list(map(asdict, args.lengths)),
        },
        _parts(args, questions),
        partial(_table, questions),
        partial(_finish, args, questions),
        check=partial(harness.same_as_transformers, args),
        details=("asked", "answered"),
    )
    return harness.main(benchmark, args)


def _questions(args: argparse.Namespace) -> list[Question]:
    questions, _ = qa.load(args.questions)
    if len({q.id for q in questions}) < len(questions):
        raise ConfigError(f"{args.questions}: two questions have one id; make the file with `eval questions`")
    return qa.draw(questions, max(1, round(args.share * len(questions))), args.seed)


def _parts(args: argparse.Namespace, questions: list[Question]) -> list[Part]:
    tokens = sum(map(len, {q.text for q in questions})) / 4
    seconds = harness.reading_s(tokens) + len(questions) * harness.ANSWER_S
    parts = [Part(QUESTIONS, seconds, partial(_alone, args, questions))]
    for length in args.lengths:
        dealt = qa.deal(questions, length.passages, random.Random(args.seed)) if length.passages else []
        readings = max(length.readings(len(questions)), len(dealt))
        for first in range(0, readings, BATCH):
            numbers = range(first, min(first + BATCH, readings))
            here = {i: _content(args, length, i, readings, dealt) for i in numbers}
            run = partial(_read, args, length, here)
            parts.append(Part(f"{length.tokens}-{first // BATCH}", _seconds(args, length, here.values()), run))
    pairs = args.pairs
    seconds = pairs.readings * harness.reading_s(pairs.lengths[0]) + 1.1 * pairs.trials * harness.ANSWER_S
    parts.append(Part("pairs", seconds, partial(_pairs, args)))
    parts.append(Part("speed", harness.reading_s(args.speed_tokens) / SPEED_THREADS, partial(_speed, args)))
    return parts


Content = tuple[list[Planted], list[Question]]


def _content(
    args: argparse.Namespace, length: Length, number: int, readings: int, dealt: list[list[Question]]
) -> Content:
    """The needles and questions of one reading."""
    rng = random.Random(f"{args.seed}-{length.tokens}-{number}")
    planted = needles.plan(rng, FIND, args.per_reading) if number < length.find else []
    if number >= readings - length.apart:
        planted += needles.plan(rng, APART, 1)
    return planted, dealt[number] if number < len(dealt) else []


def _seconds(args: argparse.Namespace, length: Length, contents: Iterable[Content]) -> float:
    seconds = 0.0
    for planted, questions in contents:
        find = sum(place.task in FIND for place in planted)
        steps = 1.2 * STEPS["find"] * find + 1.5 * STEPS["apart"] * (len(planted) - find)
        seconds += harness.reading_s(length.tokens) + steps * harness.STEP_S
        seconds += 1.5 * len(questions) * harness.ANSWER_S
    return seconds


def _alone(args: argparse.Namespace, questions: list[Question]) -> Values:
    """Every question asked of its passage alone."""
    told = harness.progress("questions, each of its passage")
    return {"tokens": None, "answered": _plain(qa.run(harness.engine(args), questions, QaConfig(), on_progress=told))}


def _read(args: argparse.Namespace, length: Length, contents: Mapping[int, Content]) -> Values:
    """Readings of one length and all that is asked of them; a fifth of the needles and half the questions twice."""
    engine, filler = harness.engine(args), texts.lines_of(harness.prose(args, args.file))
    told = harness.progress(f"{length.tokens:,} tokens")
    asked, answered = [], []
    for done, (number, (planted, questions)) in enumerate(contents.items(), start=1):
        rng = random.Random(f"text-{args.seed}-{length.tokens}-{number}")
        facts = [pair for place in planted for pair in zip(place.needle.sentences, place.depths, strict=True)]
        facts += [(text, rng.random()) for text in dict.fromkeys(q.text for q in questions)]
        seed = rng.randrange(2**32)
        ids = texts.filled(
            engine, filler, [text for text, _ in facts], [depth for _, depth in facts], length.tokens, seed
        )
        memory = engine.read(ids)
        for tasks, share in ((FIND, 5), (APART, 4)):
            some = [place for task in tasks for place in planted if place.task == task]
            asked += needles.ask(engine, memory, some, length.tokens, len(some) // share)
        answered += qa.ask(engine, memory, questions, len(questions) // 2)
        told(done, len(contents))
    return {"tokens": length.tokens, "asked": [asdict(a) for a in asked], "answered": _plain(answered)}


def _plain(answered: Iterable[Answered]) -> list[Values]:
    return [
        {"id": a.question.id, "answer": a.answer, "document_tokens": a.document_tokens, "turn": a.turn, "rank": a.rank}
        for a in answered
    ]


def _pairs(args: argparse.Namespace) -> Values:
    """Keys and values of five digits, 1,000 pairs in a text."""
    config = replace(args.pairs, filler="prose", filler_file=harness.prose(args, args.file), seed=args.seed)
    told = harness.progress("pairs")
    asked = list(needles.run(harness.engine(args), config, on_progress=told))
    return {"tokens": config.lengths[0], "planted": config.planted, "asked": [asdict(a) for a in asked]}


def _speed(args: argparse.Namespace) -> Values:
    """One reading on two cores: how fast, and what its memory takes."""
    engine = harness.engine(argparse.Namespace(**vars(args) | {"threads": SPEED_THREADS}))
    filler = texts.lines_of(harness.prose(args, args.file))
    ids = texts.filled(engine, filler, [], [], args.speed_tokens, args.seed)
    started, cpu = time.perf_counter(), time.process_time()
    memory = engine.read(ids)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    megabytes = len(engine.decode(ids).encode()) / 1e6
    index = memory.index.size_bytes * memory.tokens / memory.capacity
    return {
        "tokens": len(ids),
        "threads": SPEED_THREADS,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(len(ids) / seconds),
        "cpu_tokens_per_s": round(len(ids) / cpu),
        "megabytes_per_minute": round(60 * megabytes / seconds, 2),
        "bytes_per_million_tokens": round(1e6 * (engine.shape.token_bytes + index / len(ids))),
        "peak_bytes": peak_bytes(),
    }


def _asked(parts: Mapping[str, Values], pairs: bool = False) -> list[Asked]:
    found = [a for name, part in parts.items() if (name == "pairs") == pairs for a in part.get("asked", ())]
    return [Asked(**a | {"wanted": tuple(a["wanted"])}) for a in found]


def _answered(questions: list[Question], parts: Mapping[str, Values]) -> dict[str, list[Answered]]:
    """By where the passage stood: `alone`, or the tokens of the text."""
    by_id = {q.id: q for q in questions}
    found: dict[str, list[Answered]] = {}
    for part in parts.values():
        for a in part.get("answered", ()):
            answered = Answered(by_id[a["id"]], a["answer"], a["document_tokens"], a["turn"], a["rank"])
            found.setdefault(str(part["tokens"] or "alone"), []).append(answered)
    return found


def _finish(args: argparse.Namespace, questions: list[Question], parts: Mapping[str, Values]) -> Values:
    """Scores per length, effective lengths, questions near and far, and which bars were met."""
    found, pairs = needles.summary(_asked(parts)), needles.summary(_asked(parts, pairs=True))
    answered = _answered(questions, parts)
    scores = {place: qa.summary(here) for place, here in answered.items()}
    values: Values = {
        "needles": [row for row in found["rows"] if row["task"] in FIND],
        "apart": [row for row in found["rows"] if row["task"] in APART],
        "effective_tokens": found["effective_tokens"],
        "pairs": pairs["rows"][0] | {"planted": parts["pairs"]["planted"]},
        "questions": scores,
        "f1_of_word_search": word_search_f1(questions),
        "retention": {p: retention(scores["alone"]["f1"], s["f1"]) for p, s in scores.items() if p != "alone"},
        "by_set": {p: _by_set(here) for p, here in answered.items()},
        "refused_by_kind": {p: _refused(here) for p, here in answered.items()},
        "evidence": _pooled([a for place, here in answered.items() if place != "alone" for a in here]),
        "speed": parts["speed"],
        "elsewhere": bars.elsewhere(args.output.parent, harness.weights(args.model)),
        "misses": (found["misses"] + pairs["misses"])[: args.misses],
    }
    return values | {"bars": bars.bars(args.middle, args.longest, values)}


def word_search_f1(questions: Iterable[Question]) -> float:
    """F1, 0 to 100, of answering with the sentence that shares most words with the question: what needs no model."""
    found = []
    for question in (q for q in questions if q.answers):
        asked = asked_words(question.question)
        sentences = [question.text[start:end] for start, end in sentence_places(question.text)]
        said = max(sentences, key=lambda sentence: len(asked & asked_words(sentence)))
        found.append(max(f1(said, gold) for gold in question.answers))
    return round(100 * sum(found) / max(1, len(found)), 2)


def retention(near: float | None, far: float | None) -> float | None:
    return round(far / near, 4) if near and far is not None else None


def _by_set(answered: list[Answered]) -> Values:
    """F1 of first questions per set."""
    first = [a for a in answered if a.turn == 1]
    return {
        title: qa.summary([a for a in first if a.question.title == title])["f1"]
        for title in sorted({a.question.title for a in first if a.question.answers})
    }


def _refused(answered: list[Answered]) -> Values:
    """Refused of how many first questions, by the kind that begins their ids."""
    first = [a for a in answered if a.turn == 1]
    kinds = sorted({a.question.id.partition("-")[0] for a in first})
    by_kind = {kind: [a.refused for a in first if a.question.id.partition("-")[0] == kind] for kind in kinds}
    return {kind: [sum(refused), len(refused)] for kind, refused in by_kind.items()}


def _pooled(answered: list[Answered]) -> Values:
    return qa.summary(answered)["evidence"]


def _table(questions: list[Question], parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows: list[list[Any]] = []
    for pairs in (False, True):
        for row in needles.summary(_asked(parts, pairs))["rows"]:
            for turn, found in (("first", row), ("second", row["second"])):
                if found:
                    score = (found[name] for name in ("score", "right", "trials", "lower_bound_95"))
                    rows.append([row["task"], row["tokens"], turn, *score])
    for place, answered in _answered(questions, parts).items():
        scores = qa.summary(answered)
        for turn, found in (("first", scores), ("second", scores["second"])):
            if found:
                exact = round((found["exact"] or 0) / 100 * found["answerable"])
                bound = report.lower_bound_95(exact, found["answerable"])
                rows.append(["question F1", place, turn, (found["f1"] or 0) / 100, exact, found["answerable"], bound])
                rows.append(["refusal F1", place, turn, (found["refusal_f1"] or 0) / 100, None, None, None])
    return ["what", "tokens", "asked", "score", "right", "of", "at least"], rows


def _share(args: argparse.Namespace) -> None:
    """Fewer readings and trials, by --share."""

    def some(count: int) -> int:
        return math.ceil(args.share * count)

    args.lengths = tuple(replace(n, find=some(n.find), apart=some(n.apart)) for n in args.lengths)
    each = some(args.pairs.per_reading)
    args.pairs = replace(
        args.pairs, trials=each * args.pairs.readings, per_reading=each, distractors=args.pairs.planted - each
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "shipped")
    parser.add_argument("--questions", type=Path, required=True, help="the file that `eval questions` makes")
    parser.add_argument("--file", type=Path, action="append", help="a book not trained on; several are joined")
    parser.add_argument("--share", type=float, default=1.0, help="of the questions and trials that is asked (1)")
    args = parser.parse_args(argv)
    if not 0 < args.share <= 1:
        parser.error(f"--share {args.share}: must be more than 0 and at most 1")
    args.lengths, args.pairs, args.speed_tokens, args.per_reading, args.misses = LENGTHS, PAIRS, SPEED_TOKENS, 10, 40
    if args.quick:  # texts of bytes, not words
        args.lengths, args.speed_tokens, args.per_reading = (Length(2000, 1, 0, 0), Length(6000, 1, 1, 2)), 3000, 1
        args.pairs = replace(PAIRS, lengths=(2000,), trials=2, per_reading=2, second=1, distractors=8)
    _share(args)
    args.middle = 65_536 if not args.quick else args.lengths[-1].tokens
    args.longest = args.lengths[-1].tokens
    return args


if __name__ == "__main__":
    sys.exit(main())
