"""Commands about chats: list, show, fork, edit, attach, detach, export, import, delete."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli.ask import follow
from app.cli.session import Session
from app.errors import ConfigError, InputError, StoreError
from app.memory.config import GenerationConfig
from app.settings import fill
from app.tasks.scoring import ending

if TYPE_CHECKING:
    from app.chat import DocumentChat


def attach(session: Session, args: argparse.Namespace) -> None:
    """Attach documents to a chat, after those that it has."""
    with session.chat(load=False) as chat:
        info = chat.saved.chat(args.id)
        wanted = [*info.documents, *(chat.library.document(name).id for name in args.documents)]
        chat.saved.set_chat_documents(info.id, list(dict.fromkeys(wanted)))
        _attached(session, chat, info.id)


def detach(session: Session, args: argparse.Namespace) -> None:
    """Detach documents from a chat; what was read of them is kept."""
    with session.chat(load=False) as chat:
        info = chat.saved.chat(args.id)
        titles = {document.id: document.title for document in chat.library.documents()}
        gone = {_one_attached(name, info.documents, titles) for name in args.documents}
        chat.saved.set_chat_documents(info.id, [id for id in info.documents if id not in gone])
        _attached(session, chat, info.id)


def _one_attached(name: str, documents: Sequence[str], titles: dict[str, str]) -> str:
    """The attached document of this title, id or beginning of one; it may be deleted from the library."""
    found = [id for id in documents if titles.get(id) == name] or [
        id for id in documents if name and id.startswith(name)
    ]
    if len(found) != 1:
        known = "; ".join(titles.get(id, id) for id in documents) or "none"
        raise InputError(f"{name}: {'names several' if found else 'not one'} of the chat's documents ({known})")
    return found[0]


def _attached(session: Session, chat: "DocumentChat", key: str) -> None:
    titles = {document.id: document.title for document in chat.library.documents()}
    info = chat.saved.chat(key)
    shown = "; ".join(titles.get(id, f"{id}, deleted") for id in info.documents) or "none"
    note = " Its earlier turns stay as they were, written beside the documents of then." if info.messages else ""
    session.out.result({"chat": info.id, "documents": list(info.documents)}, f"Documents: {shown}.{note}")


FORMATS = ("md", "json", "lectern")


def chats_fork(session: Session, args: argparse.Namespace) -> None:
    """Branch off a new chat; what was read is shared."""
    with session.chat(load=False) as chat:
        key = chat.saved.fork(args.id, args.turn)
        info = chat.saved.chat(key)
    values = {"chat": key, "parent": info.parent, "messages": info.messages}
    session.out.result(values, f"{info.title}: chat {key}, {info.messages} messages taken over.")


def chats_edit(session: Session, args: argparse.Namespace) -> None:
    """Ask another question in the place of an earlier one; the turns from there on become another version."""
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
            counts = chat.transfers.export_file(args.id, args.output)
            text = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
            session.out.result({"path": str(args.output), **counts}, f"Written to {args.output}: {text}.")
            return
        text = chat.transfers.export_json(args.id) if kind == "json" else chat.transfers.export_chat(args.id)
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
        key = chat.transfers.import_chat(args.path, text_only=args.text_only)
        info = chat.saved.chat(key)
    values = {"chat": key, "title": info.title, "messages": info.messages, "documents": list(info.documents)}
    session.out.result(values, f"{info.title}: chat {key}, {info.messages} messages.")


def chats_list(session: Session, args: argparse.Namespace) -> None:
    """List chats, newest first."""
    from app.eval.report import table

    with session.chat(load=False) as chat:
        chats = chat.saved.chats(getattr(args, "search", None))
    rows = [[c.id, c.title, c.messages, ", ".join(c.documents), c.updated] for c in chats]
    text = table(["id", "title", "messages", "documents", "updated"], rows) if rows else "No chats."
    session.out.result({"chats": [asdict(c) for c in chats]}, text)


def chats_show(session: Session, args: argparse.Namespace) -> None:
    """Show the turns of one chat."""
    with session.chat(load=False) as chat:
        info, messages = chat.saved.chat(args.id), chat.saved.messages(args.id)
    values = asdict(info) | {"messages": [asdict(message) for message in messages]}
    turns = []
    for message in messages:
        ended = ending(message.stats.get("ended", ""), message.stats.get("new_tokens", 0))
        turns.append(f"{message.role}: {message.content}" + (f"\n({ended})" if ended else ""))
    session.out.result(values, "\n\n".join([f"{info.title} ({info.id})", *turns]))


def chats_delete(session: Session, args: argparse.Namespace) -> None:
    """Delete a chat; its documents stay."""
    session.delete(args.id, lambda chat: (chat.saved.chat, chat.saved.delete_chat))
