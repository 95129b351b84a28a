"""Chats in library.db: messages, evidence, and the tail from which a chat goes on.

Of a chat those turns are shown that follow one another; other versions of them stay beside (`app.store.versions`).
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlite_utils import Database

from app.errors import NotFoundError
from app.records import (
    MARK_END,
    MARK_START,
    AnswerSettings,
    ChatHit,
    ChatInfo,
    Evidence,
    Message,
    Role,
    Tail,
    Versions,
)
from app.store import versions
from app.store.database import SqliteFile
from app.store.documents import find
from app.store.text import match, now, pack, unpack
from app.wellformed import one_line, whole

_INFO = """
    SELECT c.id, c.title,
           (SELECT json_group_array(document) FROM
               (SELECT document FROM chat_document WHERE chat = c.id ORDER BY position)),
           (SELECT COUNT(*) FROM message m WHERE m.chat = c.id AND m.shown), c.model, c.updated, c.parent,
           c.policy, c.system
    FROM chat c
"""
_FOUND = """
    WHERE c.number IN (SELECT rowid FROM chat_fts WHERE chat_fts MATCH :terms)
       OR c.id IN (SELECT m.chat FROM message_fts JOIN message m ON m.id = message_fts.rowid
                   WHERE message_fts MATCH :terms AND m.shown)
"""
_MARKED_TITLES = """
    SELECT c.id, highlight(chat_fts, 0, :start, :end) FROM chat_fts JOIN chat c ON c.number = chat_fts.rowid
    WHERE chat_fts MATCH :terms
"""
_MARKED_MESSAGES = """
    SELECT m.chat, snippet(message_fts, 0, :start, :end, '…', 16)
    FROM message_fts JOIN message m ON m.id = message_fts.rowid
    WHERE message_fts MATCH :terms AND m.shown ORDER BY m.id
