"""Commands about the data folder: store stats, verify, compact, restore."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from app.cli.session import Session
from app.system import size_text


def store_stats(session: Session, args: argparse.Namespace) -> None:
    """Show what the data folder holds, and what memories cost by policy and codec."""
    with session.chat(load=False) as chat:
        stats, kept = chat.store.stats(), chat.store.kept()
    lines = [f"{name}: {size_text(v) if name.endswith('bytes') else f'{v:,}'}" for name, v in stats.items()]
    lines += [
        f"{item.policy}, {item.codec}: {item.tokens:,} tokens, {size_text(item.size_bytes)}, "
        f"{item.bytes_per_token:,.0f} bytes per token"
        for item in kept
    ]
    memories: Sequence[dict[str, Any]] = [
        asdict(item) | {"bytes_per_token": round(item.bytes_per_token, 1)} for item in kept
    ]
    text = "\n".join([f"folder: {session.settings.folder}", *lines])
    session.out.result(stats | {"memories": memories}, text)


def store_compact(session: Session, args: argparse.Namespace) -> None:
    """Delete what nothing names any more and give the space back."""
    with session.chat(load=False) as chat:
        before, after = chat.store.compact()
    session.out.result(
        {"bytes_before": before, "bytes_after": after, "freed_bytes": max(0, before - after)},
        f"{size_text(before)} before, {size_text(after)} now: {size_text(max(0, before - after))} freed.",
    )


def store_restore(session: Session, args: argparse.Namespace) -> None:
    """Put a copy of the library in its place, or begin with an empty one; what is there gets another name."""
    from app.store import copies
    from app.store.home import acquire

    home = session.settings.folder
    lock = acquire(home)
    try:
        if args.empty:
            asides = copies.begin_empty(home)
            kept = ", ".join(path.name for path in asides) or "nothing"
            session.out.result({"asides": [path.name for path in asides]}, f"An empty library; kept beside it: {kept}.")
            return
        copy, aside = copies.restore(home, args.copy)
    finally:
        lock.release()
    values = {"restored": copy.path.name, "documents": copy.documents, "chats": copy.chats}
    kept = f"; what was in its place is {aside.name}" if aside else ""
    session.out.result(values | {"aside": aside.name if aside else None}, f"Restored {copy}{kept}.")


def store_verify(session: Session, args: argparse.Namespace) -> None:
    """Check both databases; damaged blocks are dropped, so that their part is read again when it is needed."""
    with session.chat(load=False) as chat:
        report = chat.store.verify(
            lambda done, total: session.out.progress(f"Checking block {done:,} of {total:,}"), repair=True
        )
    damaged = list(report.damaged)
    lines = [f"{report.checked:,} blocks checked, {len(damaged)} damaged", *damaged]
    if damaged:
        lines.append("Damaged blocks are dropped; their part of a document is read again when it is needed.")
    session.out.result({"checked": report.checked, "damaged": damaged}, "\n".join(lines))
