"""Commands about models on the disk: inspect."""

import argparse

from app.cli.session import Session


def inspect(session: Session, args: argparse.Namespace) -> int:
    """Say what a checkpoint or adapter is, and whether the app can use it."""
    from app.runtime.inspect import inspect as look

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