"""
_BEGINNING = """
    SELECT c.id, (SELECT json_group_array(document) FROM
                  (SELECT document FROM chat_document WHERE chat = c.id ORDER BY position))
    FROM chat c
    WHERE c.system = ? AND c.policy = ?
      AND (SELECT trim(content) FROM message WHERE chat = c.id AND shown ORDER BY id LIMIT 1) = ?
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

    def search_chats(self, query: str, limit: int) -> list[ChatHit]:
        """Chats whose title, or a message of which that is shown, holds every word of the query; last used first."""
        if (terms := match(query)) is None:
            return []
        values = {"terms": terms, "start": MARK_START, "end": MARK_END}
        texts: dict[str, list[str]] = {}
        with self._library.read() as db:
            titles = dict(db.execute(_MARKED_TITLES, values).fetchall())
            for chat, text in db.execute(_MARKED_MESSAGES, values):
                texts.setdefault(chat, []).append(text)
            order = db.execute("SELECT id, title FROM chat ORDER BY updated DESC, number DESC").fetchall()
        found = []
        for chat, title in order:
            if chat in titles or chat in texts:
                held = texts.get(chat, [])
                found.append(ChatHit(chat, titles.get(chat, title), held[0] if held else "", len(held)))
        return found[:limit]

    def chat(self, id: str) -> ChatInfo:
        """One chat, by its id or the beginning of it when no other id begins so."""
        with self._library.read() as db:
            return _info(db.execute(_INFO + " WHERE c.id = ?", [find(db, "chat", id)]).fetchone())

    def messages(self, chat: str) -> list[Message]:
        """Every message that is shown with its evidence, in order."""
        with self._library.read() as db:
            _require(db, chat)
            with db.atomic():
                rows = db.execute(
                    "SELECT id, role, content, stats FROM message WHERE chat = ? AND shown ORDER BY id", [chat]
                ).fetchall()
                evidence: dict[int, list[Evidence]] = {}
                of_chat = " WHERE message IN (SELECT id FROM message WHERE chat = ? AND shown) ORDER BY message, number"
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
                "INSERT INTO chat (id, title, model, created, updated, parent, policy, system, answers) "
                "SELECT ?, ?, model, ?, ?, id, policy, system, answers FROM chat WHERE id = ?",
                [id, title if turns else "New chat", moment, moment, chat],
            )
            documents = "INSERT INTO chat_document SELECT ?, position, document FROM chat_document WHERE chat = ?"
            db.execute(documents, [id, chat])
            parent = 0
            for first, *rest in messages:
                parent = _copy_message(db, first, id, parent)
                for message in rest:
                    _copy_message(db, message, id)
            tail = self._shown_tail(db, chat, group_tokens)
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
                contents = "SELECT content FROM message WHERE chat = ? AND shown ORDER BY id"
                said = db.execute(contents, [chat]).fetchall()
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
            asked = 0
            for role, content, stats, evidence in messages:
                message = _insert_message(db, chat, role, content, stats, asked if role == "user" else None)
                asked = message.id if role == "user" else asked
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

    def answer_settings(self, chat: str | None) -> AnswerSettings:
        """How a chat is answered; None: how new chats are."""
        with self._library.read() as db:
            row = db.execute("SELECT value FROM preference WHERE name = 'answers'").fetchone()
            default = _settings(row[0] if row else "", AnswerSettings())
            if chat is None:
                return default
            _require(db, chat)
            answers, system = db.execute("SELECT answers, system FROM chat WHERE id = ?", [chat]).fetchone()
        return replace(_settings(answers, default), system=system)

    def set_answer_settings(self, chat: str | None, settings: AnswerSettings) -> None:
        """Keep how a chat is answered; None: how new chats are.

        Another system text than before lets go of what the chat's memory holds, which began with the old one.
        """
        values = asdict(settings)
        with self._library.write() as db:
            if chat is None:
                db.execute("INSERT OR REPLACE INTO preference VALUES ('answers', ?)", [json.dumps(values)])
                return
            _require(db, chat)
            system = whole(values.pop("system"))
            if db.execute("SELECT system FROM chat WHERE id = ?", [chat]).fetchone()[0] != system:
                _replace_tail(db, chat, None)
            change = "UPDATE chat SET answers = ?, system = ? WHERE id = ?"
            db.execute(change, [json.dumps(values), system, chat])

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
            after: show the first so many turns and this one after them; the others stay as another version.

        Returns:
            the two messages; the answer's evidence has the ids under which it is kept.
        """
        with self._library.write() as db:
            _require(db, chat)
            turns = _turns(db, chat)
            after = len(turns) if after is None else after
            hidden = [[message] for turn in turns[after:] for message in turn]
            db.conn.executemany("UPDATE message SET shown = 0 WHERE id = ?", hidden)
            parent = turns[after - 1][0] if after else 0
            asked = _insert_message(db, chat, "user", question, {}, parent)
            answered = _insert_message(db, chat, "assistant", answer, stats)
            kept = tuple(replace(item, id=f"e{answered.id}-{n}") for n, item in enumerate(evidence, start=1))
            for number, item in enumerate(kept, start=1):
                _insert_evidence(db, answered.id, number, item)
            _replace_tail(db, chat, tail)
            db.execute("UPDATE chat SET updated = ? WHERE id = ?", [now(), chat])
        return asked, replace(answered, evidence=kept)

    def shown_tail(self, chat: str, group_tokens: Callable[[str], int | None]) -> Tail | None:
        """The tail kept with the last turn, as far as it holds turns that are shown."""
        with self._library.read() as db:
            _require(db, chat)
            with db.atomic():
                return self._shown_tail(db, chat, group_tokens)

    @staticmethod
    def _shown_tail(db: Database, chat: str, group_tokens: Callable[[str], int | None]) -> Tail | None:
        tail = _tail(db, chat)
        told = db.execute("SELECT told FROM tail WHERE chat = ?", [chat]).fetchone()
        if tail is None or told[0] is None:
            return tail
        return cut(tail, versions.shared(db, chat, told[0]), group_tokens)

    def versions(self, chat: str) -> dict[int, Versions]:
        """The turns that are shown and have other versions, by the id of their answer."""
        with self._library.read() as db:
            _require(db, chat)
            with db.atomic():
                return versions.of_shown(db, chat)

    def show_version(self, chat: str, turn: int) -> None:
        """Show a turn in the place of its other versions, and the newest of those that follow it.

        Args:
            turn: id of the message that it begins with.

        Raises:
            NotFoundError: it is none of the chat's.
        """
        with self._library.write() as db:
            _require(db, chat)
            versions.show(db, chat, turn)

    def message_stats(self, message: int) -> dict[str, Any]:
        """What is known of an answer, shown or not; empty when there is no such message."""
        with self._library.read() as db:
            row = db.execute("SELECT stats FROM message WHERE id = ?", [message]).fetchone()
        return json.loads(row[0]) if row else {}

    def evidence(self, id: str) -> tuple[Evidence, str, int]:
        """A passage by its id, with its chat and the message it stands under."""
        place = re.fullmatch(r"e([0-9]{1,18})-([0-9]{1,9})", id)
        with self._library.read() as db:
            row = place and db.execute(_EVIDENCE + " WHERE message = ? AND number = ?", place.groups()).fetchone()
            if row is None:
                raise NotFoundError(f"evidence {id!r}: not known; ids look like e12-1 and stand under an answer")
            chat = db.execute("SELECT chat FROM message WHERE id = ?", [row[0]]).fetchone()[0]
        return _evidence(row), chat, row[0]


def _settings(text: str, default: AnswerSettings) -> AnswerSettings:
    """Settings from JSON, as far as this release knows them; "" stands for the default."""
    values = json.loads(text) if text else {}
    return replace(default, **{name: value for name, value in values.items() if hasattr(default, name)})


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


def _insert_message(
    db: Database, chat: str, role: Role, content: str, stats: dict[str, Any], parent: int | None = None
) -> Message:
    content = whole(content)
    id = db.execute(
        "INSERT INTO message (chat, role, content, stats, created, parent) VALUES (?, ?, ?, ?, ?, ?)",
        [chat, role, content, json.dumps(stats), now(), parent],
    ).lastrowid
    return Message(id, role, content, stats)


def _turns(db: Database, chat: str) -> list[list[int]]:
    """Message ids of each turn that is shown: a question and what was said to it."""
    turns: list[list[int]] = []
    for id, role in db.execute("SELECT id, role FROM message WHERE chat = ? AND shown ORDER BY id", [chat]):
        if role == "user" or not turns:
            turns.append([])
        turns[-1].append(id)
    return turns


def _copy_message(db: Database, message: int, chat: str, parent: int | None = None) -> int:
    """Put a message with its evidence under another chat; returns its id there."""
    columns = "role, content, stats, created"
    copy = f"INSERT INTO message (chat, parent, {columns}) SELECT ?, ?, {columns} FROM message WHERE id = ?"
    twin = db.execute(copy, [chat, parent, message]).lastrowid
    columns = "number, document, title, label, part, char_start, char_end, text, weight, regions, found_by"
    db.execute(
        f"INSERT INTO evidence (message, {columns}) SELECT ?, {columns} FROM evidence WHERE message = ?",
        [twin, message],
    )
    return twin


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
    db.execute("INSERT INTO tail (chat, recipe, token_ids, turns, memories) VALUES (?, ?, ?, ?, ?)", row)
    rows = [(chat, position, key) for position, key in enumerate(tail.keys)]
    db.conn.executemany("INSERT INTO tail_block VALUES (?, ?, ?)", rows)


def _info(row: tuple[Any, ...]) -> ChatInfo:
    id, title, documents, *rest = row
    return ChatInfo(id, title, tuple(json.loads(documents)), *rest)
