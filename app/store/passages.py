"""Passages of the library's texts, found by words: BM25 over stems, as SQLite's FTS5 has both.

A passage is a piece of a part, cut at sentence ends. Its text stays in the part: the index reads it through a view.
"""

import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from app.store.database import SqliteFile
from app.wellformed import whole

PASSAGE_CHARS = 1_200  # about 300 tokens of English prose
TOKENIZER = "porter unicode61 remove_diacritics 2"
ENDS = (re.compile(r"\n\s*\n"), re.compile(r"[.!?][\"”’)]*\s+"), re.compile(r"\n"), re.compile(r"\s+"))  # best first


@dataclass(frozen=True)
class Found:
    """A passage that has words of a query: characters [char_start, char_end) of a part."""

    document: str
    part: int
    char_start: int
    char_end: int


class Passages:
    """The part of the library that finds passages by words."""

    def __init__(self, library: SqliteFile) -> None:
        self._library = library

    def index_passages(self, document: str) -> None:
        """Put a document's passages into the index, unless they are there."""
        with self._library.read() as db:
            known = "SELECT 1 FROM passage JOIN part ON part.id = passage.part WHERE part.document = ? LIMIT 1"
            if db.execute(known, [document]).fetchone():
                return
        with self._library.write() as db:
            parts = db.execute("SELECT id, text FROM part WHERE document = ? ORDER BY number", [document]).fetchall()
            for part, text in parts:
                for start, end in cut(text):
                    row = db.execute(
                        "INSERT INTO passage (part, char_start, char_end) VALUES (?, ?, ?)", [part, start, end]
                    ).lastrowid
                    db.execute("INSERT INTO passage_fts (rowid, text) VALUES (?, ?)", [row, text[start:end]])

    def find_passages(self, query: str | None, documents: Sequence[str], limit: int) -> list[Found]:
        """The passages of these documents that fit a query best, as `query` makes it; best first."""
        if not query or not documents:
            return []
        marks = ", ".join("?" * len(documents))
        with self._library.read() as db:
            rows = db.execute(
                "SELECT part.document, part.number, passage.char_start, passage.char_end "
                "FROM passage_fts JOIN passage ON passage.id = passage_fts.rowid JOIN part ON part.id = passage.part "
                f"WHERE passage_fts MATCH ? AND part.document IN ({marks}) "
                "ORDER BY bm25(passage_fts), passage.id LIMIT ?",
                [query, *documents, limit],
            ).fetchall()
        return [Found(*row) for row in rows]


class Suggestions:
    """The part of the library that keeps questions to begin with, by document and recipe."""

    def __init__(self, library: SqliteFile) -> None:
        self._library = library

    def set_suggestions(self, document: str, recipe: str, questions: Sequence[str]) -> None:
        """Keep questions, in place of those before; none is a result too."""
        with self._library.write() as db:
            row = [document, recipe, json.dumps([whole(question) for question in questions])]
            db.execute("INSERT OR REPLACE INTO suggestion (document, recipe, questions) VALUES (?, ?, ?)", row)

    def suggestions(self, document: str, recipe: str) -> list[str] | None:
        """What `set_suggestions` was given; None when nothing was."""
        with self._library.read() as db:
            find = "SELECT questions FROM suggestion WHERE document = ? AND recipe = ?"
            row = db.execute(find, [document, recipe]).fetchone()
        return json.loads(row[0]) if row else None


class PassageIndex:
    """Passages of texts that are in no library, found in the same way."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute(f"CREATE VIRTUAL TABLE passage USING fts5 (text, tokenize='{TOKENIZER}')")
        rows = ((number, whole(text)) for number, text in enumerate(passages))
        self._db.executemany("INSERT INTO passage (rowid, text) VALUES (?, ?)", rows)

    def best(self, query: str | None, limit: int) -> list[int]:
        """Numbers of the passages that fit a query best, best first."""
        if not query:
            return []
        find = "SELECT rowid FROM passage WHERE passage MATCH ? ORDER BY bm25(passage), rowid LIMIT ?"
        return [row[0] for row in self._db.execute(find, [query, limit])]


def cut(text: str, size: int = PASSAGE_CHARS) -> list[tuple[int, int]]:
    """Cut a text into passages of about `size` characters, all of one length but for ending well: (start, end)."""
    count = max(1, round(len(text) / size))
    ends = [_good_end(text, number * len(text) // count, size // 6) for number in range(1, count)]
    edges = [0, *ends, len(text)]
    return [(start, end) for start, end in zip(edges, edges[1:], strict=False) if text[start:end].strip()]


def _good_end(text: str, place: int, about: int) -> int:
    """The paragraph end, sentence end, line end or blank nearest to a place, or the place itself."""
    for pattern in ENDS:
        found = [match.end() for match in pattern.finditer(text, place - about, place + about)]
        if found:
            return min(found, key=lambda end: abs(end - place))
    return place
