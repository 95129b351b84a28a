"""Chats in library.db: messages, evidence, and the tail from which a chat goes on."""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlite_utils import Database

from app.errors import NotFoundError
from app.records import ChatInfo, Evidence, Message, Role, Tail
from app.store.database import SqliteFile
from app.store.documents import find
from app.store.text import match, now, pack, unpack
from app.wellformed import one_line, whole

_INFO = """
    SELECT c.id, c.title,
           (SELECT json_group_array(document) FROM
               (SELECT document FROM chat_document WHERE chat = c.id ORDER BY position)),
           (SELECT COUNT(*) FROM message m WHERE m.chat = c.id), c.model, c.updated, c.parent,
           c.policy, c.system
    FROM chat c
"""
_FOUND = """
    WHERE c.number IN (SELECT rowid FROM chat_fts WHERE chat_fts MATCH :terms)
       OR c.id IN (SELECT m.chat FROM message_fts JOIN message m ON m.id = message_fts.rowid
                   WHERE message_fts MATCH :terms)
"""
_BEGINNING = """
    SELECT c.id, (SELECT json_group_array(document) FROM
                  (SELECT document FROM chat_document WHERE chat = c.id ORDER BY position))
    FROM chat c
    WHERE c.system = ? AND c.policy = ?
      AND (SELECT trim(content) FROM message WHERE chat = c.id ORDER BY id LIMIT 1) = ?
    ORDER BY c.updated DESC LIMIT 100
"""
_EVIDENCE = """
    SELECT message, number, document, title, label, part, char_start, char_end, text, weight, regions, found_by
    FROM evidence
"""


