"""Records out of JSON that somebody else wrote: the type and the value of every field is checked.

All functions raise ValueError, KeyError or TypeError for what is not as Lectern writes it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias, get_args

from app.records import AnswerStats, Box, Document, DocumentKind, Ending, Evidence, Part, Role, Skipped
from app.settings import POLICIES
from app.wellformed import one_line, whole

MOST_NUMBER = 2**53
MOST_TOKENS = 2**31
SHARE_SLACK = 1e-3  # a sum of rounded shares

MessageValues: TypeAlias = tuple[Role, str, dict[str, Any], list[Evidence]]


def text(value: Any) -> str:
    """A string, half characters replaced."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return whole(value)


def number(value: Any, least: int = 0, most: int = MOST_NUMBER) -> int:
    """A whole number within bounds; True is none."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r:.40} is no whole number from {least} to {most}")
    return value


def measure(value: Any, most: float = MOST_NUMBER) -> float:
    """A finite number that is not negative."""
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= most:
        raise ValueError(f"{value!r:.40} is no number from 0 to {most:g}")
    return value


def listed(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def title(value: Any) -> str:
    return one_line(text(value)) or "Untitled"


def policy(value: Mapping[str, Any]) -> str:
    """The policy of a chat; "" when there is none that this release knows."""
    name = value.get("policy", "")
    return name if isinstance(name, str) and name in POLICIES else ""


def document(value: Mapping[str, Any]) -> Document:
    """A document with at least one part and some text."""
    sha256, kind = text(value["sha256"]), text(value["kind"])
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or kind not in get_args(DocumentKind):
        raise ValueError(f"document {sha256:.20} of kind {kind:.20}")
    parts = tuple(part(item) for item in listed(value["parts"]))
    numbers = [item.index for item in parts]
    if not any(item.text.strip() for item in parts) or numbers != sorted(set(numbers)):
        raise ValueError("a document without text, or with parts out of order")
    skipped = tuple(Skipped(title(item["name"]), text(item["reason"])) for item in listed(value["skipped"]))
    notes = tuple(text(note) for note in listed(value["notes"]))
    return Document(title(value["title"]), kind, sha256, parts, skipped, notes)


def part(value: Mapping[str, Any]) -> Part:
    """One part, its places and boxes within its text."""
    words = text(value["text"])
    chapter, line = value.get("chapter"), value.get("first_line")
    places = tuple((number(start, most=len(words)), text(label)) for start, label in listed(value.get("places", [])))
    boxes = tuple(
        Box(number(start, most=len(words)), number(end, start, len(words)), *map(measure, sides))
        for start, end, *sides in listed(value.get("boxes", []))
    )
    return Part(
        index=number(value["index"], 1, MOST_TOKENS),
        label=one_line(text(value["label"])),
        text=words,
        chapter=None if chapter is None else text(chapter),
        group=number(value.get("group", 0), most=MOST_TOKENS),
        first_line=None if line is None else number(line, most=MOST_TOKENS),
        kind=text(value.get("kind", "")),
        places=places,
        boxes=boxes,
    )


def messages(values: Any) -> list[MessageValues]:
    """A chat's messages: questions and answers in turn."""
    found = [message(value) for value in listed(values)]
    roles = [role for role, *_ in found]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("messages that are not questions and answers in turn")
    if any(role == "user" and not content.strip() for role, content, *_ in found):
        raise ValueError("a turn with an empty question")
    return found


def message(value: Mapping[str, Any]) -> MessageValues:
    role = value["role"]
    if role not in ("user", "assistant"):
        raise ValueError(f"message of {role!r:.20}")
    return role, text(value["content"]), stats(value["stats"]), [evidence(item) for item in listed(value["evidence"])]


def stats(value: Any) -> dict[str, Any]:
    """What an answer cost, field by field; a field that this release does not know is left out."""
    if not isinstance(value, dict):
        raise TypeError(f"statistics are {value!r:.40}")
    return {field.name: _stat(field.name, value[field.name]) for field in fields(AnswerStats) if field.name in value}


def _stat(name: str, value: Any) -> Any:
    default = getattr(AnswerStats, name, 0)
    checks: dict[type, Callable[[Any], Any]] = {int: number, float: measure, str: text}
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r:.40}")
        return value
    if name == "cited":
        return [(number(place), number(passage, 1)) for place, passage in listed(value)]
    if isinstance(default, tuple):
        return [text(item) for item in listed(value)]
    if default is None:  # a figure that is not always known, and may be below 0
        return None if value is None else _figure(name, value)
    checked = checks[type(default)](value)
    if name == "ended" and checked not in get_args(Ending):
        raise ValueError(f"an answer that ended by {checked:.20}")
    return checked


def _figure(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name} is {value!r:.40}")
    return float(value)


def evidence(value: Mapping[str, Any]) -> Evidence:
    """A passage; its place in the text may be that of a document which is not here."""
    start = number(value["char_start"])
    return Evidence(
        id="",
        document=text(value["document"]),
        title=title(value["title"]),
        label=one_line(text(value["label"])),
        part=number(value["part"], 1, MOST_TOKENS),
        char_start=start,
        char_end=number(value["char_end"], start),
        text=text(value["text"]),
        weight=measure(value["weight"], 1 + SHARE_SLACK),
        regions=tuple((number(memory), number(region)) for memory, region in listed(value["regions"])),
    )


def tail(value: Mapping[str, Any], turns: int, documents: Sequence[str], vocabulary: int) -> dict[str, Any]:
    """What a chat read after its documents: fields of a Tail, but for recipe and keys.

    Args:
        turns: of the chat's messages.
        documents: ids that the file's memories may be of.
        vocabulary: how many tokens the model knows.
    """
    ids = tuple(number(id, most=vocabulary - 1) for id in listed(value["token_ids"]))
    ends = tuple(number(end, most=len(ids)) for end in listed(value["turns"]))
    if not ids or not ends or len(ends) != turns or not ends[-1] or list(ends) != sorted(ends):
        raise ValueError(f"a memory of {len(ends)} turns and {len(ids)} tokens for {turns} turns")
    memories = tuple((text(document), number(memory)) for document, memory in listed(value["memories"]))
    if not {document for document, _ in memories} <= set(documents):
        raise ValueError("a memory beside documents that are not in the file")
    return {"token_ids": ids, "turns": ends, "memories": memories}
