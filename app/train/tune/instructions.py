"""Instruction files: JSON Lines or one JSON list, in the shapes that are common, told apart by what they hold."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from app.errors import InputError
from app.ingest.files import hash_bytes
from app.wellformed import parse_json, whole_values

WANTED = (
    'instruction/output (and perhaps input), "conversations" of from/value, "messages" of role/content (and perhaps '
    '"document"), or "text"'
)
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
}


@dataclass(frozen=True)
class Entry:
    """One text or conversation to learn from.

    Attributes:
        where: file and line, for messages.
        text: a document: learnt itself where there are no turns, else what the turns are about.
        turns: (role, content) in order; roles are system, user and assistant.
    """

    where: str
    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """Equal for entries about the same document; without one, for the same conversation. Blanks do not count."""
        words = self.text.split() or [word for turn in self.turns for part in turn for word in part.split()]
        return hash_bytes(" ".join(words).encode("utf-8", "replace"))


def parse(text: str, name: str) -> tuple[list[Entry], int]:
    """Read an instruction file.

    Returns:
        The entries, and how many were left out because an answer in them is empty.

    Raises:
        InputError: it is no JSON, empty, malformed or of mixed shapes; the message names the line.
    """
    entries, empty, shape, first = [], 0, None, 0
    for line, item in _items(text, name):
        where = f"{name}, line {line}"
        found = _shape(item)
        if found is None:
            raise InputError(f"{where}: found {_described(item)}; wanted is {WANTED}")
        shape, first = shape or found, first or line
        if found != shape:
            raise InputError(
                f"{where}: this is {_SHAPES[found][1]}, but line {first} is {_SHAPES[shape][1]}; put them in two files"
            )
        entry = _SHAPES[shape][0](item, where)
        if entry is None:
            empty += 1
        else:
            entries.append(entry)
    if not entries:
        why = f"all {empty} answers in it are empty" if empty else "nothing stands in it"
        raise InputError(f"{name}: no instruction to learn from: {why}; choose another file")
    return entries, empty


def _items(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line of JSON Lines, or of each element of one JSON list."""
    start = re.compile(r"\s*").match(text).end()
    if text[start : start + 1] == "[":
        yield from _elements(text, start + 1, name)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                where = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise InputError(
                    f'{name}, line {number}: no JSON ({where}): "{line.strip()[:40]}"; '
                    "wanted is one object on each line, or one list"
                ) from error


def _elements(text: str, at: int, name: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list, one by one, so that each one's line is known."""
    decoder, blank = json.JSONDecoder(), re.compile(r"\s*")
    line, counted, more = 1, 0, False
    while True:
        at = blank.match(text, at).end()
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]" and not more:
            break
        try:
            value, at = decoder.raw_decode(text, at)
            value = whole_values(value)
        except json.JSONDecodeError as error:
            where = f"{name}, line {error.lineno}"
            raise InputError(f"{where}: no JSON ({error.msg}); repair or remove the entry") from error
        except (RecursionError, ValueError) as error:
            told = "nested too deeply, or a number without end"
            raise InputError(f"{name}, line {line}: no entry ({told}); repair or remove it") from error
        yield line, value
        at = blank.match(text, at).end()
        more = text[at : at + 1] == ","
        if more:
            at += 1
        elif text[at : at + 1] != "]":
            where, found = f"{name}, line {text.count(chr(10), 0, at) + 1}", text[at : at + 20].strip()
            raise InputError(f"{where}: found {found or 'the end of the file'}; wanted is a comma, or ] at the end")
    if text[at + 1 :].strip():
        line = text.count("\n", 0, at) + 1
        raise InputError(f"{name}, line {line}: the list ends here, but more follows; keep one list in a file")


def _described(item: Any) -> str:
    if not isinstance(item, dict):
        return f"{type(item).__name__} {json.dumps(item)[:40]}"
    return f"an object with {', '.join(map(str, item)) or 'nothing in it'}"


def _alpaca(item: dict[str, Any], where: str) -> Entry | None:
    asked, given, answer = (_text(item, key, where) for key in ("instruction", "input", "output"))
    if not asked.strip() and not given.strip():
        raise InputError(f"{where}: instruction is empty; write what is asked or remove the line")
    question = f"{asked.strip()}\n\n{given.strip()}" if given.strip() else asked.strip()
    return Entry(where, turns=(("user", question), ("assistant", answer.strip()))) if answer.strip() else None


def _text(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is {type(value).__name__} {json.dumps(value)[:40]}; wanted is a string")
    return value


def _turns(role_key: str, text_key: str, list_key: str) -> Callable[[dict[str, Any], str], Entry | None]:
    """A reader of conversations whose turns are objects with these keys."""

    def read(item: dict[str, Any], where: str) -> Entry | None:
        turns = []
        for number, turn in enumerate(item[list_key], start=1):
            if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str) or text_key not in turn:
                raise InputError(
                    f"{where}: turn {number} is {_described(turn)}; wanted are {role_key} and {text_key} in each"
                )
            role = ROLES.get(turn[role_key].lower())
            if role is None:
                raise InputError(f'{where}: turn {number} is from "{turn[role_key]}"; known are {", ".join(ROLES)}')
            if role == "system" and number > 1:
                raise InputError(f"{where}: turn {number} is a system turn; it may only come first")
            turns.append((role, _text(turn, text_key, where).strip()))
        if not any(role == "assistant" for role, _ in turns):
            raise InputError(f"{where}: no turn is an answer (assistant or gpt); there is nothing to learn")
        if any(not text for role, text in turns if role == "assistant"):
            return None
        return Entry(where, _text(item, "document", where), tuple(turns))

    return read


def _plain(item: dict[str, Any], where: str) -> Entry | None:
    text = _text(item, "text", where)
    return Entry(where, text) if text.strip() else None


_SHAPES: dict[str, tuple[Callable[[dict[str, Any], str], Entry | None], str]] = {
    "alpaca": (_alpaca, "instruction/output"),
    "sharegpt": (_turns("from", "value", "conversations"), "conversations of from/value"),
    "messages": (_turns("role", "content", "messages"), "messages of role/content"),
    "text": (_plain, "text"),
}


def _shape(item: Any) -> str | None:
    """Which of the known shapes an entry has."""
    if not isinstance(item, dict):
        return None
    if "instruction" in item and "output" in item:
        return "alpaca"
    for shape, key in (("sharegpt", "conversations"), ("messages", "messages")):
        if isinstance(item.get(key), list) and item[key]:
            return shape
    return "text" if "text" in item else None
