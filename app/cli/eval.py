"""Commands that measure the model: eval passkey, needles, perplexity, qa, and questions, which makes a file for qa."""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.session import Session
from app.errors import ConfigError, InputError
from app.settings import ROOT
from app.system import duration, peak_bytes

if TYPE_CHECKING:
    from app.runtime.engine import Engine

DEFAULT_TIMES = (1, 4)
BY_ATTENTION = "Looked up by attention alone, whatever the recipe says."


def _engine(session: Session) -> "Engine":
    from app.runtime.load import load_engine

    session.out.progress("Loading the model")
    return load_engine(session.settled())


def _lengths(engine: "Engine", args: argparse.Namespace) -> tuple[int, ...]:
    """Lengths in tokens: as given, or multiples of what the model was trained on."""
    if args.lengths:
        return tuple(args.lengths)
    return tuple(times * engine.trained_tokens for times in args.times_trained or DEFAULT_TIMES)


def counter(session: Session, what: str) -> Callable[[int, int], None]:
    """Progress of `what` with the time left."""
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        left = (time.monotonic() - started) * (total - done) / done if done else math.nan
        tail = f", {duration(left)} left" if done else ""
        session.out.progress(f"{done:,} of {total:,} {what}{tail}")

    return show


def _about(session: Session, engine: "Engine", started: float) -> dict[str, Any]:
    """What every result says of its run."""
    return {
        "model": engine.description["name"],
        "policy": session.settings.policy,
        "budget_tokens": engine.budget_tokens,
        "trained_tokens": engine.trained_tokens,
        "seconds": round(time.perf_counter() - started, 3),
        "peak_bytes": peak_bytes(),
    }