class Chats:
    """The chat half of the library. `chat` is a whole chat id unless a method says otherwise."""

    def __init__(self, library: SqliteFile) -> None:
        self._library = library

    def create_chat(
        self, documents: Sequence[str], model: str, title: str = "New chat", policy: str = "", system: str = ""
    ) -> str:
        """Start a chat over documents, in order, and return its id; see ChatInfo for `policy` and `system`."""
        id = secrets.token_hex(6)
        with self._library.write() as db:
            moment = now()
            row = [id, one_line(title), model, moment, moment, policy, whole(system)]
            columns = "id, title, model, created, updated, policy, system"
            db.execute(f"INSERT INTO chat ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            _attach(db, id, documents)
        return id

    def chats(self, query: str | None = None) -> list[ChatInfo]:
        """Chats, the last used first; with a query those whose title or messages hold every word of it."""
        terms = match(query or "")
        if terms is None and (query or "").strip():
            return []
        with self._library.read() as db:
            found = _FOUND if terms else ""
            rows = db.execute(f"{_INFO} {found} ORDER BY c.updated DESC, c.number DESC", {"terms": terms}).fetchall()
        return [_info(row) for row in rows]

    def chat(self, id: str) -> ChatInfo:
        """One chat, by its id or the beginning of it when no other id begins so."""
        with self._library.read() as db:
            return _info(db.execute(_INFO + " WHERE c.id = ?", [find(db, "chat", id)]).fetchone())

    def messages(self, chat: str) -> list[Message]:
        """Every message with its evidence, in order."""
        with self._library.read() as db:
            _require(db, chat)
            with db.atomic():
                rows = db.execute(
                    "SELECT id, role, content, stats FROM message WHERE chat = ? ORDER BY id", [chat]
                ).fetchall()
                evidence: dict[int, list[Evidence]] = {}
                of_chat = " WHERE message IN (SELECT id FROM message WHERE chat = ?) ORDER BY message, number"
                for row in db.execute(_EVIDENCE + of_chat, [chat]):
                    evidence.setdefault(row[0], []).append(_evidence(row))
        return [
            Message(id, role, content, json.loads(stats), tuple(evidence.get(id, ())))
            for id, role, content, stats in rows
        ]

    def fork_chat(self, chat: str, turns: int, group_tokens: Callable[[str], int | None]) -> str:
        """A new chat that begins with the first turns of another; the memory behind them is shared, not copied.

        Args:
            turns: questions with their answers that go over; 0 leaves the documents, just read.
            group_tokens: how many tokens a stored block holds; None when it is gone.

        Returns:
            the new chat's id.

        Raises:
            NotFoundError: the chat has fewer turns.
        """
        id, moment = secrets.token_hex(6), now()
        with self._library.write() as db:
            _require(db, chat)
            messages = _turns(db, chat)[:turns]
            if turns > len(messages):
                raise NotFoundError(f"chat {chat!r}: has {len(messages)} turns; turn {turns} is not there")
            title = f"{db.execute('SELECT title FROM chat WHERE id = ?', [chat]).fetchone()[0]} (fork)"
            db.execute(
                "INSERT INTO chat (id, title, model, created, updated, parent, policy, system) "
                "SELECT ?, ?, model, ?, ?, id, policy, system FROM chat WHERE id = ?",
                [id, title if turns else "New chat", moment, moment, chat],
            )
            documents = "INSERT INTO chat_document SELECT ?, position, document FROM chat_document WHERE chat = ?"
            db.execute(documents, [id, chat])
            for message in (message for turn in messages for message in turn):
                _copy_message(db, message, id)
            tail = _tail(db, chat)
            _replace_tail(db, id, tail and cut(tail, turns, group_tokens))
        return id

    def chat_with_turns(
        self, documents: Sequence[str], system: str, policy: str, turns: Sequence[tuple[str, str]]
    ) -> tuple[str | None, int]:
        """The chat that begins as these turns do, for as long as any does; of equal ones the last used.

        Args:
            turns: (question, answer); blanks around them do not count.

        Returns:
            (chat, turns that are the same); (None, 0) where no chat has the first one.
        """
        if not turns:
            return None, 0
        best: tuple[str | None, int] = (None, 0)
        with self._library.read() as db:
            rows = db.execute(_BEGINNING, [whole(system), policy, whole(turns[0][0]).strip()]).fetchall()
            for chat, attached in rows:
                if json.loads(attached) != list(documents):
                    continue
                said = db.execute("SELECT content FROM message WHERE chat = ? ORDER BY id", [chat]).fetchall()
                stored = [content.strip() for (content,) in said]
                wanted = [whole(text).strip() for turn in turns for text in turn]
                same = next((i for i, pair in enumerate(zip(stored, wanted, strict=False)) if pair[0] != pair[1]),
                            min(len(stored), len(wanted))) // 2  # fmt: skip
                if same > best[1]:
                    best = (chat, same)
        return best

    def import_messages(
        self, chat: str, messages: Sequence[tuple[str, str, dict[str, Any], Sequence[Evidence]]], tail: Tail | None
    ) -> None:
        """Fill a new chat with (role, content, stats, evidence) in order, and its tail, all or nothing."""
        with self._library.write() as db:
            _require(db, chat)
            for role, content, stats, evidence in messages:
                message = _insert_message(db, chat, role, content, stats)
                for number, item in enumerate(evidence, start=1):
                    _insert_evidence(db, message.id, number, item)
            _replace_tail(db, chat, tail)

    def rename_chat(self, chat: str, title: str) -> None:
        """Give a chat another title."""
        with self._library.write() as db:
            _require(db, chat)
            db.execute("UPDATE chat SET title = ? WHERE id = ?", [one_line(title), chat])

    def set_chat_policy(self, chat: str, policy: str) -> None:
        """Let a chat be read and answered under another policy; its tail stays until the next turn is kept."""
        with self._library.write() as db:
            _require(db, chat)
            db.execute("UPDATE chat SET policy = ? WHERE id = ?", [policy, chat])

    def set_chat_model(self, chat: str, model: str) -> None:
        """Keep which model answered last, by name."""
        with self._library.write() as db:
            db.execute("UPDATE chat SET model = ? WHERE id = ?", [model, chat])

    def tails(self) -> dict[str, tuple[str, int]]:
        """(recipe, tokens of the turns) of every chat that has a tail, by id."""
        with self._library.read() as db:
            rows = db.execute("SELECT chat, recipe, turns FROM tail").fetchall()
        return {chat: (recipe, max(json.loads(turns), default=0)) for chat, recipe, turns in rows}

    def delete_chat(self, chat: str) -> None:
        """Forget a chat, its messages and its tail."""
        with self._library.write() as db:
            _require(db, chat)
            db.execute("DELETE FROM chat WHERE id = ?", [chat])

    def set_chat_documents(self, chat: str, ids: Sequence[str]) -> None:
        """Attach these documents, in order, and no others."""
        with self._library.write() as db:
            _require(db, chat)
            db.execute("DELETE FROM chat_document WHERE chat = ?", [chat])
            _attach(db, chat, ids)

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
        """Keep a question, its answer and the tail after them, all or nothing.

        Args:
            after: keep the first so many turns and put this one in the place of the others.

        Returns:
            the two messages; the answer's evidence has the ids under which it is kept.
        """
        with self._library.write() as db:
            _require(db, chat)
            for message in (m for turn in _turns(db, chat)[after:] for m in turn) if after is not None else ():
                db.execute("DELETE FROM message WHERE id = ?", [message])
            asked = _insert_message(db, chat, "user", question, {})
            answered = _insert_message(db, chat, "assistant", answer, stats)
            kept = tuple(replace(item, id=f"e{answered.id}-{n}") for n, item in enumerate(evidence, start=1))
            for number, item in enumerate(kept, start=1):
                _insert_evidence(db, answered.id, number, item)
            _replace_tail(db, chat, tail)
            db.execute("UPDATE chat SET updated = ? WHERE id = ?", [now(), chat])
        return asked, replace(answered, evidence=kept)

    def tail(self, chat: str) -> Tail | None:
        """The tail kept with the last turn."""
        with self._library.read() as db:
            _require(db, chat)
            with db.atomic():
                return _tail(db, chat)

    def evidence(self, id: str) -> tuple[Evidence, str, int]:
        """A passage by its id, with its chat and the message it stands under."""
        place = re.fullmatch(r"e([0-9]{1,18})-([0-9]{1,9})", id)
        with self._library.read() as db:
            row = place and db.execute(_EVIDENCE + " WHERE message = ? AND number = ?", place.groups()).fetchone()
            if row is None:
                raise NotFoundError(f"evidence {id!r}: not known; ids look like e12-1 and stand under an answer")
            chat = db.execute("SELECT chat FROM message WHERE id = ?", [row[0]]).fetchone()[0]
        return _evidence(row), chat, row[0]


def cut(tail: Tail, turns: int, group_tokens: Callable[[str], int | None]) -> Tail | None:
    """The tail as it was after its first turns, on the blocks of the whole one.

    Its last block may reach beyond them; what is too much is forgotten when the chat is opened.

    Returns:
        None when the memory of that moment is not stored.
    """
    if turns == len(tail.turns):
        return tail
    if turns == 0 or len(tail.turns) < turns or not tail.turns[turns - 1]:
        return None
    kept = tail.turns[:turns]
    size = group_tokens(tail.keys[0]) if len(tail.keys) > 1 else len(tail.token_ids)
    if not size:  # gone, or the memory of a policy that drops tokens: its blocks hang on all that was read
        return None
    groups = -(-kept[-1] // size)
    return replace(tail, token_ids=tail.token_ids[: groups * size], keys=tail.keys[:groups], turns=kept)


def _require(db: Database, chat: str) -> None:
    if not db.execute("SELECT 1 FROM chat WHERE id = ?", [chat]).fetchone():
        raise NotFoundError(f"chat {chat!r}: not there; it was deleted, or never begun")


def _attach(db: Database, chat: str, documents: Sequence[str]) -> None:
    rows = [(chat, position, document) for position, document in enumerate(dict.fromkeys(documents))]
    db.conn.executemany("INSERT INTO chat_document VALUES (?, ?, ?)", rows)


def _insert_message(db: Database, chat: str, role: Role, content: str, stats: dict[str, Any]) -> Message:
    content = whole(content)
    id = db.execute(
        "INSERT INTO message (chat, role, content, stats, created) VALUES (?, ?, ?, ?, ?)",
        [chat, role, content, json.dumps(stats), now()],
    ).lastrowid
    return Message(id, role, content, stats)


def _turns(db: Database, chat: str) -> list[list[int]]:
    """Message ids of each turn: a question and what was said to it."""
    turns: list[list[int]] = []
    for id, role in db.execute("SELECT id, role FROM message WHERE chat = ? ORDER BY id", [chat]):
        if role == "user" or not turns:
            turns.append([])
        turns[-1].append(id)
    return turns


def _copy_message(db: Database, message: int, chat: str) -> None:
    """Put a message with its evidence under another chat."""
    columns = "role, content, stats, created"
    copy = f"INSERT INTO message (chat, {columns}) SELECT ?, {columns} FROM message WHERE id = ?"
    twin = db.execute(copy, [chat, message]).lastrowid
    columns = "number, document, title, label, part, char_start, char_end, text, weight, regions, found_by"
    db.execute(
        f"INSERT INTO evidence (message, {columns}) SELECT ?, {columns} FROM evidence WHERE message = ?",
        [twin, message],
    )


def _insert_evidence(db: Database, message: int, number: int, item: Evidence) -> None:
    row = [message, number, item.document, whole(item.title), whole(item.label), item.part]
    row += [item.char_start, item.char_end, whole(item.text), item.weight, json.dumps(item.regions), item.found_by]
    db.execute(f"INSERT INTO evidence VALUES ({', '.join('?' * len(row))})", row)


def _evidence(row: tuple[Any, ...]) -> Evidence:
    message, number, *plain, regions, found_by = row
    pairs = tuple((memory, region) for memory, region in json.loads(regions))
    return Evidence(f"e{message}-{number}", *plain, regions=pairs, found_by=found_by)


def _tail(db: Database, chat: str) -> Tail | None:
    row = db.execute("SELECT recipe, token_ids, turns, memories FROM tail WHERE chat = ?", [chat]).fetchone()
    if row is None:
        return None
    keys = db.execute("SELECT key FROM tail_block WHERE chat = ? ORDER BY position", [chat]).fetchall()
    recipe, token_ids, turns, memories = row
    return Tail(
        recipe=recipe,
        token_ids=tuple(unpack(token_ids)),
        keys=tuple(key for (key,) in keys),
        turns=tuple(json.loads(turns)),
        memories=tuple((document, number) for document, number in json.loads(memories)),
    )


def _replace_tail(db: Database, chat: str, tail: Tail | None) -> None:
    db.execute("DELETE FROM tail WHERE chat = ?", [chat])
    if tail is None:
        return
    row = [chat, tail.recipe, pack(tail.token_ids), json.dumps(tail.turns), json.dumps(tail.memories)]
    db.execute("INSERT INTO tail VALUES (?, ?, ?, ?, ?)", row)
    rows = [(chat, position, key) for position, key in enumerate(tail.keys)]
    db.conn.executemany("INSERT INTO tail_block VALUES (?, ?, ?)", rows)


def _info(row: tuple[Any, ...]) -> ChatInfo:
    id, title, documents, *rest = row
    return ChatInfo(id, title, tuple(json.loads(documents)), *rest)
