"""Texts and questions on disk: books, code, question answering sets. The layout is that of a data folder with
`books/index.tsv`, `qa/*.jsonl.xz` and `code/`."""

import csv
import hashlib
import lzma
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.errors import InputError
from app.tasks.scoring import NO_ANSWER, passage_of
from app.wellformed import parse_json

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


# Sets whose licence lets a model trained on them be given away (the data folder's MANIFEST has the details).
FREE_QA = (
    "adversarialqa_600",
    "boolq_2k_train",
    "covidqa_part_a",
    "fairytaleqa_train",
    "nq_oracle",
    "qamr_dev",
    "quoref_200",
    "ropes_200",
    "squad_dev_part_a",
)
VALIDATION_QA = ("fairytaleqa_valid",)  # held back whole
HELD_BACK_ONE_IN = 16  # documents of the other sets
CODE_TO_LEARN, CODE_HELD_BACK = "*.zip", "*.tar.gz"
SAID = (NO_ANSWER, "yes", "no", "Yes", "No")  # answers that are not in the words of a text

Split = Literal["train", "valid"]


@dataclass(frozen=True)
class Book:
    name: str
    text: str


@dataclass(frozen=True)
class Question:
    """`answer` is what to learn; `answers` are all reference answers of a question set."""

    question: str
    answer: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A text, the questions about it, the set that they are from, and what the text is a piece of."""

    text: str
    questions: tuple[Question, ...]
    name: str = ""
    title: str = ""


def books(data: Path, split: str) -> Iterator[Book]:
    """The books of one split (train, valid)."""
    with (data / "books" / "index.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    for row in rows:
        yield Book(row["file"], lzma.open(data / "books" / row["file"], "rt", encoding="utf-8").read())


def code_files(data: Path, pattern: str = "*") -> Iterator[str]:
    """The Python files of the codebases whose archive's name fits."""
    for path in sorted((data / "code").glob(pattern)):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from (archive.read(n).decode("utf-8") for n in archive.namelist() if n.endswith(".py"))
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.name.endswith(".py") and (file := archive.extractfile(member)):
                        yield file.read().decode("utf-8")


def reference_answers(entry: dict[str, Any]) -> tuple[str, ...]:
    """The reference answers, the shortest first."""
    if entry.get("answerable") is False:
        return (NO_ANSWER,)
    answers = [a["text"] if isinstance(a, dict) else a for a in entry["answers"]]
    return tuple(dict.fromkeys(answer.strip() for answer in sorted(answers, key=len)))


def is_held_back(entry: dict[str, Any]) -> bool:
    """Whether a document of a question set is for validation: by a hash of its title, or of its text without one."""
    name = " ".join(str(entry.get("title") or entry["text"]).split())
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_BACK_ONE_IN == 0


def entries(data: Path, name: str, folder: str = "qa") -> Iterator[dict[str, Any]]:
    """The lines of a file as objects.

    Raises:
        InputError: the file is missing, damaged, or a line is no object.
    """
    path, number = data / folder / f"{name}.jsonl.xz", 0
    try:
        for line in lzma.open(path, "rt", encoding="utf-8"):
            number += 1
            entry = parse_json(line)
            if not isinstance(entry, dict):
                raise ValueError("no object")
            yield entry
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise InputError(f"{path}, line {number}: cannot be read as packed JSON lines: {error}") from error


def held_back(data: Path, sets: tuple[str, ...] = FREE_QA) -> Seen:
    """The runs of words of all that is for validation, books too: nothing that is trained on may hold one."""
    seen = Seen()
    for passage in passages(data, sets, "valid"):
        seen.add(passage.text)
    for book in books(data, "valid"):
        seen.add(book.text)
    return seen


def passages(
    data: Path, sets: tuple[str, ...] = FREE_QA, split: Split = "train", without: Seen | None = None
) -> Iterator[Passage]:
    """Passages with their questions; the shortest reference answer is the target.

    A story whose questions name the sections that hold the answer gives one passage for each choice of sections.

    Args:
        split: `train`, or `valid` for the documents that are held back.
        without: passages that share a run of words with these are left out.
    """
    for name in (*sets, *(VALIDATION_QA if split == "valid" else ())):
        for entry in entries(data, name):
            if (name in VALIDATION_QA or is_held_back(entry)) != (split == "valid"):
                continue
            asked: dict[str, list[Question]] = {}
            for qa in entry["qas"]:
                if (answers := reference_answers(qa)) and answers[0]:
                    question = Question(qa["question"].strip(), answers[0], answers)
                    asked.setdefault(passage_of(entry, qa), []).append(question)
            for text, questions in asked.items():
                if without is None or not without.shares(text):
                    yield Passage(text, tuple(questions), name, entry.get("title") or "")


def stories(data: Path, name: str = "babi_en10k_train") -> Iterator[Passage]:
    """Tiny made worlds (bAbI): each with its last question, and the lines before it without their numbers."""
    for entry in entries(data, name):
        qa = entry["qas"][-1]
        text = "\n".join(line.lstrip("0123456789 ") for line in entry["lines"][: qa["after_line"]])
        yield Passage(text, (Question(qa["question"].strip(), str(qa["answers"][0])),))


def instructions(data: Path, name: str = "dolly_3k") -> Iterator[Question]:
    """General instructions that need no text, with their answers."""
    for entry in entries(data, name, "instruct"):
        if not entry.get("input"):
            yield Question(entry["instruction"].strip(), entry["output"].strip())
