"""Text on its way into SQLite: strings it can hold, search queries it can parse, moments."""

import re
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
