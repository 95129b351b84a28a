"""users: who may use the endpoint beside the owner of this data folder, and how much."""

import argparse
from dataclasses import asdict

from app.cli.session import Session
from app.store.users import Limits, Users


def users_list(session: Session, args: argparse.Namespace) -> None:
    """Everybody with their limits."""
    users = Users(session.settings.folder).everyone()
    rows = [{"name": user.name, "created": user.created, **asdict(user.limits)} for user in users]
    lines = [
        f"{user.name}: {user.limits.documents:,} documents, {user.limits.gigabytes:g} GB, "
        f"{user.limits.tokens_per_minute:,} tokens a minute, {user.limits.answers} answers at once"
        for user in users
    ]
    session.out.result({"users": rows}, "\n".join(lines) or "Nobody but you.")


def users_add(session: Session, args: argparse.Namespace) -> None:
    """Let somebody in and show the key, once."""
    limits = Limits(args.documents, args.gigabytes, args.tokens_per_minute, args.answers)
    key = Users(session.settings.folder).add(args.name, limits)
    session.out.result({"name": args.name, "key": key}, f"key  {key}\nIt is shown this once; only its hash is kept.")


def users_remove(session: Session, args: argparse.Namespace) -> None:
    """Let somebody in no more, and delete their library."""
    gone = Users(session.settings.folder).remove(args.name)
    later = "" if gone else "; the running Lectern has it open, so it goes when that starts the next time"
    session.out.result({"removed": args.name, "deleted": gone}, f"The key of {args.name} opens nothing any more, and "
                       f"the library is deleted{later}.")  # fmt: skip
