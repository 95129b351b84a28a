"""Which part of a document a question is about: question files name the sections that hold the answer."""

from typing import Any


def passage_of(entry: dict[str, Any], asked: dict[str, Any]) -> str:
    """The sections that a question needs, in their order, or the whole text where it names none.

    Args:
        entry: a document: `text`, and maybe `sections`, each with its number `n` and its `text`.
        asked: one of its questions, maybe with `sections`: numbers, separated by commas.

    Raises:
        KeyError: it names a section that is not there.
    """
    texts = {str(section["n"]): section["text"] for section in entry.get("sections") or ()}
    named = [number.strip() for number in str(asked.get("sections") or "").split(",") if number.strip()]
    return "\n".join(texts[number] for number in named) if texts and named else entry["text"]
