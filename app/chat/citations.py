"""Citations: which of its passages the sentences of an answer come from, by the attention of their tokens."""

import re
from collections.abc import Iterator, Sequence

from app.records import Evidence, Look
from app.store.text import STOP_WORDS
from app.tasks.scoring import only_refuses
from app.tasks.sentences import sentence_ends

MOST = 2  # passages cited by one sentence
LEAST_LOOK = 0.05  # of a sentence's attention on the documents, to come from the passages at all
HALF = 0.5  # of what a sentence looked at or of its words, to come from one passage

_FENCED = re.compile(r"^(`{3,}|~{3,}).*?(?:^\1`*~*|\Z)", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"\w+")


def cite(answer: str, looks: Sequence[Look], evidence: Sequence[Evidence]) -> tuple[tuple[int, int], ...]:
    """Where in an answer which passage is cited, in order: (place in its text, number of the passage from 1).

    A sentence comes from a passage when most of what its tokens looked at among the passages, or most of its words, is
    there. Sentences of one paragraph that come from the same passages are cited once, after the last. A refusal cites
    nothing.

    Args:
        looks: of the answer's tokens, in order.
        evidence: passages under the answer, in the order of their numbers.
    """
    if not evidence or only_refuses(answer):
        return ()
    shares = _shares(answer, looks, evidence)
    runs: list[tuple[int, list[int], bool]] = []
    for start, end, ends_paragraph in sentences(answer):
        cited = _sources(answer[start:end], [share for place, share in shares if start <= place < end], evidence)
        if runs and runs[-1][1] == cited and not runs[-1][2]:
            runs.pop()
        runs.append((end, cited, ends_paragraph))
    return tuple((end, number) for end, cited, _ in runs for number in cited)


def sentences(text: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether a line ends with it) of each sentence that has a word; code in fences has none."""
    start, text = 0, _FENCED.sub(lambda code: "\n" * len(code[0]), text)
    lines = (found.start() for found in re.finditer("\n", text))
    for end in sorted({*sentence_ends(text), *lines, len(text.rstrip())}):
        if end > start and _WORD.search(text[start:end]):
            yield start, end, text[end : end + 1] in ("", "\n")
        start = max(start, end)


def _shares(answer: str, looks: Sequence[Look], evidence: Sequence[Evidence]) -> list[tuple[int, list[float]]]:
    """(place in the answer, share of its attention on each passage) of each token."""
    holds = {(e.document, *region): number for number, e in enumerate(evidence) for region in e.regions}
    text = "".join(look.text for look in looks)
    place = -text.find(answer) if answer in text else -(len(text) - len(text.lstrip()))
    found = []
    for look in looks:
        share = [0.0] * len(evidence)
        for document, memory, region, part in look.places:
            if (number := holds.get((document, memory, region))) is not None:
                share[number] += part
        blank = len(look.text) - len(look.text.lstrip())  # a word belongs to the sentence that it begins
        found.append((place + min(blank, max(0, len(look.text) - 1)), share))
        place += len(look.text)
    return found


def _sources(sentence: str, shares: Sequence[Sequence[float]], evidence: Sequence[Evidence]) -> list[int]:
    """Numbers of the passages that a sentence comes from, the most important first."""
    looked = [sum(column) / len(shares) for column in zip(*shares, strict=True)] if shares else [0.0] * len(evidence)
    total = sum(looked)
    words = set(_WORD.findall(sentence.lower())) - STOP_WORDS
    scores = []
    for number, (item, look) in enumerate(zip(evidence, looked, strict=True), start=1):
        share = look / total if total >= LEAST_LOOK else 0.0
        held = len(words & set(_WORD.findall(item.text.lower()))) / len(words) if words else 0.0
        if max(share, held) >= HALF:
            scores.append((share + held, -number))
    best = sorted(scores, reverse=True)[:MOST]
    return [-number for score, number in best if score >= 0.8 * best[0][0]]
