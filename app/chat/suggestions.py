"""Suggested questions: such as a text itself answers, found by rules, tried on the model, kept when it answers them."""

import random
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from app.memory.config import GenerationConfig
from app.records import Done, Part
from app.tasks.questions import TextQuestion, flat, questions
from app.tasks.scoring import holds, only_refuses

if TYPE_CHECKING:
    from app.chat.reader import ReadDocument
    from app.chat.jobs import Job
    from app.chat.sessions import Sessions

SHOWN = 4
TRIED = 16
LONGEST_TRY_S = 20.0  # for all of them
ANSWER_TOKENS = 32
LONGEST_CHARS = 80  # of a question: it is a button
LOOKED_AT_CHARS = 30_000  # of the document, from its beginning; the rules take a fifth of a second for them
# Short questions about single facts, the surest first; a document gives those of prose or those of code.
KINDS = (
    "who_is", "named", "fact", "chapter_title", "who_said", "number", "who_did",
    "constant", "defined_in", "method_of", "base_class", "imported_from",
)  # fmt: skip


def candidates(parts: Sequence[Part]) -> list[TextQuestion]:
    """Questions that a text answers: one of each kind, in the order of `KINDS`, then more; the same every time."""
    text = "\n".join(_beginning(parts))[:LOOKED_AT_CHARS]
    found = [q for q in questions(text, random.Random(0), kinds=KINDS) if len(q.question) <= LONGEST_CHARS]
    by_kind = [[q for q in found if q.kind == kind] for kind in KINDS]
    return [asked[i] for i in range(TRIED) for asked in by_kind if len(asked) > i][:TRIED]


def _beginning(parts: Sequence[Part]) -> Iterator[str]:
    size = 0
    for part in parts:
        if size >= LOOKED_AT_CHARS:
            return
        yield part.text
        size += len(part.text)


def answered(sessions: "Sessions", document: "ReadDocument", job: "Job") -> list[str]:
    """The first questions that the model answers from a document with the words of the text; stores nothing.

    What is not tried when the job is stopped, or after `LONGEST_TRY_S`, is left out.
    """
    from app.chat.sessions import Session

    kept: list[str] = []
    until = time.monotonic() + LONGEST_TRY_S
    for asked in candidates(sessions.store.parts(document.document.id)):
        if len(kept) == SHOWN or job.cancelled or time.monotonic() > until:
            break
        session = Session("", [document], sessions.engine.open_chat(document.memories), [], [])
        *_, done = sessions.generate(session, [], asked.question, GenerationConfig(max_new_tokens=ANSWER_TOKENS), job)
        assert isinstance(done, Done)
        if not job.cancelled and holds(done.answer, flat(asked.answer)) and not only_refuses(done.answer):
            kept.append(asked.question)
    return kept
