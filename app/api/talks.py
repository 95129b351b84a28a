"""Finds the stored chat that a talk goes on from, so that a client that sends all turns again has few of them read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.api.errors import ApiError
from app.api.messages import FilePart, Talk
from app.wellformed import file_name

if TYPE_CHECKING:
    from app.chat import DocumentChat


def split_model(name: str, loaded: str) -> list[str]:
    """The documents that a model's name asks for: "lectern-reader:BOOK" is the loaded model over BOOK.

    Raises:
        ApiError: another model is asked for.
    """
    wanted, _, document = name.partition(":")
    if wanted and wanted not in (loaded, "lectern"):
        raise ApiError(
            f"model {name!r}: is not loaded; {loaded!r} is, and {loaded + ':DOCUMENT'!r} asks it about a document of "
            "the library (GET /v1/models lists them)",
            status=404,
            param="model",
            code="model_not_found",
        )
    return [document] if document else []


def add_files(chat: "DocumentChat", files: Sequence[FilePart]) -> list[str]:
    """Ids of the documents that these files are; those that came with the request are added to the library.

    Raises:
        LecternError: a file cannot be read as a document, or an id is not known.
    """
    ids = []
    for file in files:
        if file.id:
            ids.append(chat.document(file.id.removeprefix("file-")).id)
            continue
        with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
            path = Path(folder) / file_name(file.name)
            path.write_bytes(file.data)
            ids.append(chat.add_document(path, name=path.name).id)
    return ids


def place(
    chat: "DocumentChat", talk: Talk, documents: Sequence[str], policy: str
) -> tuple[str, Sequence[tuple[str, str]]]:
    """The chat in which a talk goes on, and those of its turns that have to be run there first.

    A chat that holds all turns goes on itself. One that holds the first of them is forked there; where none does, a new
    one begins.
    """
    policy = policy or chat.policy_of()
    found, matched = chat.store.chat_with_turns(documents, talk.system, policy, talk.turns)
    if found is None:
        id = chat.new_chat(documents, policy, system=talk.system)
    elif matched == len(chat.messages(found)) // 2:
        id = found
    else:
        id = chat.fork(found, matched)
    return id, talk.turns[matched:]
