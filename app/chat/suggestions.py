"""Suggested questions: such as a text itself answers, found by rules, tried on the model, kept when it answers them."""

import random
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from app.errors import CancelledError
from app.ingest.stream import returned
from app.memory.config import GenerationConfig
from app.records import Done, Part
from app.tasks.questions import TextQuestion, flat, questions
from app.tasks.scoring import holds, only_refuses

if TYPE_CHECKING:
    from app.chat.jobs import Job, Jobs
    from app.chat.loaded_model import LoadedModel
    from app.chat.reader import ReadDocument
    from app.chat.sessions import Sessions
    from app.store.store import Store

SHOWN = 4
TRIED = 32  # the most
ANSWER_TOKENS = 32
LONGEST_CHARS = 140  # of a question: it is a button
LOOKED_AT_CHARS = 60_000  # of the document, from its beginning; the rules take less than a second for them
# Short questions about single facts, the surest first; a document gives those of prose or those of code. Small models
# are right about what is left out of a sentence more often than about who said or did something.
KINDS = (
    "who_is", "named", "fact", "chapter_title", "number", "cloze", "who_said", "who_did", "continue",
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


class Trials:
    """Tries questions on the model, one at a time and behind all other work, and keeps those that it answers right.

    Which are left to be tried is lost with the process.
    """

    def __init__(self, store: "Store", model: "LoadedModel", jobs: "Jobs") -> None:
        self._store, self._model, self._jobs = store, model, jobs
        self._left: dict[tuple[str, str], list[TextQuestion]] = {}  # by document and recipe

    def untried(self, document: str) -> bool:
        """Whether something is left: of what is read, unless an earlier process began with it; none without a model."""
        engine = self._model.loaded
        if engine is None:
            return False
        left = self._left.get((document, engine.recipe))
        if left is not None:
            return bool(left)
        known = self._store.document(document, engine.recipe)
        return known.state == "read" and self._store.suggestions(document, engine.recipe) is None

    def try_question(self, document: str) -> bool:
        """Try one question about a document that is read; whether it is suggested now.

        Raises:
            InUseError, CancelledError: other work came before; the question is left.
        """
        title = self._store.document(document, "").title
        with self._jobs.claim(f"trying questions about {title}", behind=True) as job:
            right = returned(self._model.engine().floor.during(self._steps(document, job), behind=True))
            if job.cancelled:
                raise CancelledError(f"trying questions about {title}: gave way")
            return right

    def _steps(self, document: str, job: "Job") -> Generator[Any, None, bool]:
        """Yields where others may have the model."""
        sessions = self._model.sessions_under(self._model.policy_of())
        read = yield from sessions.reader.read(document, job.cancel.is_set)
        return (yield from self._one(sessions, read, job))

    def _one(self, sessions: "Sessions", document: "ReadDocument", job: "Job") -> Generator[Any, None, bool]:
        from app.chat.sessions import Session

        store, key = self._store, (document.document.id, sessions.engine.recipe)
        if key not in self._left:
            self._left[key] = candidates(store.parts(key[0]))
        left, kept, right = self._left[key], store.suggestions(*key) or [], False
        if left:
            asked = left[0]
            session = Session("", [document], sessions.engine.open_chat(document.memories), [], [])
            generation = GenerationConfig(max_new_tokens=ANSWER_TOKENS)
            done = None
            for done in sessions.generate(session, [], asked.question, generation, job):
                yield done
            assert isinstance(done, Done)
            if job.cancelled:
                return False
            right = holds(done.answer, flat(asked.answer)) and not only_refuses(done.answer)
            kept = [*kept, asked.question] if right else kept
            self._left[key] = [] if len(kept) == SHOWN else left[1:]
        if right or not self._left[key]:
            store.set_suggestions(*key, kept)  # none is a result too
        return bool(right)
