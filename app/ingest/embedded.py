"""Data inside text files: base64, minified lines, lists of digests. Left out line by line, and named."""

import re
from collections.abc import Iterator
from itertools import groupby

LONGEST_LINE_CHARS = 1_000  # a longer one that is not prose is data
LEAST_LINES = 8  # in a row
MOST_NAMED = 20  # places of one file
_BLANK_SHARE, _LETTER_SHARE = 0.1, 0.6  # at least so much of a line of prose
_RUN = re.compile(r"[A-Za-z0-9+/=_-]{400,}")
_WRAPPED = re.compile(r"""[\s"'(\[]*[A-Za-z0-9+/=]{40,}(?:\\n|\\)?["')\],;+\s\\]*""")
_DIGEST = re.compile(
    r"""\s*(?:--hash=|["']?(?:integrity|hash|checksum|resolved)["']?\s*[:=]\s*)?["']?(?:sha(?:1|256|384|512)|md5)[-:=]"""
    r"""[A-Za-z0-9+/=]{20,}["']?[,\\\s]*"""
)


def without_data(text: str, *, prose: bool = False) -> tuple[str, list[tuple[str, int]]]:
    """The text with embedded data left out; it keeps its number of lines.

    Args:
        prose: a long line is a paragraph.

    Returns:
        The text, and what was left out: ("12" or "12-40", characters).
    """
    lines = text.split("\n")
    kept, found, number = [], [], 1
    for wrapped, run in groupby(lines, lambda line: bool(_WRAPPED.fullmatch(line) or _DIGEST.fullmatch(line))):
        group = list(run)
        if wrapped and len(group) >= LEAST_LINES and _is_mixed(group):
            chars = sum(map(len, group))
            found.append((f"{number}-{number + len(group) - 1}", chars))
            kept += [_mark(chars), *[""] * (len(group) - 1)]
        else:
            for at, line in enumerate(group, number):
                shorter = _without_runs(line, prose)
                kept.append(shorter)
                if shorter is not line:
                    found.append((str(at), len(line) - len(shorter)))
        number += len(group)
    return ("\n".join(kept) if found else text), found


def named(path: str, found: list[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    """(place, reason) of what was left out of a file."""
    for place, chars in found[:MOST_NAMED]:
        yield f"{path}:{place}", f"embedded data ({chars:,} characters)"
    if more := found[MOST_NAMED:]:
        yield path, f"embedded data in {len(more):,} more places ({sum(chars for _, chars in more):,} characters)"


def _without_runs(line: str, prose: bool) -> str:
    """The line itself where nothing is left out."""
    if len(line) < 400:
        return line
    shorter = _RUN.sub(lambda run: _mark(len(run[0])) if _is_mixed([run[0]]) else run[0], line)
    if len(shorter) <= LONGEST_LINE_CHARS or prose or _reads_as_prose(shorter):
        return line if shorter == line else shorter
    return _mark(len(line))


def _reads_as_prose(line: str) -> bool:
    blanks = line.count(" ")
    return blanks >= _BLANK_SHARE * len(line) and sum(map(str.isalpha, line)) >= _LETTER_SHARE * len(line)


def _is_mixed(lines: list[str]) -> bool:
    """Whether it is data and no rule of dashes, long word or list of names: digits stand among the letters of most."""
    return sum(bool(re.search(r"[A-Za-z]\d|\d[A-Za-z]", line)) for line in lines) * 2 > len(lines)


def _mark(chars: int) -> str:
    return f"[embedded data left out: {chars:,} characters]"
