"""Which texts share a run of words: what keeps samples apart from each other and training from validation."""

import re
from collections.abc import Iterator

RUN_WORDS = 12
_WORD = re.compile(r"\w+")


def runs(text: str) -> Iterator[int]:
    """A hash of each run of 12 words, case and punctuation aside; of the whole text when it is shorter."""
    words = _WORD.findall(text.lower())
    for start in range(max(1, len(words) - RUN_WORDS + 1)):
        yield hash(tuple(words[start : start + RUN_WORDS]))


class Seen:
    """Runs of words seen so far."""

    def __init__(self) -> None:
        self._runs: set[int] = set()

    def add(self, text: str) -> None:
        self._runs.update(runs(text))

    def shares(self, text: str) -> bool:
        """Whether any run of the text was seen."""
        return not self._runs.isdisjoint(runs(text))
