"""How do you know: do the figures under an answer tell questions that the text answers from those that it does not?

    python benchmarks/knows.py --model MODEL --questions QUESTIONS

Each text is asked three questions: one that it answers, one of its own that it does not answer (as SQuAD 2.0 has them,
in the text's words), and one about another text. What the page tells of the answer is told for each, and the area under
the curve of every figure for itself; 0.5 is luck.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.errors import ConfigError
from app.eval import qa
from app.records import FROM_MEMORY
from app.tasks.scoring import f1, is_refusal
from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

if TYPE_CHECKING:
    from app.eval.qa import Question
    from app.runtime.engine import Engine

ANSWER_TOKENS, EMPTY_TOKENS = 40, 4
FIGURES = ("held", "on_documents", "looked_beyond", "answers", "log_prob")
KINDS = ("answered", "own", "foreign")


def main(argv: list[str] | None = None) -> int:
    """Measure; nothing is measured when the engine does not predict as transformers does."""
    args = _arguments(argv)
    seconds = 3 * args.texts * (harness.reading_s(300) + 2 * harness.ANSWER_S)
    benchmark = Benchmark(
        "knows",
        {name: getattr(args, name) for name in ("questions", "texts", "seed", "device")},
        [Part("texts", seconds, partial(_measure, args))],
        _table,
        _finish,
        check=partial(harness.same_as_transformers, args),
        details=("asked",),
    )
    return harness.main(benchmark, args)


def _measure(args: argparse.Namespace) -> Values:
    engine, told = harness.engine(args), harness.progress("texts")
    asked = []
    for number, (text, questions) in enumerate(_drawn(args), start=1):
        asked += ask(engine, text, questions)
        told(number, args.texts)
    return {"asked": asked}


def _drawn(args: argparse.Namespace) -> Iterator[tuple[str, "list[Question]"]]:
    """Texts with an answered question, one of their own without an answer, and one about another text."""
    by_text: dict[str, list[Question]] = {}
    for question in qa.load(args.questions)[0]:
        by_text.setdefault(question.text, []).append(question)
    both = [text for text, found in by_text.items() if {bool(q.answers) for q in found} == {True, False}]
    rng = random.Random(args.seed)
    rng.shuffle(both)
    if len(both) < 2 * args.texts:
        raise ConfigError(
            f"--texts {args.texts}: the file has {len(both)} texts with both kinds of questions, need twice"
        )
    for text, other in zip(both[: args.texts], both[args.texts :], strict=False):
        own = [rng.choice([q for q in by_text[text] if bool(q.answers) is answered]) for answered in (True, False)]
        yield text, [*own, rng.choice(by_text[other])]


def ask(engine: "Engine", text: str, questions: "Sequence[Question]") -> Iterator[Values]:
    """What is told of the answer to each of the three."""
    from app.chat import knows
    from app.memory.config import GenerationConfig

    bos = [] if engine.bos_id is None else [engine.bos_id]
    memory = engine.read([*bos, *engine.text_tokenizer.encode(text, add_special_tokens=False).ids])
    empty = engine.encode_turn([{"role": "user", "content": "?"}], None)
    unasked = knows.Unasked.of(engine.glance([memory], empty, EMPTY_TOKENS))
    for kind, question in zip(KINDS, questions, strict=True):
        cache = engine.open_chat([memory])
        turn = engine.encode_turn([{"role": "user", "content": question.question}], None)
        config = GenerationConfig(max_new_tokens=ANSWER_TOKENS, log_probs=0)
        said = engine.decode(list(engine.generate(cache, turn, config))).strip()
        assert cache.evidence is not None
        yield {
            "kind": kind,
            "right": kind == "answered" and max(f1(said, gold) for gold in question.answers) >= 0.5,
            "answers": -float(is_refusal(said)),
            "log_prob": sum(score for score, _ in cache.evidence.scores),
            "held": knows.held(engine, cache, 0, turn, turn),
            **knows.known(cache.evidence.shares, unasked),
        }


def under_curve(right: Sequence[float], wrong: Sequence[float]) -> float:
    """How often a figure of one sort is above one of the other; a tie counts half."""
    above = sum((a > b) + (a == b) / 2 for a in right for b in wrong)
    return above / (len(right) * len(wrong)) if right and wrong else 0.0


def _finish(parts: Mapping[str, Values]) -> Values:
    asked = [row for values in parts.values() for row in values["asked"]]
    by = {kind: [row for row in asked if row["kind"] == kind] for kind in KINDS}
    right = [row for row in by["answered"] if row["right"]]
    against = {"own": by["own"], "foreign": by["foreign"], "both": by["own"] + by["foreign"]}

    def curves(answered: Sequence[Values]) -> Values:
        return {
            figure: {
                name: round(under_curve([r[figure] for r in answered], [r[figure] for r in rows]), 3)
                for name, rows in against.items()
            }
            for figure in FIGURES
        }

    def share(rows: Sequence[Values], holds: Any) -> float:
        return round(sum(map(holds, rows)) / max(1, len(rows)), 3)

    return {
        "asked": {kind: len(rows) for kind, rows in by.items()},
        "right": len(right),
        "area_under_curve": curves(by["answered"]),
        "area_under_curve_right_answers": curves(right),
        "from_memory": {kind: share(rows, lambda r: r["source"] == FROM_MEMORY) for kind, rows in by.items()},
        "hardly_held": {kind: share(rows, lambda r: r["held"] <= 0) for kind, rows in by.items()},
        "refused": {kind: share(rows, lambda r: r["answers"] < 0) for kind, rows in by.items()},
    }


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    found = _finish(parts)["area_under_curve"] if parts else {}
    return ["figure", "own", "foreign", "both"], [[figure, *curves.values()] for figure, curves in found.items()]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = harness.flags(__doc__, "knows")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with questions without an answer")
    parser.add_argument("--texts", type=int, default=60, help="texts, three questions each (60)")
    args = parser.parse_args(argv)
    if args.quick:
        args.texts = 2
    return args


if __name__ == "__main__":
    sys.exit(main())
