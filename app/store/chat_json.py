"""A chat as JSON text: messages, passages and costs, without documents and memory."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.errors import InputError, NotFoundError
from app.store import checked
from app.store.store import Store
from app.wellformed import parse_json

FORMAT, VERSION = "lectern-chat-json", 1
MAX_BYTES = 256 << 20


def to_json(store: Store, chat: str) -> str:
    """The chat with the titles of its documents."""
    info = store.chat(chat)
    documents = []
    for id in info.documents:
        try:
            documents.append({"id": id, "title": store.document(id, "").title})
        except NotFoundError:
            documents.append({"id": id, "title": None})
    value = {
        "format": FORMAT,
        "version": VERSION,
        "title": info.title,
        "model": info.model,
        "policy": info.policy,
        "updated": info.updated,
        "documents": documents,
        "messages": [asdict(message) for message in store.messages(chat)],
    }
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def is_json(path: Path) -> bool:
    """Whether a file begins like JSON text.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; choose another file") from error


def _other(value: Mapping[str, Any]) -> str:
    """What a JSON file is that is no chat of this version."""
    if value.get("format") != FORMAT:
        return "not a chat that Lectern exported"
    version = value.get("version")
    if version is None:
        return "a chat without the version of its format"
    return f"a chat in version {version!r:.20} of the format, this Lectern reads {VERSION}"


def from_json(store: Store, path: Path) -> str:
    """Take in what `to_json` wrote; returns the new chat's id. Documents of the library join it by their ids.

    Raises:
        InputError: it is something else, or from a newer release.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.name}: larger than {MAX_BYTES >> 20} MiB; a chat is smaller")
        value = parse_json(path.read_bytes())
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise InputError(f"{path.name}: {_other(value)}; choose a chat exported as JSON")
        messages = checked.messages(value["messages"])
        documents = [checked.text(document["id"]) for document in checked.listed(value["documents"])]
        title, model, policy = checked.title(value["title"]), checked.title(value["model"]), checked.policy(value)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise InputError(f"{path.name}: not a chat exported as JSON ({error!r:.100}); choose another file") from error
    with store.transaction():
        chat = store.create_chat(documents, model, title, policy)
        store.import_messages(chat, messages, None)
    return chat
