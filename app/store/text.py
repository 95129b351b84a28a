"""Text on its way into SQLite: queries that it can parse, moments, and token ids as bytes."""

import re
import sys
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime

from app.wellformed import whole

QUERY_WORDS = 32


def match(query: str) -> str | None:
    """What the user typed as an FTS5 query: every word and "phrase" must occur, the last as a beginning.

    None when there is nothing to search for.
    """
    terms = re.findall(r'"[^"]*"|[^\s"]+', whole(query).replace("\0", " "))
    quoted = [f'"{term.strip(chr(34))}"' for term in terms if re.search(r"\w", term)]
    return " ".join(quoted[:QUERY_WORDS]) + "*" if quoted else None


def now() -> str:
    """This moment in UTC, ISO 8601, sortable."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def pack(token_ids: Sequence[int]) -> bytes:
    """Four bytes per token id: little-endian int32, the same on every machine."""
    ids = array("i", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def unpack(data: bytes) -> list[int]:
    """The token ids that `pack` was given."""
    ids = array("i")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


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
