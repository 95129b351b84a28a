"""Project Gutenberg's own words around a book: what stands before it and the licence after it."""

import re

FRONT, LICENCE = "front matter", "licence"
_LONGEST_FRONT_CHARS = 60_000
_NAME_CHARS = 5_000  # at the beginning, where the project is named
_WORK = r"(?:(?:THE|THIS) )?PROJECT GUTENBERG'?S? (?:E-?BOOK|E-?TEXT)"
_LINES = re.IGNORECASE | re.MULTILINE
_START = re.compile(rf"^[ \t]*\*{{1,3}} ?START OF {_WORK}[^*]{{0,400}}?(?:\*{{1,3}}|(?=\n[ \t]*\n))[^\n]*\n", _LINES)
_SMALL_PRINT_END = re.compile(
    r"^[ \t]*\*{1,3} ?END ?\*{0,3} ?THE SMALL PRINT[^\n]*\n(?:[^\n]*\*END\*[^\n]*\n)?", _LINES
)
_END = re.compile(
    rf"^[ \t]*(?:\*{{1,3}} ?END OF {_WORK}|END OF (?:(?:THE|THIS) )?PROJECT GUTENBERG"
    r"|\*{1,3} ?START ?\*{0,3} ?THE SMALL PRINT)",
    _LINES,
)


def cut(text: str) -> tuple[int, int]:
    """Where the book itself begins and ends in a text; all of it when the project's marks are not there."""
    if not re.search("project gutenberg", text[:_NAME_CHARS], re.IGNORECASE):
        return 0, len(text)
    head = text[:_LONGEST_FRONT_CHARS]
    ends = [match.end() for pattern in (_START, _SMALL_PRINT_END) for match in pattern.finditer(head)]
    start = max(ends, default=0)
    found = _END.search(text, start)
    end = found.start() if found else len(text)
    return (start, end) if text[start:end].strip() else (0, len(text))
