"""Answers as quotations: the words of a text in which an answer stands, from what the question names to its end.

A small model cannot put an answer into words of its own, but it can copy. So it learns to answer with the passage's
own words: it finds a word of the question in the text and goes on from there. Questions without a question set come
from any text: some words of a sentence ask for the others, the inverse cloze task (Lee et al. 2019, arXiv 1906.00300).
"""

import random
import re
from collections.abc import Collection, Iterator

from app.tasks.questions import passage as taken_apart
from app.train.pretrain.corpus import SAID, Passage, Question

REACH = 8  # words before the answer in which a word of the question is looked for
LONGEST = 14  # words of a quotation whose end the answer does not tell
_WORD = re.compile(r"\w+")
_ENDING = re.compile(r"(?:ing|ed|es|s|ly|d|e)$")
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?]+[\"”’')\]]*(?=\s|$)|(?=\n)|$)")
_COMMON = frozenset(
    "a an the of in on at to for and or but nor so as if by with from into than then that this these those it its "
    "is are was were be been being am do does did done have has had having not no yes who whom whose what which "
    "when where why how he she they we you i his her hers their them him me my our us your there here about after "
    "before because can could will would shall should may might must up down out over all any some one very too "
    "also only".split()
)
_ASKING = ("Who", "What", "Where", "When", "Why", "How", "Which", "What did", "Who was", "How did", "What was")


def _stem(word: str) -> str:
    return _ENDING.sub("", word.lower())


def sentence_places(text: str) -> list[tuple[int, int]]:
    """(start, end) of the sentences and lines of a text."""
    return [m.span() for m in _SENTENCE.finditer(text)]


def asked_words(question: str) -> frozenset[str]:
    """The stems of the words of a question that say what it is about."""
    return frozenset(_stem(word) for word in _WORD.findall(question) if word.lower() not in _COMMON)


def _quotation(text: str, start: int, end: int, sentence_start: int, asked: Collection[str]) -> tuple[int, int]:
    """The span from the farthest asked word in reach before the answer, if there is one, to the answer's end."""
    before = list(_WORD.finditer(text, sentence_start, start))[-REACH:]
    return next((m.start() for m in before if _stem(m[0]) in asked), start), end


def quoted(passage: Passage) -> Passage:
    """The passage with its answers as quotations from its text; without the questions that no sentence answers.

    What no text says stays as it is. Of several places that hold an answer, the one whose sentence shares most
    words with the question is taken; an answer in other words is the sentence that shares most with both, from a word
    asked for on.
    """
    sentences = sentence_places(passage.text)
    stems = [{_stem(word) for word in _WORD.findall(passage.text[start:end])} for start, end in sentences]
    questions = []
    for question in passage.questions:
        if question.answer in SAID:
            questions.append(question)
        elif span := _place(passage.text, question, sentences, stems):
            answer = taken_apart.flat(passage.text[slice(*span)])
            questions.append(Question(question.question, answer, question.answers or (question.answer,)))
    return Passage(passage.text, tuple(questions), passage.name)


def _place(
    text: str, question: Question, sentences: list[tuple[int, int]], stems: list[set[str]]
) -> tuple[int, int] | None:
    """The quotation that answers a question; `stems` are those of each sentence's words. None where none does."""
    asked, answered = asked_words(question.question), asked_words(question.answer)
    places = list(re.finditer(rf"(?<!\w){re.escape(question.answer)}(?!\w)", text, re.IGNORECASE))
    found = [(len(asked & stems[i]), -m.start(), i) for m in places for i in _holding(sentences, m.start())]
    if found:
        _, start, i = max(found)
        return _quotation(text, -start, -start + len(question.answer), sentences[i][0], asked)
    worth = [len(asked & held) + 2 * len(answered & held) for held in stems]
    if not worth or max(worth) < 2:
        return None
    start, end = sentences[worth.index(max(worth))]
    words = list(re.compile(r"\S+").finditer(text, start, end))
    first = next((n for n, m in enumerate(words) if asked & {_stem(w) for w in _WORD.findall(m[0])}), 0)
    part = words[first : first + LONGEST]
    return part[0].start(), part[-1].end()


def _holding(sentences: list[tuple[int, int]], place: int) -> Iterator[int]:
    return (i for i, (start, end) in enumerate(sentences) if start <= place < end)


def inverse_cloze(text: str, rng: random.Random) -> Iterator[Question]:
    """Questions made of some words of a sentence, whose answer is a quotation of others; sentences in random order."""
    for sentence in taken_apart.shuffled(rng, taken_apart.Passage(text).sentences):
        words = list(re.compile(r"\w[\w'’-]*").finditer(text, sentence.start, sentence.end))
        if not 6 <= len(words) <= 48:
            continue
        first = rng.randrange(len(words))
        last = min(len(words) - 1, first + rng.randrange(5))
        begin = max(0, first - rng.randrange(2, 12))
        kept = [
            _asked_as(m[0], rng)
            for i, m in enumerate(words[begin : last + rng.randrange(2, 12)], begin)
            if not first <= i <= last and rng.random() < (0.35 if m[0].lower() in _COMMON else 0.75)
        ]
        asked = asked_words(" ".join(kept))
        if len(asked) < 2:
            continue
        if rng.random() < 0.3:
            rng.shuffle(kept)
        span = _quotation(text, words[first].start(), words[last].end(), sentence.start, asked)
        yield Question(f"{rng.choice(_ASKING)} {' '.join(kept)}?", taken_apart.flat(text[slice(*span)]))


def _asked_as(word: str, rng: random.Random) -> str:
    """A word as a question may put it: "walked" as "walk"."""
    return word[:-2] if word.endswith("ed") and len(word) > 4 and rng.random() < 0.5 else word
