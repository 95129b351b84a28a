"""What the default model answers and refuses from a paragraph and from whole stories, tuned and untuned.

    python benchmarks/reader.py --data DATA --model MERGED --base UNTUNED --curve RUN/probes.jsonl
    python benchmarks/reader.py --data DATA --model BASE --adapter models/lectern-reader --stock

Questions are drawn from the documents that are never trained on (`eval questions` draws the same). A paragraph is read
alone and asked; a story of FairytaleQA's validation split is read whole. The curve, F1 over tuned tokens, is what
reader_curve.py wrote beside the run. With `--stock` transformers answers, in float32 with full attention: as the engine
where a text fits the budget, in less time.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
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
        stories = list(_stories(args.data, args.story_step))[: args.stories]
    except LecternError as error:
        print(error, file=sys.stderr)
        return 1
    asked = {"paragraph": paragraphs, "refusal": refusals, "stories": stories}
    benchmark = Benchmark(
        "reader",
        {
            "data": args.data,
            "seed": args.seed,
            "adapter": args.adapter,
            "stock": args.stock,
            "asked": {name: len(found) for name, found in asked.items()},
        },
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


def _stories(data: Path, step: int, name: str = "fairytaleqa_valid") -> Iterable[Question]:
    """Some questions of every story, or of every so many, evenly chosen; their text is the whole story."""
    for entry in islice(corpus.entries(data, name), 0, None, step):
        asked = [qa for qa in entry["qas"] if qa.get("answers")]
        for found in asked[:: max(1, len(asked) // OF_A_STORY)][:OF_A_STORY]:
            answers = tuple(str(answer) for answer in found["answers"])
            yield Question(found["id"], entry.get("title", ""), entry["text"], found["question"], answers)


def _parts(args: argparse.Namespace, asked: Mapping[str, list[Question]]) -> list[Part]:
    parts = []
    if args.base:
        few = asked["paragraph"][:UNTUNED]
        parts.append(Part("untuned", 3 * QUESTION_S * len(few), partial(_ask, args, args.base, None, few)))
    for name, found in asked.items():
        each = STORY_S / OF_A_STORY if name == "stories" else QUESTION_S
        size = BATCH // 4 if name == "stories" else BATCH
        for first in range(0, len(found), size):
            here = found[first : first + size]
            ask = partial(_ask, args, args.model, args.adapter, here)
            parts.append(Part(f"{name}-{first // size}", each * len(here), ask))
    return parts


def _ask(args: argparse.Namespace, model: str, adapter: str | None, questions: list[Question]) -> Values:
    if args.stock:
        return {"answered": [_plain(a) for a in _stock(model, adapter, questions)]}
    engine = harness.engine(argparse.Namespace(**vars(args) | {"model": model}), settings={"adapter": adapter})
    told = harness.progress("questions")
    return {"answered": [_plain(a) for a in qa.run(engine, questions, QaConfig(), on_progress=told)]}


def _stock(model: str, adapter: str | None, questions: list[Question]) -> Iterable[Answered]:
    """Greedy answers of stock transformers; a text is read once for its questions."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from app.models.turns import Turns
    from app.train.tune.output import read_base
    from benchmarks.reader_curve import Reader

    torch.set_num_threads(1)
    base = read_base(model)
    loaded = base.load(torch.float32)
    if adapter:
        loaded = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    reader = Reader(loaded.eval(), Turns(AutoTokenizer.from_pretrained(base.folder), **base.told_before))
    told = harness.progress("questions")
    for done, question in enumerate(sorted(questions, key=lambda question: question.text), start=1):
        yield Answered(question, reader.answer(question.text, question.question), reader.tokens)
        told(done, len(questions))


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
    parser.add_argument("--adapter", type=Path, help="of --model, where that is the base")
    parser.add_argument("--stock", action="store_true", help="let transformers answer")
    parser.add_argument("--share", type=float, default=1.0, help="of the questions that is asked (1)")
    parser.add_argument("--base", help="the model before it was tuned: its row of the table")
    parser.add_argument("--curve", type=Path, action="append", help="probes.jsonl of a run; several in their order")
    args = parser.parse_args(argv)
    args.stories, args.misses = None, 30
    args.answerable, args.unanswerable = (max(2, round(args.share * n)) for n in (ANSWERABLE, UNANSWERABLE))
    args.story_step = max(1, round(1 / args.share))
    if args.quick:
        args.answerable, args.unanswerable, args.stories, args.misses = 1, 2, 1, 3
    return args


if __name__ == "__main__":
    sys.exit(main())
