"""Where sentences end, in prose that nobody prepared: what answers cite and what the viewer marks goes by it."""

import re
from collections.abc import Iterator

_END = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*(?=\s|$)|(?<=[。！？])|\n[ \t]*\n|\Z")
_SHORT = re.compile(r"(?:\b(?:Mrs?|Ms|Dr|St|No|vs|cf|etc|Prof|Jr|Sr|Fig|Eq|pp?|e\.g|i\.e)|(?<![\w'’-])[A-Za-z])\.$")


def sentence_ends(text: str, first: int = 0, last: int | None = None) -> Iterator[int]:
    """Places in [first, last] at which a sentence or a paragraph ends, in order; the end of the text is one."""
    last = len(text) if last is None else last
    for found in _END.finditer(text, first, min(len(text), last + 2)):
        if found.end() <= last and not _SHORT.search(text, max(0, found.start() - 8), found.start() + 1):
            yield found.end()
    if len(text) <= last:
        yield len(text)
