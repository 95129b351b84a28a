"""Text from outside that can be stored, sent and shown: half characters replaced, names on one line."""

import re
from typing import Any

REPLACEMENT = "\ufffd"
TITLE_CHARS = 300
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


def one_line(text: str) -> str:
    """A name or title without control characters, at most TITLE_CHARS long."""
    return _CONTROL.sub(" ", whole(text)).strip()[:TITLE_CHARS]
