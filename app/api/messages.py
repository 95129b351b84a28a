"""OpenAI's messages to a talk: turns, question, files; and the stored chat that such a talk goes on from."""

import base64
import binascii
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.api.errors import ApiError, refused
from app.wellformed import file_name

if TYPE_CHECKING:
    from app.chat import DocumentChat

SYSTEM = ("system", "developer")
TEXTS = ("text", "input_text", "output_text", "refusal")
FILES = ("file", "input_file")
DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
MOST_FILE_BYTES = 512_000_000


@dataclass(frozen=True)
class FilePart:
    """A file in a message: one that is in the library, by id, or its bytes."""

    id: str = ""
    name: str = ""
    data: bytes = b""


@dataclass(frozen=True)
class Talk:
    """What a client sent.

    Attributes:
        turns: (question, answer) of the turns before.
        files: of all messages, in order.
    """

    system: str
    turns: tuple[tuple[str, str], ...]
    question: str
    files: tuple[FilePart, ...] = ()


def read_messages(messages: Sequence[Mapping[str, Any]], instructions: str = "", field: str = "messages") -> Talk:
    """A talk of messages in any of the shapes that clients send.

    System messages may stand anywhere and several in a row; messages of one side that follow each other are one turn.

    Args:
        instructions: system text that stands before that of the messages.
        field: name of the request's field, for messages.

    Raises:
        ApiError: a role or part that is not known, or no question at the end.
    """
    system, sides, files = [instructions] if instructions else [], [], []
    for number, message in enumerate(messages):
        where = f"{field}[{number}]"
        role = message.get("role", "user" if message.get("type") in (None, *TEXTS) else None)
        if message.get("type") not in (None, "message", *TEXTS):
            raise refused(f"{where}.type", message["type"], "only messages are taken: the loaded model calls no tools")
        if role not in (*SYSTEM, "user", "assistant"):
            raise refused(f"{where}.role", role, "known are system, developer, user and assistant")
        text, named = _content(message.get("content", message.get("text")), where)
        files += named
        if role in SYSTEM:
            system.append(text)
        elif role == "assistant" and not text.strip():
            continue  # an answer that was stopped before its first word
        elif sides and sides[-1][0] == role:
            sides[-1] = (role, "\n\n".join(filter(None, (sides[-1][1], text))))
        else:
            sides.append((role, text))
    if not sides or sides[-1][0] != "user" or not sides[-1][1].strip():
        raise ApiError(f"{field}: the last message must be a question of the user, with text", param=field)
    if sides[0][0] == "assistant":  # a greeting of the client's own
        system.append(sides[0][1])
        sides = sides[1:]
    said = [text.strip() for _, text in sides]
    turns = tuple(zip(said[0:-1:2], said[1::2], strict=True))
    return Talk("\n\n".join(part.strip() for part in system if part.strip()), turns, said[-1], tuple(files))


def _content(content: Any, where: str) -> tuple[str, list[FilePart]]:
    """(text, files) of a message: a string, a list of strings or parts, or nothing."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise refused(f"{where}.content", content, "must be a text or a list of parts")
    texts, files = [], []
    for number, part in enumerate(content):
        place = f"{where}.content[{number}]"
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            raise refused(place, part, "must be a text or a part with a type")
        elif part.get("type") in TEXTS:
            texts.append(str(part.get("text") or part.get("refusal") or ""))
        elif part.get("type") in FILES:
            files.append(_file(part.get("file") if isinstance(part.get("file"), Mapping) else part, place))
        else:
            raise refused(f"{place}.type", part.get("type"), "texts and files are read; send pictures as a PDF file")
    return "\n\n".join(filter(None, texts)), files


def _file(part: Mapping[str, Any], place: str) -> FilePart:
    if part.get("file_id"):
        return FilePart(id=str(part["file_id"]))
    data = part.get("file_data")
    if not isinstance(data, str) or not data:
        raise ApiError(f"{place}: needs file_id or file_data; files are not fetched from addresses", param=place)
    try:
        found = base64.b64decode(DATA_URL.sub("", data, count=1), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{place}.file_data: is no base64 ({error}); encode the file's bytes", param=place) from error
    if len(found) > MOST_FILE_BYTES:
        raise refused(f"{place}.file_data", f"{len(found):,} bytes", f"at most {MOST_FILE_BYTES:,} are taken")
    return FilePart(name=str(part.get("filename") or "document"), data=found)


def texts(prompt: str | Iterable[str]) -> str:
    """The one prompt of a completion.

    Raises:
        ApiError: there are several.
    """
    if isinstance(prompt, str):
        return prompt
    found = list(prompt)
    if len(found) != 1:
        raise refused("prompt", f"{len(found)} texts", "one prompt is answered at a time; send them one by one")
    return found[0]


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
        LecternError: a file cannot be read as a document, there is no room for it, or an id is not known.
    """
    ids = []
    for file in files:
        if file.id:
            ids.append(chat.library.document(file.id.removeprefix("file-")).id)
            continue
        with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
            path = Path(folder) / file_name(file.name)
            path.write_bytes(file.data)
            ids.append(chat.library.add_document(path, name=path.name).id)
    return ids


def place(
    chat: "DocumentChat", talk: Talk, documents: Sequence[str], policy: str, taken: Collection[str] = ()
) -> tuple[str, Sequence[tuple[str, str]]]:
    """The chat in which a talk goes on, and those of its turns that have to be run there first.

    A chat that holds all turns goes on itself. One that holds the first of them, or is one of those `taken`, is forked
    there; where none does, a new one begins.
    """
    policy = policy or chat.model.policy_of()
    found, matched = chat.store.chat_with_turns(documents, talk.system, policy, talk.turns)
    if found is None:
        id = chat.saved.new_chat(documents, policy, system=talk.system)
    elif matched == len(chat.saved.messages(found)) // 2 and found not in taken:
        id = found
    else:
        id = chat.saved.fork(found, matched)
    return id, talk.turns[matched:]
