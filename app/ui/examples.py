"""Questions to begin with: such as the opened document answers itself, found by rules, and general ones."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from app.records import DocumentInfo
from app.tasks.questions import questions

if TYPE_CHECKING:
    from app.chat import DocumentChat

SHOWN = 4
LONGEST_CHARS = 80  # of a question: it is a button
LOOKED_AT_CHARS = 30_000  # of the document, from its beginning; the rules take a fifth of a second for them
# Short questions about single facts, the surest first; a document gives those of prose or those of code.
KINDS = (
    "who_is", "named", "fact", "chapter_title", "who_said", "number", "who_did",
    "constant", "defined_in", "method_of", "base_class", "imported_from",
)  # fmt: skip
GENERAL = {
    "text": ("What happens at the beginning?", "Who is the main character?", "Where does it take place?"),
    "pdf": ("What is this document about?", "What does it begin with?", "What does it conclude?"),
    "code": ("What does this code do?", "Where does the program start?", "Which tests are there?"),
}


def examples(chat: "DocumentChat", documents: Sequence[str]) -> tuple[str, ...]:
    """At most `SHOWN` questions about the first picked document; none when nothing is picked.

    A demonstration model gets facts alone, which it answers best; others get general questions too.
    """
    document = next((document for document in chat.documents() if document.id in documents), None)
    if document is None:
        return ()
    facts = _facts(_beginning(chat, document))
    facts = facts if chat.model_state().demonstration else facts[: SHOWN // 2]
    return (*facts, *GENERAL.get(document.kind, GENERAL["pdf"]))[:SHOWN]


def _beginning(chat: "DocumentChat", document: DocumentInfo) -> str:
    parts: list[str] = []
    while len(parts) < document.parts and sum(map(len, parts)) < LOOKED_AT_CHARS:
        parts.append(chat.part(document.id, len(parts) + 1).text)
    return "\n".join(parts)[:LOOKED_AT_CHARS]


@lru_cache(maxsize=16)
def _facts(text: str) -> tuple[str, ...]:
    """Questions that the text answers: one of each kind, in the order of `KINDS`, then more; the same every time."""
    found = [q for q in questions(text, random.Random(0), kinds=KINDS) if len(q.question) <= LONGEST_CHARS]
    by_kind = [[q.question for q in found if q.kind == kind] for kind in KINDS]
    return tuple(asked[i] for i in range(SHOWN) for asked in by_kind if len(asked) > i)[:SHOWN]
