"""Versions of a chat's turns: a tree, of which one line from its root is shown.

A turn is a question with the messages after it, stored together, and named by the question's id. It follows its
`parent`; those with one parent are versions of one another. Nothing here deletes a turn.
"""

from sqlite_utils import Database

from app.errors import NotFoundError
from app.records import Versions


def of_shown(db: Database, chat: str) -> dict[int, Versions]:
    """The shown turns that have other versions, by the id of their last message."""
    parents, found = _parents(db, chat), {}
    for question, *_, last in _shown(db, chat):
        same = tuple(turn for turn, parent in parents.items() if parent == parents.get(question))
        if len(same) > 1:
            found[last] = Versions(same, same.index(question) + 1)
    return found


def show(db: Database, chat: str, turn: int) -> None:
    """Show a turn, those before it, and after it always the newest.

    Raises:
        NotFoundError: it is none of the chat's.
    """
    parents = _parents(db, chat)
    if turn not in parents:
        raise NotFoundError(f"version {turn}: is not in this chat")
    shown = _shown(db, chat)
    db.execute("UPDATE tail SET told = ? WHERE chat = ? AND told IS NULL", [shown[-1][-1] if shown else 0, chat])
    line = _line(parents, turn)
    while after := [child for child, parent in parents.items() if parent == line[-1]]:
        line.append(max(after))
    ends = dict(zip(parents, [*list(parents)[1:], None], strict=True))  # a turn's messages stand before the next one
    db.execute("UPDATE message SET shown = 0 WHERE chat = ? AND shown", [chat])
    rows = [(chat, question, ends[question], ends[question]) for question in line]
    change = "UPDATE message SET shown = 1 WHERE chat = ? AND id >= ? AND (? IS NULL OR id < ?)"
    db.conn.executemany(change, rows)
    db.execute("UPDATE tail SET told = NULL WHERE chat = ? AND told = ?", [chat, _shown(db, chat)[-1][-1]])


def shared(db: Database, chat: str, message: int) -> int:
    """How many turns of the line that ends in a message are shown: the first ones."""
    parents = _parents(db, chat)
    last = max((turn for turn in parents if turn <= message), default=0)
    shown = {turn[0] for turn in _shown(db, chat)}
    return sum(turn in shown for turn in (_line(parents, last) if last else ()))


def _parents(db: Database, chat: str) -> dict[int, int]:
    """The parent of each turn, oldest turn first."""
    rows = db.execute("SELECT id, parent FROM message WHERE chat = ? AND parent IS NOT NULL ORDER BY id", [chat])
    return dict(rows.fetchall())


def _line(parents: dict[int, int], turn: int) -> list[int]:
    """The turns from the root to this one."""
    line = [turn]
    while parent := parents.get(line[0], 0):
        line.insert(0, parent)
    return line


def _shown(db: Database, chat: str) -> list[list[int]]:
    """Message ids of each turn that is shown."""
    turns: list[list[int]] = []
    rows = db.execute("SELECT id, parent FROM message WHERE chat = ? AND shown ORDER BY id", [chat])
    for id, parent in rows.fetchall():
        if parent is not None or not turns:
            turns.append([])
        turns[-1].append(id)
    return turns
