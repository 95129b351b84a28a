"""Passages of the library's texts, found by words: BM25 over stems, as SQLite's FTS5 has both.

A passage is a piece of a part, cut at sentence ends. Its text stays in the part: the index reads it through a view.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.store.database import SqliteFile
from app.store.text import QUERY_WORDS
from app.wellformed import whole

PASSAGE_CHARS = 1_200  # about 300 tokens of English prose
TOKENIZER = "porter unicode61 remove_diacritics 2"
ENDS = (re.compile(r"\n\s*\n"), re.compile(r"[.!?][\"”’)]*\s+"), re.compile(r"\n"), re.compile(r"\s+"))  # best first

WORD = re.compile(r"\d[\d.,:]*\d|\w+")
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|`([^`]+)`')
NAME = re.compile(r"\b[A-Z]\w*(?:[ -][A-Z]\w*)+")
REFERS = frozenset("he she it they him her them his hers its their theirs".split())
STOP_WORDS = REFERS | frozenset(
    """a about after all also am an and any are as at be because been before being between both but by can could did do
    does doing done down during each every far for from had has have having here how i if in into is just large long
    many may me might more most much must my no nor not of off old on once one only or other our out over own same
    shall should so some such than that the then there these this those through to under until up upon us very was
    we were what when where which while who whom whose why will with would you your yours""".split()
)
FEW_WORDS = 1  # a question with no more of its own leans on the one before


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


def question_query(question: str, before: Sequence[str] = ()) -> str | None:
    """A question as an FTS5 query that wants any of its words: names and quoted strings as phrases too.

    Args:
        before: the turns before it, the last one first: their names are looked for where the question refers to
            something, and all words of the last one where it has few of its own.

    Returns:
        None when there is no word to look for.
    """
    question = whole(question)
    wanted = _words(question)
    if before and (len(wanted) <= FEW_WORDS or REFERS & {word.lower() for word in WORD.findall(question)}):
        if len(wanted) <= FEW_WORDS:
            wanted += _words(whole(before[0]))
        wanted += [name for turn in before for name in _names(whole(turn))]
    phrases = [next(filter(None, groups)) for groups in QUOTED.findall(question)]
    phrases += NAME.findall(question)
    terms = dict.fromkeys([*wanted, *(" ".join(WORD.findall(phrase)) for phrase in phrases)])
    return " OR ".join(f'"{term}"' for term in list(terms)[:QUERY_WORDS] if term) or None


def _words(text: str) -> list[str]:
    """Words in lower case but for those that every question has."""
    words = [word.lower() for word in WORD.findall(text)]
    return [word for word in words if word not in STOP_WORDS and (len(word) > 1 or word.isdigit())]


def _names(text: str) -> list[str]:
    """Words that begin with a capital although no sentence does, and numbers."""
    found = re.findall(r"(?<=[\w,;:] )[A-Z]\w+|\b\d[\d.,]*\b", text)
    return [name.lower() for name in found if name.lower() not in STOP_WORDS]