def passkey(session: Session, args: argparse.Namespace) -> None:
    """Hide numbers in long texts and ask for them."""
    from app.eval import passkey as test
    from app.eval.report import table

    config = test.PasskeyConfig(
        lengths=(1,),  # the model says what it was trained on; flags that cannot be used are told before it loads
        trials=args.trials,
        per_reading=args.per_reading,
        filler=args.filler,
        filler_file=_filler_file(args),
        seed=args.seed,
        distractors=args.distractors,
        one_text=args.one_text,
    )
    engine = _engine(session)
    config = replace(config, lengths=_lengths(engine, args))
    started = time.perf_counter()
    cells = list(test.run(engine, config, on_progress=counter(session, "tokens read")))
    readings = -(-config.trials // config.per_reading)
    values = test.summary(cells) | {
        "tokens_read": sum(readings * row["document_tokens"] for row in test.summary(cells)["lengths"]),
        "filler": config.filler,
        "per_reading": config.per_reading,
        "distractors": config.distractors,
        "one_text": config.one_text,
        "seed": config.seed,
    }
    rows = [
        [row["tokens"], cell["depth"], cell["right"], cell["trials"]]
        for row in values["lengths"]
        for cell in row["depths"]
    ]
    text = table(["tokens", "depth", "right", "of"], rows)
    values |= _about(session, engine, started) | {"lookup": "attention"}
    session.out.result(values, f"{text}\n{_bound(values)}\n{BY_ATTENTION}")


def _bound(values: dict[str, Any]) -> str:
    right = f"{values['right']} of {values['trials']} right: accuracy {values['accuracy']:.3f}"
    return f"{right}, at least {values['lower_bound_95']:.3f} with 95% confidence"


def needles(session: Session, args: argparse.Namespace) -> None:
    """Hide facts in long texts and ask for them, in first and second questions."""
    from app.eval import needles as test
    from app.eval.report import table

    config = test.NeedlesConfig(
        tasks=tuple(args.task),
        lengths=(1,),  # as with passkeys
        trials=args.trials,
        per_reading=args.per_reading,
        second=args.per_reading // 2 if args.second is None else args.second,
        distractors=args.distractors,
        filler=args.filler,
        filler_file=_filler_file(args),
        seed=args.seed,
    )
    engine = _engine(session)
    config = replace(config, lengths=_lengths(engine, args))
    started = time.perf_counter()
    values = test.summary(list(test.run(engine, config, on_progress=counter(session, "tokens read"))))
    values |= {"tasks": args.task, "filler": config.filler, "per_reading": config.per_reading, "seed": config.seed}
    rows = []
    for row in values["rows"]:
        for turn, score in (("first", row), ("second", row["second"])):
            if score:
                found = (score[name] for name in ("score", "right", "trials", "lower_bound_95"))
                rows.append([row["task"], row["tokens"], turn, *found])
    text = table(["task", "tokens", "question", "score", "right", "of", "at least"], rows)
    text = f"{text}\nFirst questions: {_bound(values)}\n{_effective(values)}\n{BY_ATTENTION}"
    session.out.result(values | _about(session, engine, started) | {"lookup": "attention"}, text)


def _effective(values: dict[str, Any]) -> str:
    found = [f"{task} {'none' if n is None else f'{n:,}'}" for task, n in values["effective_tokens"].items()]
    shortest = min(row["tokens"] for row in values["rows"])
    return f"Effective length, tokens (85% of the score at {shortest:,}): {', '.join(found)}"


def _filler_file(args: argparse.Namespace) -> Path | None:
    if args.filler != "prose":
        if args.filler_file:
            raise ConfigError("--filler-file: needs --filler prose")
        return None
    return args.filler_file or _sample()


def _sample() -> Path:
    """The book that ships."""
    book = next(iter(sorted((ROOT / "samples").glob("*.txt"))), None)
    if book is None:
        raise ConfigError("--filler prose: no sample book is here; name a text with --filler-file")
    return book


def perplexity(session: Session, args: argparse.Namespace) -> None:
    """Measure how well a text is predicted after reading more and more of it."""
    from app.eval import perplexity as test
    from app.eval import texts
    from app.eval.report import table

    text = "\n".join(texts.lines_of(args.file)) + "\n"
    engine = _engine(session)
    config = test.PerplexityConfig(_lengths(engine, args), counted=args.counted, windows=args.windows)
    started = time.perf_counter()
    ids = texts.encode(engine, text)
    windows = list(test.run(engine, ids, config, on_progress=counter(session, "tokens read")))
    values = test.summary(windows, config) | {"file": str(args.file), "file_tokens": len(ids)}
    rows = [
        [row["tokens"], row["perplexity"], row["nats"], row["standard_error"], row["windows"], row["counted_tokens"]]
        for row in values["lengths"]
    ]
    shown = table(["window", "perplexity", "nats", "standard error", "windows", "counted tokens"], rows)
    session.out.result(values | _about(session, engine, started), shown)


def qa(session: Session, args: argparse.Namespace) -> None:
    """Ask the questions of a file about its texts."""
    from app.eval import qa as test

    config = test.QaConfig(
        limit=args.limit,
        seed=args.seed,
        haystack=args.haystack,
        tokens=args.tokens,
        per_reading=args.per_reading,
        second=args.second,
    )
    questions, skipped = test.load(args.file)
    engine = _engine(session)
    started = time.perf_counter()
    chosen = test.draw(questions, config.limit, config.seed)
    answered = list(test.run(engine, chosen, config, on_progress=counter(session, "questions answered")))
    if args.save:
        _save(args.save, answered)
    values = test.summary(answered) | {"skipped": skipped, "seed": config.seed}
    if config.haystack:
        longest = max(a.document_tokens for a in answered)
        values |= {"haystack": str(config.haystack), "tokens": longest, "per_reading": config.per_reading}
    session.out.result(values | _about(session, engine, started), _scores(values))


def questions(session: Session, args: argparse.Namespace) -> None:
    """Draw validation questions from the documents of question sets that are never trained on."""
    from app.eval import questions as test
    from app.train.pretrain.corpus import NO_ANSWER, passages

    config = test.MixConfig(args.count, args.unanswerable, args.longest, args.seed)
    if args.out.exists() and not args.force:
        raise ConfigError(f"{args.out}: is there already; name another file with --out, or replace it with --force")
    sources = [
        test.Source(
            p.name, p.text, tuple((q.question, () if q.answer == NO_ANSWER else q.answers) for q in p.questions)
        )
        for p in passages(args.data, split="valid")
    ]
    drawn = test.mix(sources, config)
    test.write(drawn, args.out)
    sets = Counter(q.title for q in drawn)
    values = {
        "file": str(args.out),
        "n": len(drawn),
        "unanswerable": sum(not q.answers for q in drawn),
        "sets": dict(sorted(sets.items())),
        "seed": config.seed,
    }
    told = ", ".join(f"{name} {count}" for name, count in values["sets"].items())
    text = f"{values['n']} questions, {values['unanswerable']} without an answer, are in {args.out}.\nOf {told}."
    session.out.result(values, text)


def _scores(values: dict[str, Any]) -> str:
    names = {"f1": "F1", "exact": "exact", "holds": "holding the answer", "refusal_f1": "refusal F1"}
    scores = [f"{name} {values[key]:.1f}" for key, name in names.items() if values[key] is not None]
    text = f"{', '.join(scores)} over {values['answerable']} answerable of {values['n']} questions"
    if values["refusal_cost"]:
        text += f"\nRefused answers cost at most {values['refusal_cost']:.1f} points of F1"
    if (seen := values["evidence"])["right"]:
        text += f"\nOf {seen['right']} right answers, {seen['top_3']} had their place among the first 3 looked at"
    return f"{text}\nSecond questions: {_scores(values['second'])}" if values.get("second") else text


def _save(path: Path, answered: list[Any]) -> None:
    """One JSON line per question."""
    lines = [
        json.dumps(
            {
                "id": a.question.id,
                "question": a.question.question,
                "answers": a.question.answers,
                "turn": a.turn,
                "answer": a.answer,
                "refused": a.refused,
                "f1": 100 * a.f1 if a.question.answers else None,
            }
        )
        for a in answered
    ]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another file") from error
