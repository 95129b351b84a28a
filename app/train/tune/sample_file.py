"""What makes a sample, and the file that samples are written to."""

import json
import lzma
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import ConfigError, InputError
from app.tasks.questions import KINDS as ASKED_KINDS
from app.tasks.questions import TextQuestion
from app.train.tune.instructions import Entry

KINDS = (*ASKED_KINDS, "several", "absent")
LAYOUTS = ("app", "chat")
CHAT_OPENING = "Read this text, then answer the question below it.\n\n"


@dataclass(frozen=True)
class SampleConfig:
    """How samples are made.

    Attributes:
        count: samples to make.
        lengths: in tokens, document and turns together; in turn.
        depths: where answers shall stand, 0 the start and 1 the end of the document, about as often at each.
        kinds: of questions, see KINDS; those that a document does not give are left out.
        turns: most questions in one sample.
        validation: share of each document that is kept for validation samples.
        layout: `app`: the document stands beside the messages, as the app reads it; `chat`: in the first message.
    """

    count: int = 100
    lengths: tuple[int, ...] = (4096,)
    depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    kinds: tuple[str, ...] = KINDS
    turns: int = 3
    validation: float = 0.0
    layout: str = "app"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.turns < 1:
            raise ConfigError(f"count {self.count}, turns {self.turns}: give at least 1 of each")
        if not self.lengths or min(self.lengths) < 256:
            raise ConfigError(f"lengths {list(self.lengths)}: give at least 256 tokens")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ConfigError(f"depths {list(self.depths)}: give numbers from 0 (start) to 1 (end)")
        if unknown := [kind for kind in self.kinds if kind not in KINDS] or (not self.kinds and ["none"]):
            raise ConfigError(f"kinds {', '.join(unknown)}: not known; choose from {', '.join(KINDS)}")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout {self.layout}: not known; choose {' or '.join(LAYOUTS)}")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation {self.validation}: give a share from 0 to below 1")


@dataclass(frozen=True)
class Sample:
    """A document and questions about it.

    Attributes:
        turns: places are characters of `document`; of an `absent` question start and end are -1.
        tokens: of the whole sample, as the model of the tokenizer reads it.
        wanted: the length asked for.
        token_places: of each turn's answer in the document's tokens; None for `absent`.
    """

    document: str
    source: str
    turns: tuple[TextQuestion, ...]
    tokens: int
    wanted: int
    token_places: tuple[tuple[int, int] | None, ...]

    def line(self, layout: str, split: str) -> dict[str, Any]:
        """What is written: messages and the facts about them; in `chat` places count from the first message on."""
        entry = laid_out(self.source, self.document, self.turns, layout)
        by = len(CHAT_OPENING) if layout == "chat" else 0
        asked = [self._facts(q, tokens, by) for q, tokens in zip(self.turns, self.token_places, strict=True)]
        facts = {"source": self.source, "split": split, "tokens": self.tokens, "questions": asked}
        messages = [{"role": role, "content": content} for role, content in entry.turns]
        return ({"document": entry.text} if entry.text else {}) | {"messages": messages, "meta": facts}

    def _facts(self, question: TextQuestion, tokens: tuple[int, int] | None, by: int) -> dict[str, Any]:
        if tokens is None:
            return {"kind": question.kind, "depth": None, "answer_chars": None, "answer_tokens": None, "evidence": []}
        moved = question.moved(by)
        return {
            "kind": question.kind,
            "depth": round(question.start / len(self.document), 3),
            "answer_chars": [moved.start, moved.end],
            "answer_tokens": list(tokens),
            "evidence": [list(place) for place in moved.places],
        }


@dataclass
class Made:
    """What came out.

    Attributes:
        dropped: why stretches or questions were not used, and how often.
    """

    training: list[Sample] = field(default_factory=list)
    validation: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(q.kind for sample in self.training + self.validation for q in sample.turns)

    @property
    def short(self) -> int:
        """Samples shorter than three quarters of the length asked for, because the documents hold no more."""
        return sum(4 * sample.tokens < 3 * sample.wanted for sample in self.training + self.validation)

    def depths(self, parts: int = 5) -> list[int]:
        """How many answers stand in each of `parts` equal parts of their documents."""
        found = [0] * parts
        for sample in self.training + self.validation:
            for question in sample.turns:
                if question.start >= 0:
                    found[min(parts - 1, parts * question.start // len(sample.document))] += 1
        return found


def laid_out(source: str, document: str, questions: Sequence[TextQuestion], layout: str) -> Entry:
    """A document and its questions as training reads them back."""
    turns = [(role, text) for q in questions for role, text in (("user", q.question), ("assistant", q.answer))]
    if layout == "app":
        return Entry(source, document, tuple(turns))
    turns[0] = ("user", f"{CHAT_OPENING}{document}\n\n{turns[0][1]}")
    return Entry(source, turns=tuple(turns))


def write(samples: Sequence[Sample], path: Path, layout: str, split: str) -> None:
    """Write one JSON object a line, packed when the name ends in .xz; the file appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            lzma.open(beside, "wt", encoding="utf-8")
            if path.suffix == ".xz"
            else beside.open("w", encoding="utf-8") as file
        ):
            for sample in samples:
                file.write(json.dumps(sample.line(layout, split), ensure_ascii=False) + "\n")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another file with --out") from error
    finally:
        with suppress(OSError):
            beside.unlink()
