"""Commands about what is kept: forks and edits, chats as files, pins and eviction, search, the store."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.cli.ask import follow
from app.cli.session import Session, freed_text
from app.errors import ConfigError, StoreError
from app.memory.config import GenerationConfig
from app.settings import fill
from app.system import size_text

FORMATS = ("md", "json", "lectern")


def chats_fork(session: Session, args: argparse.Namespace) -> None:
    """Branch off a new chat; what was read is shared."""
    with session.chat(load=False) as chat:
        key = chat.fork(args.id, args.turn)
        info = chat.chat(key)
    values = {"chat": key, "parent": info.parent, "messages": info.messages}
    session.out.result(values, f"{info.title}: chat {key}, {info.messages} messages taken over.")


def chats_edit(session: Session, args: argparse.Namespace) -> None:
    """Ask another question in the place of an earlier one; the turns after it go."""
    generation = fill(GenerationConfig, flags={"max_new_tokens": args.max_new_tokens}, environment={})
    with session.chat() as chat:
        session.model_ready(chat)
        follow(session, chat, chat.edit(args.id, args.turn, args.question, generation=generation))


def chats_export(session: Session, args: argparse.Namespace) -> None:
    """Write a chat as Markdown, as JSON, or as one file with its documents and memory."""
    kind = args.format or (args.output.suffix.removeprefix(".") if args.output else "md")
    if kind not in FORMATS:
        raise ConfigError(f"{args.output}: the format is not known by this ending; choose --format {'|'.join(FORMATS)}")
    if kind == "lectern" and args.output is None:
        raise ConfigError("--format lectern: a chat with its memory goes into a file; choose --output FILE")
    with session.chat(load=False) as chat:
        if kind == "lectern":
            counts = chat.export_file(args.id, args.output)
            text = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
            session.out.result({"path": str(args.output), **counts}, f"Written to {args.output}: {text}.")
            return
        text = chat.export_json(args.id) if kind == "json" else chat.export_chat(args.id)
    if args.output is None:
        session.out.result({"markdown" if kind == "md" else "text": text}, text.rstrip("\n"))
        return
    _write(args.output, text)
    session.out.result({"path": str(args.output)}, f"Written to {args.output}.")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}; choose another file") from error


def chats_import(session: Session, args: argparse.Namespace) -> None:
    """Take in a chat that was exported as JSON or with its memory."""
    with session.chat(load=not args.text_only) as chat:
        key = chat.import_chat(args.path, text_only=args.text_only)
        info = chat.chat(key)
    values = {"chat": key, "title": info.title, "messages": info.messages, "documents": list(info.documents)}
    session.out.result(values, f"{info.title}: chat {key}, {info.messages} messages.")


def documents_pin(session: Session, args: argparse.Namespace) -> None:
    """Keep the memory of a document whatever the disk budget says."""
    _pin(session, args.id, True)


def documents_unpin(session: Session, args: argparse.Namespace) -> None:
    """Let the memory of a document go when the disk budget asks for it."""
    _pin(session, args.id, False)


def _pin(session: Session, id: str, pinned: bool) -> None:
    with session.chat(load=False) as chat:
        info = chat.pin(id, pinned)
    session.out.result(
        {"document": info.id, "pinned": pinned}, f"{info.title}: {'' if pinned else 'no longer '}pinned."
    )


def documents_evict(session: Session, args: argparse.Namespace) -> None:
    """Delete the memory of a document; its text stays."""
    with session.chat(load=False) as chat, session.freeing(chat) as freed:
        info = chat.evict(args.id)
    text = f"{info.title}: its memory is deleted, {freed_text(freed)}; it is read again when asked about."
    session.out.result({"evicted": info.id, **freed}, text)


def documents_search(session: Session, args: argparse.Namespace) -> None:
    """Find words in the text of the library."""
    with session.chat(load=False) as chat:
        document = chat.document(args.document).id if args.document else None
        found = chat.search_parts(" ".join(args.words), args.limit, document)
        titles = {info.id: info.title for info in chat.documents()}
    rows = [dict(zip(("document", "part", "label", "snippet"), row, strict=True)) for row in found]
    lines = [f"{titles.get(d, d)}, {label}: {' '.join(snippet.split())}" for d, _, label, snippet in found]
    session.out.result({"found": rows}, "\n".join(lines) or "Not found.")


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
