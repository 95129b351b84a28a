"""Commands that make models and what they learn from: train, samples."""

import argparse
import os
from pathlib import Path
from typing import Any

from app.cli.eval import counter
from app.cli.session import Session
from app.errors import ConfigError


def samples(session: Session, args: argparse.Namespace) -> None:
    """Make samples of documents and write them, validation samples into a file of their own."""
    from app.runtime.load import check
    from app.train.tune.sample_file import SampleConfig, write
    from app.train.tune.samples import make, read_books

    given = {name: getattr(args, name) for name in ("count", "turns", "validation", "layout", "seed")}
    lists = {name: tuple(getattr(args, name)) for name in ("lengths", "depths", "kinds") if getattr(args, name)}
    config = SampleConfig(**given, **lists)
    out, aside = args.out, validation_file(args.out)
    for path in (out, aside) if config.validation else (out,):
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a file, such as samples.jsonl")
        if path.exists() and not args.force:
            raise ConfigError(f"{path}: is there already; name another file with --out, or replace it with --force")
    books = read_books(args.paths)
    _, _, tokenizer = check(session.settled())
    made = make(books, tokenizer, config, counter(session, "samples"))
    if made.validation:
        write(made.validation, aside, args.layout, "validation")
    write(made.training, out, args.layout, "training")
    values: dict[str, Any] = {
        "samples": len(made.training),
        "validation": len(made.validation),
        "file": str(out),
        "validation_file": str(aside) if made.validation else None,
        "questions": sum(made.kinds.values()),
        "kinds": dict(made.kinds.most_common()),
        "depths": made.depths(),
        "tokens": sum(sample.tokens for sample in made.training + made.validation),
        "longest": max(sample.tokens for sample in made.training + made.validation),
        "short": made.short,
        "dropped": dict(made.dropped),
    }
    session.out.result(values, "\n".join(_told(values, set(config.kinds) - set(made.kinds))))


def validation_file(out: Path) -> Path:
    """Where validation samples go: samples.jsonl has samples.validation.jsonl beside it."""
    stem, dot, ends = out.name.partition(".")
    return out.with_name(f"{stem}.validation{dot}{ends}")


def _told(values: dict[str, Any], missing: set[str]) -> list[str]:
    lines = [f"{values['samples']:,} samples are in {values['file']}."]
    if values["validation"]:
        lines.append(f"{values['validation']:,} for validation are in {values['validation_file']}.")
    lines.append(f"{values['questions']:,} questions, {values['tokens']:,} tokens in all:")
    width = max(map(len, values["kinds"]))
    lines += [f"  {kind:<{width}}  {count:,}" for kind, count in values["kinds"].items()]
    if missing:
        lines.append(f"Kinds that these documents gave none of: {', '.join(sorted(missing))}.")
    lines.append(f"Answers from the first to the last fifth of a document: {', '.join(map(str, values['depths']))}.")
    lines.append(
        f"The longest has {values['longest']:,} tokens: train on rows of at least so many (docs/training-data.md)."
    )
    if values["short"]:
        lines.append(f"{values['short']:,} samples are much shorter than asked: the documents hold no more.")
    lines += [f"Left out: {count:,} {what}." for what, count in values["dropped"].items() if count]
    return lines


def train(session: Session, args: argparse.Namespace) -> None:
    """Tune or make a model; a run that was stopped goes on where it was."""
    from app.train.cli import train as run

    given = {"--base": args.base, "--data": args.data, "--run": args.run_folder, "--out": args.out}
    given["--threads"] = session.settings.threads
    words = [str(args.recipe), "--device", session.settings.device]
    words += [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    folder = run(words)
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        session.out.result({"model": str(folder)}, f"It is in {folder}.")
