"""What the default model answers and refuses from a paragraph and from whole stories, tuned and untuned.

    python benchmarks/reader.py --data DATA --model MERGED --base UNTUNED --curve RUN/probes.jsonl
    python benchmarks/reader.py --data DATA --model MERGED --only paragraph-0

Questions are drawn from the documents that are never trained on (`eval questions` draws the same). A paragraph is read
alone and asked; a story of FairytaleQA's validation split is read whole. The curve, F1 over tuned tokens, is what
reader_curve.py wrote beside the run.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.errors import LecternError
from app.eval import qa
from app.eval.qa import Answered, QaConfig, Question
from app.eval.questions import MixConfig, Source, mix
from app.train.pretrain import corpus
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

ANSWERABLE, UNANSWERABLE, UNTUNED = 300, 100, 40
BATCH = 100  # questions of a part
OF_A_STORY = 4
QUESTION_S = 4.0  # reading a paragraph and answering
STORY_S = 45.0


def main(argv: list[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        sources = list(_sources(args.data))
        paragraphs = mix(sources, MixConfig(count=args.answerable, unanswerable=0, seed=args.seed))
        refusals = mix(sources, MixConfig(count=args.unanswerable, unanswerable=0.5, seed=args.seed + 1))
        stories = list(_stories(args.data))[: args.stories]
    except LecternError as error:
        print(error, file=sys.stderr)
        return 1
    asked = {"paragraph": paragraphs, "refusal": refusals, "stories": stories}
    benchmark = Benchmark(
        "reader",
        {"data": args.data, "seed": args.seed, "asked": {name: len(found) for name, found in asked.items()}},
        _parts(args, asked),
        _table,
        partial(_finish, args, {q.id: q for found in asked.values() for q in found}),
        details=("answered",),
    )
    return harness.main(benchmark, args)


def _sources(data: Path) -> Iterable[Source]:
    for p in corpus.passages(data, split="valid"):
        asked = tuple((q.question, () if q.answer == corpus.NO_ANSWER else q.answers) for q in p.questions)
        yield Source(p.name, p.text, asked)


def _stories(data: Path, name: str = "fairytaleqa_valid") -> Iterable[Question]:
    """Some questions of every story, evenly chosen; their text is the whole story."""
    for entry in corpus.entries(data, name):
        asked = [qa for qa in entry["qas"] if qa.get("answers")]
        for found in asked[:: max(1, len(asked) // OF_A_STORY)][:OF_A_STORY]:
            answers = tuple(str(answer) for answer in found["answers"])
            yield Question(found["id"], entry.get("title", ""), entry["text"], found["question"], answers)


def _parts(args: argparse.Namespace, asked: Mapping[str, list[Question]]) -> list[Part]:
    parts = []
    if args.base:
        few = asked["paragraph"][:UNTUNED]
        parts.append(Part("untuned", 3 * QUESTION_S * len(few), partial(_ask, args, args.base, few)))
    for name, found in asked.items():
        each = STORY_S / OF_A_STORY if name == "stories" else QUESTION_S
        size = BATCH // 4 if name == "stories" else BATCH
        for first in range(0, len(found), size):
            here = found[first : first + size]
            parts.append(Part(f"{name}-{first // size}", each * len(here), partial(_ask, args, args.model, here)))
    return parts


def _ask(args: argparse.Namespace, model: str, questions: list[Question]) -> Values:
    engine = harness.engine(argparse.Namespace(**vars(args) | {"model": model}))
    told = harness.progress("questions")
    return {"answered": [_plain(a) for a in qa.run(engine, questions, QaConfig(), on_progress=told)]}


def _plain(a: Answered) -> Values:
    return {"id": a.question.id, "answer": a.answer, "document_tokens": a.document_tokens, "rank": a.rank}


def _finish(args: argparse.Namespace, by_id: Mapping[str, Question], parts: Mapping[str, Values]) -> Values:
    found: dict[str, list[Answered]] = {}
    for part, values in parts.items():
        rows = [Answered(by_id[a["id"]], a["answer"], a["document_tokens"], rank=a["rank"]) for a in values["answered"]]
        found.setdefault(part.partition("-")[0], []).extend(rows)
    sets = sorted({a.question.title for a in found.get("paragraph", ())})
    return {
        "scores": {name: qa.summary(answered) for name, answered in found.items()},
        "by_set": {
            name: qa.summary([a for a in found["paragraph"] if a.question.title == name])["f1"] for name in sets
        },
        "curve": _curve(args.curve) if args.curve else [],
        "wrong": [
            {"asked": a.question.question, "wanted": a.question.answers[:2], "said": a.answer}
            for a in found.get("paragraph", ())
            if a.f1 < 0.5
        ][: args.misses],
    }


def _curve(files: list[Path]) -> list[Values]:
    """F1 and refusals over steps of the runs, in their order."""
    lines = [(path.parent.name, json.loads(line)) for path in files for line in path.read_text().splitlines()]
    return [
        {"run": run} | {name: line[name] for name in ("step", "tokens", "f1", "refusal_f1") if name in line}
        for run, line in lines
    ]


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    return ["part", "answered"], [[name, len(values["answered"])] for name, values in parts.items()]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "reader")
    parser.add_argument("--data", type=Path, required=True, help="folder with qa/")
    parser.add_argument("--base", help="the model before it was tuned: its row of the table")
    parser.add_argument("--curve", type=Path, action="append", help="probes.jsonl of a run; several in their order")
    args = parser.parse_args(argv)
    args.answerable, args.unanswerable, args.stories, args.misses = ANSWERABLE, UNANSWERABLE, None, 30
    if args.quick:
        args.answerable, args.unanswerable, args.stories, args.misses = 1, 2, 1, 3
    return args


if __name__ == "__main__":
    sys.exit(main())
