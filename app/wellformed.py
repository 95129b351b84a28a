"""Text from outside that can be stored, sent and shown: half characters replaced, names on one line."""

import json
import re
from typing import Any

REPLACEMENT = "\ufffd"
TITLE_CHARS = 300
NAME_BYTES = 200  # most systems take 255
SUFFIX_CHARS = 20
# What moves or hides the text around it: control characters, line separators, marks of writing direction.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


def whole(text: str) -> str:
    """The text with each half of a character as U+FFFD; its length stays.

    JSON can name half a character ("\\ud83d" alone), and Python makes one of a byte that is not UTF-8 in an argument,
    a variable or a file name. No database, file or page takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", REPLACEMENT, text)
    return text


def whole_values(value: Any) -> Any:
    """What JSON held, with every text in it `whole`, those that are keys too."""
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list | tuple):
        return [whole_values(item) for item in value]
    if isinstance(value, dict):
        return {whole(key): whole_values(item) for key, item in value.items()}
    return value


def parse_json(data: str | bytes) -> Any:
    """What JSON from outside holds, every text in it whole.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return whole_values(json.loads(data))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def file_name(name: str) -> str:
    """The last part of a name that another program gave a file, as one that every system takes."""
    last = _CONTROL.sub(" ", whole(re.split(r"[/\\]", name)[-1])).strip()
    while len(last.encode()) > NAME_BYTES:
        stem, dot, suffix = last.rpartition(".")
        last = stem[:-1] + dot + suffix if stem and len(suffix) < SUFFIX_CHARS else last[:-1]
    return last if last.strip(". ") else "document"


def one_line(text: str) -> str:
    """A name or title without control characters, at most TITLE_CHARS long."""
    return _CONTROL.sub(" ", whole(text)).strip()[:TITLE_CHARS]
