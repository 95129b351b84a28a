"""Texts and questions on disk: books, code, question answering sets. The layout is that of a data folder with
`books/index.tsv`, `qa/*.jsonl.xz` and `code/`."""

import csv
import json
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.passages import passage_of

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
NO_ANSWER = "The text does not say."


@dataclass(frozen=True)
class Book:
    name: str
    text: str


@dataclass(frozen=True)
class Question:
    question: str
    answer: str


@dataclass(frozen=True)
class Passage:
    """A text and the questions about it."""

    text: str
    questions: tuple[Question, ...]


def books(data: Path, split: str) -> Iterator[Book]:
    """The books of one split (train, valid)."""
    with (data / "books" / "index.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == split]
    for row in rows:
        yield Book(row["file"], lzma.open(data / "books" / row["file"], "rt", encoding="utf-8").read())


def code_files(data: Path) -> Iterator[str]:
    """The Python files of the codebases."""
    for path in sorted((data / "code").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(n).decode("utf-8") for n in archive.namelist() if n.endswith(".py"))
    for path in sorted((data / "code").glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".py") and (file := archive.extractfile(member)):
                    yield file.read().decode("utf-8")


def _answer(entry: dict[str, Any]) -> str | None:
    if entry.get("answerable") is False:
        return NO_ANSWER
    answers = [a["text"] if isinstance(a, dict) else a for a in entry["answers"]]
    return min(answers, key=len).strip() if answers else None


def passages(data: Path, sets: tuple[str, ...] = FREE_QA) -> Iterator[Passage]:
    """Passages with their questions; the shortest reference answer is the target.

    A story whose questions name the sections that hold the answer gives one passage for each choice of sections.
    """
    for name in sets:
        for line in lzma.open(data / "qa" / f"{name}.jsonl.xz", "rt", encoding="utf-8"):
            entry = json.loads(line)
            asked: dict[str, list[Question]] = {}
            for qa in entry["qas"]:
                if answer := _answer(qa):
                    asked.setdefault(passage_of(entry, qa), []).append(Question(qa["question"].strip(), answer))
            for text, questions in asked.items():
                yield Passage(text, tuple(questions))


def instructions(data: Path, name: str = "dolly_3k") -> Iterator[Question]:
    """General instructions that need no text, with their answers."""
    for line in lzma.open(data / "instruct" / f"{name}.jsonl.xz", "rt", encoding="utf-8"):
        entry = json.loads(line)
        if not entry.get("input"):
            yield Question(entry["instruction"].strip(), entry["output"].strip())
