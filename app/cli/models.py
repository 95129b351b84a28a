"""Commands about models on the disk: models, inspect, merge."""

import argparse
from dataclasses import asdict

from app.cli.session import Session
from app.errors import InputError
from app.system import size_text


def inspect(session: Session, args: argparse.Namespace) -> int:
    """Say what a checkpoint or adapter is, and whether the app can use it."""
    from app.models.inspect import inspect as look

    found = look(args.path, args.base)
    values = {
        "path": str(found.path),
        "kind": found.kind,
        "usable": found.usable,
        "reasons": list(found.reasons),
        "base": str(found.base) if found.base else None,
        "facts": found.facts,
    }
    width = max(map(len, ["usable", *found.facts])) + 2
    lines = [f"{name:<{width}}{text}" for name, text in {"kind": found.kind, **found.facts}.items()]
    lines.append(f"{'usable':<{width}}{'yes' if found.usable else 'no'}")
    lines += [f"{'':<{width}}{reason}" for reason in found.reasons]
    session.out.result(values, "\n".join(lines))
    return 0 if found.usable else 1


def fetch(session: Session, args: argparse.Namespace) -> None:
    """Get the base of the model that ships and make its checkpoint, as the first start does."""
    from app.models.shipped import prepare, read_package

    package = read_package(session.settings.model)
    if package is None:
        raise InputError(f"--model {session.settings.model}: is whole already; there is nothing to fetch for it")
    folder = prepare(package, session.settings.folder, session.out.say)
    session.out.result({"model": str(folder)}, f"{package.name} is in {folder}; nothing more is fetched.")


def merge(session: Session, args: argparse.Namespace) -> None:
    """Write an adapter and its base as one plain checkpoint."""
    from app.models.merge import merge as make
    from app.runtime.load import default_threads

    made = make(
        args.path,
        args.out,
        base=args.base,
        dtype=args.dtype,
        trained_tokens=args.trained_tokens,
        force=args.force,
        threads=session.settings.threads or default_threads(),
        on_step=lambda step: session.out.progress(f"Merging: {step}"),
    )
    values = {
        "model": str(made.folder),
        "base": str(made.base),
        "parameters": made.parameters,
        "size_bytes": made.size_bytes,
        "dtype": made.dtype,
        "vocabulary": made.rows,
        "tied": made.tied,
        "check": asdict(made.check) if made.check else None,
        "notes": list(made.notes),
    }
    for note in made.notes:
        session.out.say(note)
    lines = [f"{made.parameters:,} parameters as {made.dtype}, {size_text(made.size_bytes)}, are in {made.folder}."]
    if made.check:
        lines.append(
            f"On {made.check.prompts} prompts its logits are at most {made.check.difference:.1%} of the largest away "
            f"from peft's own merge. {made.dtype} costs {made.check.rounding:.1%} beside the adapter before merging, "
            f"and {made.check.same_tokens:.1%} of the likeliest tokens are the same."
        )
    session.out.result(values, "\n".join(lines))


def models_list(session: Session, args: argparse.Namespace) -> None:
    """List the checkpoints and adapters on this computer; works beside a running Lectern."""
    from app.eval.report import table
    from app.models.shelf import local_models

    found = local_models(session.settings)
    values = [
        {
            "name": model.name,
            "path": str(model.path),
            "place": model.place,
            "kind": model.kind,
            "usable": model.usable,
            "reasons": list(model.reasons),
            "size_bytes": model.size_bytes,
            "load": [{"model": choice.model, "adapter": choice.adapter} for choice in model.choices],
        }
        for model in found
    ]
    rows = [[m.name, m.kind, size_text(m.size_bytes), "yes" if m.usable else "no", m.path] for m in found]
    lines = [table(["name", "kind", "size", "usable", "path"], rows)]
    lines += [reason for model in found for reason in model.reasons]
    session.out.result({"models": values}, "\n".join(lines))


def models_add(session: Session, args: argparse.Namespace) -> None:
    """Look for models in a folder from now on."""
    from app.models.shelf import add_folder

    names = add_folder(session.settings.folder, args.folder)
    session.out.result({"added": args.folder, "found": names}, f"Found there: {', '.join(names)}.")


def models_remove(session: Session, args: argparse.Namespace) -> None:
    """Look no more in a folder that was added."""
    from app.models.shelf import remove_folder

    remove_folder(session.settings.folder, args.folder)
    session.out.result({"removed": args.folder}, f"Lectern does not look in {args.folder} any more.")
