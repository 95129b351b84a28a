"""What readings are made of: question sets by name, prose, code and talk, without what is held back."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.tasks.scoring import f1
from app.train.pretrain import corpus
from app.train.pretrain.corpus import NO_ANSWER, Passage, Question, Seen

READER_QA = (*corpus.FREE_QA, "pubmedqa_train")
PROSE_BOOKS = 72
PROSE_CHARS = 60_000  # of each book
WINDOW_CHARS = 900  # of a long article around an answer
LONG_CHARS = 4000
FEWEST_PIECES = 4  # of a text, to be shown beside each other


@dataclass(frozen=True)
class Talk:
    """An instruction, what it is about ("" for nothing), and the answer."""

    question: str
    text: str
    answer: str


@dataclass
class Material:
    """Passages by question set, neighbours of stories, prose of books, files of code, talk."""

    passages: dict[str, list[Passage]]
    stories: list[Passage] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)

    def texts(self) -> dict[str, list[list[Passage]]]:
        """By set, the passages of each article or story that has several."""
        found: dict[str, list[list[Passage]]] = {}
        for name, passages in self.passages.items():
            pieces: dict[str, list[Passage]] = {}
            for passage in passages:
                pieces.setdefault(passage.title, []).append(passage)
            found[name] = [p for title, p in pieces.items() if title and len(p) >= FEWEST_PIECES]
        return found


def material(data: Path, split: corpus.Split = "train", seed: int = 0) -> Material:
    """Read the data folder; what is for validation never comes into `train`."""
    training, rng = split == "train", random.Random(f"material-{seed}")
    apart = corpus.held_back(data) if training else None
    found: dict[str, list[Passage]] = {}
    for passage in corpus.passages(data, READER_QA, split, apart):
        passage = replace(passage, questions=tuple(map(agreed, passage.questions)))
        if len(passage.text) > LONG_CHARS:
            for window in windows(passage, rng):
                found.setdefault(passage.name, []).append(window)
        else:
            found.setdefault(passage.name, []).append(passage)
    return Material(
        found,
        stories=list(_stories(data, split, apart)),
        prose=list(_prose(data, split, apart, rng)),
        code=list(corpus.code_files(data, corpus.CODE_TO_LEARN if training else corpus.CODE_HELD_BACK)),
        talks=list(_talks(data)) if training else [],
    )


def windows(passage: Passage, rng: random.Random) -> list[Passage]:
    """A long article as stretches of whole lines or sentences, each with the questions whose answers stand in it."""
    ends = [m.end() for m in re.finditer(r"(?<=[.!?])\s+|\n+", passage.text)] + [len(passage.text)]
    parts: list[str] = []
    start = 0
    for end, following in zip(ends, [*ends[1:], len(passage.text)], strict=True):
        if following - start > WINDOW_CHARS or end == len(passage.text):
            parts.append(passage.text[start:end])
            start = end
    made = []
    for part in parts:
        asked = tuple(q for q in passage.questions if q.answer in part and len(q.answer) > 3)
        if asked:
            made.append(replace(passage, text=part.strip(), questions=asked))
    return made


def _stories(data: Path, split: corpus.Split, apart: Seen | None, name: str = "fairytaleqa_train") -> list[Passage]:
    """Two to five neighbouring sections of a story with the questions about them."""
    made = []
    for entry in corpus.entries(data, name):
        if corpus.is_held_back(entry) != (split == "valid"):
            continue
        sections = {str(s["n"]): s["text"] for s in entry.get("sections") or ()}
        numbers, rng, at = list(sections), random.Random(str(entry.get("title"))), 0
        while at < len(numbers):
            here = numbers[at : at + rng.choice((2, 3, 3, 4, 5))]
            at += len(here)
            asked = []
            for qa in entry["qas"]:
                named = [n.strip() for n in str(qa.get("sections") or "").split(",") if n.strip()]
                answers = corpus.reference_answers(qa)
                if named and set(named) <= set(here) and answers and answers[0]:
                    asked.append(agreed(Question(qa["question"].strip(), answers[0], answers)))
            text = "\n".join(sections[n] for n in here)
            if asked and (apart is None or not apart.shares(text)):
                made.append(Passage(text, tuple(asked), "story"))
    return made


def _prose(data: Path, split: corpus.Split, apart: Seen | None, rng: random.Random) -> list[str]:
    """Stretches of books, paragraphs apart from what is held back."""
    read = list(corpus.books(data, split))
    for book in rng.sample(read, min(PROSE_BOOKS, len(read))):
        start = rng.randrange(max(1, len(book.text) - PROSE_CHARS))
        parts = book.text[start : start + PROSE_CHARS].split("\n\n")[1:-1]
        yield "\n".join(" ".join(p.split()) for p in parts if apart is None or len(p) < 48 or not apart.shares(p))


def _talks(data: Path, name: str = "dolly_3k") -> list[Talk]:
    made = []
    for entry in corpus.entries(data, name, "instruct"):
        text, said = (entry.get("input") or "").strip(), entry["output"].strip()
        if len(text) <= 2400 and 2 <= len(said) <= (700 if text else 450):
            made.append(Talk(entry["instruction"].strip(), text, said))
    return made


def agreed(question: Question) -> Question:
    """The question with that reference answer that has most in common with the others; of equals the shortest."""
    if len(question.answers) < 3:
        return question
    common = {a: sum(f1(a, other) for other in question.answers) for a in question.answers}
    best = max(question.answers, key=lambda answer: (round(common[answer], 3), -len(answer)))
    return Question(question.question, best, question.answers)


def answered(passage: Passage) -> list[Question]:
    return [q for q in passage.questions if q.answer != NO_ANSWER]


def pick_set(rng: random.Random, weights: dict[str, float], passages: dict[str, Sequence[Passage]]) -> str:
    names = [name for name in weights if passages.get(name)]
    return rng.choices(names, [weights[name] for name in names])[0]
