"""The data folder as one object: library.db, kv.db and what has to hold between them."""

import json
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from app.errors import NotFoundError, StoreError
from app.records import Evidence, Message, Tail
from app.store import copies
from app.store.blocks import BlockStore, VerifyReport
from app.store.chats import Chats
from app.store.database import FullDisk
from app.store.documents import Documents
from app.store.migrations import LIBRARY
from app.store.notes import Notes
from app.store.passages import Passages, Suggestions
from app.store.room import Room
from app.store.sources import Sources
from app.store.space import Space
from app.store.text import now

log = logging.getLogger(__name__)
FULL = "Nothing new is stored; what is there can be read, and deleting documents, chats and memories makes room"


class Store(Documents, Passages, Suggestions, Notes, Chats, Space, Sources):
    """Documents, chats and memory blocks of one data folder, for any number of threads.

    The caller owns the folder (`app.store.home.acquire`). `recipe` everywhere is an opaque string that names
    the weights and everything else that shapes a memory.

    Attributes:
        blocks: kv.db.
    """

    def __init__(self, home: Path, *, disk_budget_bytes: int) -> None:
        """Open the folder and, in the background, collect garbage and copy the library once a day.

        Raises:
            LostLibrary: the library is gone or empty and there was one; nothing was changed.
            StoreError: the folder or library.db cannot be used; the message says which and what to do.
        """
        home.mkdir(parents=True, exist_ok=True)
        self.room = Room(home)
        full = self.room.full
        if full:
            self.room.give_up()
        self.blocks = BlockStore(home / "kv.db", disk_budget_bytes=disk_budget_bytes)
        try:
            library = copies.open_library(home, self.blocks.stats()["blocks"])
        except BaseException:
            self.blocks.close()
            raise
        library.when_lost = self._rescue
        Documents.__init__(self, library)
        Passages.__init__(self, library)
        Suggestions.__init__(self, library)
        Chats.__init__(self, library)
        Space.__init__(self, library)
        self.home = home
        self._notes: list[str] = []
        self._copying = threading.RLock()
        self._rescued: str | None = None
        self._collecting = threading.Lock()
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-background")
        if full:
            self._notes.append(f"{home}: the disk is full. {FULL}")
        with suppress(FullDisk), library.write() as db:
            # Nobody else reads into this folder, so such a state was left by a process that died.
            db.execute("UPDATE reading SET state = 'new', detail = 'reading was interrupted' WHERE state = 'reading'")
        self._later(self._back_up_when_due)  # first: a short command ends before the others are done
        self._later(self.room.keep)
        self._later(self.collect_garbage)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the folder: files set aside, housekeeping that failed."""
        return [*self.blocks.notes, *self._notes]

    def transaction(self) -> AbstractContextManager[object]:
        """What is written to the library inside becomes visible together, or not at all."""
        return self._library.write()

    def set_manifest(self, id: str, recipe: str, memory: int, keys: Sequence[str]) -> None:
        super().set_manifest(id, recipe, memory, keys)
        self._library.after_commit(lambda: self.blocks.settle(keys))

    def delete_document(self, id: str) -> None:
        self._without(self.own_keys(document=id), lambda: super(Store, self).delete_document(id))
        self.forget_source(id)

    def evict(self, document: str) -> None:
        """Delete what was read of a document, in the background; the document stays and can be read again."""
        self._without(self.own_keys(document=document), lambda: self.unname(document))

    def _without(self, keys: Sequence[str], forget: Callable[[], None]) -> None:
        """Forget something in the library, and in the background the blocks that it alone named.

        Where the library has no room even for that, the blocks go first: they make it.
        """
        try:
            forget()
        except FullDisk:
            self.blocks.delete(keys)
            self.blocks.flush()
            self.blocks.shrink()
            forget()
        self._later(lambda: self._delete_unnamed(keys))
        self._later(self.blocks.compact)  # only then the log, too, is shorter

    def catch_up(self, longest_s: float = 2.0) -> None:
        """Wait for the housekeeping that was begun, a short while at most: what is freed then shows at once."""
        with suppress(TimeoutError):
            self._background.submit(lambda: None).result(longest_s)

    def finish(self) -> int:
        """Wait until what was deleted is gone; returns bytes that both files take now."""
        self._background.submit(lambda: None).result()
        with suppress(FullDisk):
            self._library.fold()
        self.blocks.compact()
        return self.blocks.stats()["kv_bytes"] + self._library.size_bytes()

    def compact(self) -> tuple[int, int]:
        """Delete garbage, merge the search indexes and give free pages back; returns bytes (before, after)."""
        before = self.blocks.stats()["kv_bytes"] + self._library.size_bytes()
        self.collect_garbage()
        self._library.compact([f"{table}_fts" for table in ("part", "passage", "chat", "message")])
        self.blocks.compact()
        return before, self.blocks.stats()["kv_bytes"] + self._library.size_bytes()

    def save_turn(
        self,
        chat: str,
        question: str,
        answer: str,
        stats: dict[str, Any],
        evidence: Sequence[Evidence],
        tail: Tail | None,
        *,
        after: int | None = None,
    ) -> tuple[Message, Message]:
        messages = super().save_turn(chat, question, answer, stats, evidence, tail, after=after)
        self._library.after_commit(lambda: self.blocks.settle(tail.keys if tail else ()))
        if after is not None:
            self._later(self.collect_garbage)
        self._later(self._back_up_when_due)
        return messages

    def tail(self, chat: str) -> Tail | None:
        """What a chat read after its documents, as far as it holds the turns that are shown."""
        return self.shown_tail(chat, self.blocks.tokens_in)

    def fork(self, chat: str, turns: int) -> str:
        """A new chat that begins with the first turns of another. Costs a few rows, whatever was read.

        Raises:
            NotFoundError: the chat is not there, or has fewer turns.
        """
        return self.fork_chat(chat, turns, self.blocks.tokens_in)

    def delete_chat(self, chat: str) -> None:
        self._without(self.own_keys(chat=chat), lambda: super(Store, self).delete_chat(chat))

    def collect_garbage(self) -> int:
        """Delete blocks that no memory and no chat names; returns how many.

        None for a day after library.db was replaced by a smaller or another one.
        """
        with self._collecting:  # what one thread knows of the library must not be older than what another noted
            if self.blocks.library_shrank(*astuple(copies.life(self._library))):
                return 0  # what another library.db named may come back with it
            kept = self.sources()  # in this order: a file is kept after its document
            with self._library.read() as db:
                known = {row[0] for row in db.execute("SELECT id FROM document")}
            for document in kept.keys() - known:
                self.forget_source(document)
            return self._delete_unnamed(self.blocks.settled_keys())

    def _delete_unnamed(self, keys: Sequence[str]) -> int:
        """Delete those blocks that no memory and no chat names; returns how many."""
        # In this order: a block named meanwhile is either not settled yet or found among the named.
        stored = self.blocks.settled(keys)
        with self._library.read() as db:
            named = {row[0] for row in db.execute("SELECT key FROM manifest UNION SELECT key FROM tail_block")}
        garbage = [key for key in stored if key not in named]
        self.blocks.delete(garbage, private=not self.room.full)
        self.blocks.flush()
        self.blocks.shrink()
        self.room.keep()
        return len(garbage)

    def verify(self, progress: Callable[[int, int], None] | None = None, *, repair: bool = False) -> VerifyReport:
        """Check both files; `repair` deletes damaged blocks, which are read again when needed."""
        report = self.blocks.verify(progress, repair=repair)
        problems = [f"library.db: {problem}" for problem in self._library.problems()]
        return VerifyReport(report.checked, [*problems, *report.damaged])

    def stats(self) -> dict[str, int]:
        """Counts and sizes for `store stats`, the doctor and the UI."""
        with self._library.read() as db:
            counts = {name + "s": db.table(name).count for name in ("document", "chat", "message")}
        return {
            **counts,
            **self.blocks.stats(),
            "library_bytes": self._library.size_bytes(),
            "free_disk_bytes": shutil.disk_usage(self.home).free,
            "disk_budget_bytes": self.blocks.disk_budget_bytes,
        }

    def start_passkey_run(self, model: str, policy: str, settings: dict[str, Any]) -> int:
        """Begin a run of the passkey test and return its id."""
        with self._library.write() as db:
            return db.execute(
                "INSERT INTO passkey_run (model, policy, settings, created) VALUES (?, ?, ?, ?)",
                [model, policy, json.dumps(settings), now()],
            ).lastrowid

    def add_passkey_cell(self, run: int, tokens: int, depth: float, right: int, trials: int) -> None:
        """Keep the result at one length and depth, in place of an earlier one."""
        with self._library.write() as db:
            if not db.execute("SELECT 1 FROM passkey_run WHERE id = ?", [run]).fetchone():
                raise NotFoundError(f"passkey run {run}: not known")
            row = [run, tokens, depth, right, trials]
            db.execute("INSERT OR REPLACE INTO passkey_cell VALUES (?, ?, ?, ?, ?)", row)

    def passkey_runs(self, limit: int = 20) -> list[dict[str, Any]]:
        """The latest runs first: id, model, policy, settings, created and cells (tokens, depth, right, trials)."""
        with self._library.read() as db:
            runs = list(db["passkey_run"].rows_where(order_by="id desc", limit=limit))
            for run in runs:
                cells = db["passkey_cell"].rows_where("run = ?", [run["id"]], order_by="tokens, depth")
                run["cells"] = [{k: v for k, v in cell.items() if k != "run"} for cell in cells]
                run["settings"] = json.loads(run["settings"])
        return runs

    def close(self) -> None:
        """Finish what is queued and close both files."""
        self._background.shutdown(wait=True, cancel_futures=True)
        self.blocks.close()
        self._library.close()

    def _later(self, work: Callable[[], Any]) -> None:
        """Run housekeeping behind the answers; what fails becomes a note."""

        def run() -> None:
            try:
                work()
            except Exception as error:  # Nobody waits for this thread: unsaid, the error would be lost.
                log.warning("housekeeping failed", exc_info=error)
                self._notes.append(str(error))

        self._background.submit(run)

    def _back_up_when_due(self) -> None:
        """Copy a sound library once a day; a damaged one never replaces the last good copy."""
        with self._copying:
            if not copies.due(self.home):
                return
            if self.room.free_bytes - self._library.size_bytes() < self.room.floor_bytes:
                self._notes.append(f"{self._library.path}: no room on the disk for its daily copy")
                return
            if problems := self._library.problems():
                self._notes.append(f"{self._library.path}: damaged ({problems[0]}). {LIBRARY.when_damaged}")
            else:
                self._notes += copies.take(self._library)

    def _rescue(self) -> str:
        """Copy a library whose file is gone while it is open, once; returns what the user can do."""
        with self._copying:
            if self._rescued is None:
                try:
                    copies.take(self._library, lost=True)
                    self._rescued = "Nothing is saved any more. All that it held is in library.backup.db: "
                except (StoreError, OSError, sqlite3.Error) as error:
                    self._rescued = f"Nothing is saved any more, and what it held could not be copied ({error}): "
                self._rescued += "quit Lectern and start it again, which offers that copy"
                self._notes.append(f"{self._library.path}: deleted or replaced. {self._rescued}")
            return self._rescued
