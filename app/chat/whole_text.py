"""Questions about whole texts: part after part gives notes, which are kept as they come and make up the answer."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from typing import TYPE_CHECKING

from app.chat.coverage import muted_parts
from app.chat.focus import Sight
from app.chat.jobs import Job
from app.chat.saved import title_of
from app.ingest import spans
from app.records import AnswerStats, DocumentInfo, Done, Part, Working
from app.tasks.listing import Gone, Listing, listing
from app.tasks.whole import Note, Task, notes_of

if TYPE_CHECKING:
    from app.store.store import Store

BATCH_S = 0.2  # notes of so long a time are written together: a crash costs no more
BY_CODE = ""  # the recipe of notes that no model made
STOPPED = "Stopped after {done:,} of {parts:,} parts; asked again, it goes on from there."


class WholeText:
    """Goes through the documents of a chat for one task.

    Attributes:
        parts, done, reused: of all documents; `done` counts those of before, `reused`, too.
    """

    def __init__(self, store: "Store", task: Task, documents: Sequence[DocumentInfo], sight: Sight = Sight()) -> None:
        self._store, self.task = store, task
        self._started = time.monotonic()
        self._found: list[Gone] = []
        self._texts = [(info, store.parts(info.id)) for info in documents]
        self._texts = [
            (info, [part for part in parts if part.index not in muted_parts(info, parts, sight)])
            for info, parts in self._texts
        ]
        self.parts = sum(len(parts) for _, parts in self._texts)
        self.done = self.reused = 0

    def steps(self, job: Job) -> Iterator[Working]:
        """Go through what was not gone through; ends early when the job is stopped."""
        for info, parts in self._texts:
            known = self._store.part_notes(info.id, self.task.key, BY_CODE)
            self.reused += sum(part.index in known for part in parts)
            self.done = max(self.done, self.reused)
            fresh: dict[int, list[list[object]]] = {}
            written = time.monotonic()
            for part in parts:
                if part.index in known or job.cancel.is_set():
                    continue
                notes = known[part.index] = [list(astuple(note))[1:] for note in notes_of(self.task, part)]
                fresh[part.index] = notes
                self.done += 1
                if time.monotonic() - written >= BATCH_S:
                    self._store.add_part_notes(info.id, self.task.key, BY_CODE, fresh)
                    fresh, written = {}, time.monotonic()
                    yield self._at(info, part, self._gone(info, parts, known))
            self._store.add_part_notes(info.id, self.task.key, BY_CODE, fresh)
            self._found.append(self._gone(info, parts, known))
            if job.cancel.is_set():
                return

    def _gone(self, info: DocumentInfo, parts: Sequence[Part], known: dict[int, list[list[object]]]) -> Gone:
        done = [part.index for part in parts if part.index in known]
        notes = [Note(index, *values) for index in done for values in known[index]]
        return Gone(info, {part.index: part for part in parts}, notes, len(done))

    def _at(self, info: DocumentInfo, part: Part, gone: Gone) -> Working:
        elapsed, fresh = time.monotonic() - self._started, self.done - self.reused
        left = elapsed / fresh * (self.parts - self.done) if fresh else 0.0
        said = self._listing([*self._found, gone]).text
        return Working(
            info.id, info.title, self.done, self.parts, fresh / max(elapsed, 1e-9), part.label, self.reused, left, said
        )

    def _listing(self, found: Sequence[Gone]) -> Listing:
        def label(info: DocumentInfo, part: Part, start: int, end: int) -> str:
            line = self._store.line_of(info.id, part.index) if info.kind == "text" else None
            return spans.label(part, start, end, line)

        return listing(self.task, found, label)

    def answer(self, chat: str, job: Job) -> Done:
        """The answer from all notes, or from those that there are when it was stopped."""
        made = self._listing(self._found)
        stopped, seconds = job.cancel.is_set() and self.done < self.parts, round(time.monotonic() - self._started, 3)
        stats = AnswerStats(
            seconds=seconds,
            seconds_to_first_token=seconds,
            note=STOPPED.format(done=self.done, parts=self.parts) if stopped else "",
            stopped=stopped,
            cited=tuple(made.marks),
            whole=self.task.key,
            parts=self.parts,
            parts_done=self.done,
            parts_reused=self.reused,
        )
        return Done(made.text, chat, tuple(made.passages), stats)


def kept(store: "Store", chat: str, question: str, done: Done) -> Done:
    """Save the turn; the chat's memory stays as it is, and runs it when something is asked next."""
    first, stats, tail = not store.messages(chat), done.stats.as_dict(), store.tail(chat)
    _, answered = store.save_turn(chat, question, done.answer, stats, done.evidence, tail)
    if first and store.chat(chat).title == "New chat":
        store.rename_chat(chat, title_of(question))
    return replace(done, evidence=answered.evidence)
