"""Questions to begin with: those that the model answered rightly when it tried them after reading."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.chat.suggestions import SHOWN

if TYPE_CHECKING:
    from app.api.reading import BackgroundReading
    from app.chat import DocumentChat

__all__ = ["SHOWN", "examples"]


def examples(chat: "DocumentChat", reading: "BackgroundReading", documents: Sequence[str]) -> tuple[str, ...]:
    """At most `SHOWN` questions about the first picked document that is in the library; none when nothing is picked.

    Where some were not tried yet, they are from now on when nothing else runs.
    """
    known = [document.id for document in chat.library.documents() if document.id in documents]
    for document in known[:1]:
        reading.suggest(document)
    return tuple(chat.library.suggestions(known[:1]))[:SHOWN]
