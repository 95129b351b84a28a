"""Long-context instruction samples from documents: questions that a text answers itself, with the answer's place.

In the spirit of LongAlpaca-plus, but made by rules (app/train/questions), so that every answer is known to stand where
it is said to stand. A sample is a stretch of one document, or of several when one is too short, and a few turns.
"""

import json
import lzma
import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import ConfigError, InputError
from app.train.contexts import Book, Shelf
from app.train.corpus import NO_ANSWER
from app.train.encoding import Encoder
from app.train.instructions import Entry
from app.train.overlap import Seen
from app.train.questions import KINDS as ASKED_KINDS
from app.train.questions import TextQuestion, flat, questions
from app.train.sources import read_sources

KINDS = (*ASKED_KINDS, "several", "absent")
LAYOUTS = ("app", "chat")
CHAT_OPENING = "Read this text, then answer the question below it.\n\n"
_SHORT = ("who_said", "who_did", "who_is", "named", "fact", "number", "cloze", "chapter_title", "defined_in",
          "method_of", "constant", "imported_from", "base_class")  # fmt: skip
_QUOTING = ("who_said", "who_did", "quote", "continue", "next_sentence", "number", "docstring", "defined_in",
            "method_of", "arguments", "constant", "base_class")  # fmt: skip
_MOST = 12  # questions of a kind made for each stretch
_ELSEWHERE_CHARS = 12_000
_TRIES = 6
_USUAL_TURN, _LONGEST_TURN = 72, 160  # tokens of a question and its answer
_LONGEST_LIST = 400


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
    """

    count: int = 100
    lengths: tuple[int, ...] = (4096,)
    depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    kinds: tuple[str, ...] = KINDS
    turns: int = 3
    validation: float = 0.0
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
        """What is written: messages, and the facts about them.

        Args:
            layout: `app`: the document stands beside the messages, as the app reads it before the chat; `chat`: it
                stands in the first message, and places count from the start of that message.
        """
        turns = [{"role": role, "content": text} for q in self.turns for role, text in _roles(q)]
        by = 0
        if layout == "chat":
            by = len(CHAT_OPENING)
            turns[0]["content"] = f"{CHAT_OPENING}{self.document}\n\n{turns[0]['content']}"
        asked = [
            self._facts(question, tokens, by) for question, tokens in zip(self.turns, self.token_places, strict=True)
        ]
        facts = {"source": self.source, "split": split, "tokens": self.tokens, "questions": asked}
        return ({"document": self.document} if layout == "app" else {}) | {"messages": turns, "meta": facts}

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


def make(
    books: Sequence[Book], tokenizer: Any, config: SampleConfig, on_progress: Callable[[int, int], None] | None = None
) -> Made:
    """Make samples of documents, without two that ask the same.

    Validation samples come from the end of each document; no run of 12 words of them stands in a training sample.

    Args:
        on_progress: called with (samples made, of how many).

    Raises:
        InputError: no question of the kinds asked for can be made.
    """
    encoder = Encoder(tokenizer)
    shelves = [Shelf(books, encoder.plain)]
    kept_back = round(config.count * config.validation)
    if kept_back:
        sides = [book.cut(config.validation) for book in books]
        shelves = [Shelf([side[i] for side in sides], encoder.plain) for i in (0, 1)]
    made, asked, contexts = Made(), Seen(), Seen()
    tell = on_progress or (lambda done, total: None)
    if kept_back:
        validation = _Maker(shelves[1], encoder, config, random.Random(f"{config.seed}-validation"), asked, made)
        for number in range(kept_back):
            if sample := validation.sample(number, None):
                made.validation.append(sample)
                contexts.add(sample.document)
            tell(number + 1, config.count)
    training = _Maker(shelves[0], encoder, config, random.Random(f"{config.seed}-training"), asked, made)
    for number in range(config.count - kept_back):
        if sample := training.sample(number, contexts if kept_back else None):
            made.training.append(sample)
        tell(kept_back + number + 1, config.count)
    if not made.training:
        names = ", ".join(book.name for book in books[:5])
        raise InputError(
            f"no question of the kinds {', '.join(config.kinds)} could be made from {names}; "
            "give longer documents, other kinds or shorter lengths"
        )
    return made


def read_books(paths: Sequence[Path]) -> list[Book]:
    """Documents to make samples of: whatever ingestion reads, and texts packed as .xz; of a folder of texts each file.

    Raises:
        InputError, ConfigError: one cannot be read, or holds instructions.
    """
    books = []
    for source in read_sources(paths):
        if source.kind == "code":
            books.append(Book(source.name, "".join(entry.text for entry in source.entries)))
            continue
        if any(entry.turns for entry in source.entries):
            raise InputError(f"{source.name}: holds instructions; samples are made of texts, PDFs and code")
        books += [Book(entry.where, entry.text) for entry in source.entries]
    return books


class _Maker:
    """Makes the samples of one side."""

    def __init__(
        self, shelf: Shelf, encoder: Encoder, config: SampleConfig, rng: random.Random, asked: Seen, made: Made
    ) -> None:
        self.shelf, self.config, self.rng, self.asked, self.made = shelf, config, rng, asked, made
        self.encoder = encoder
        self.times: Counter[str] = Counter()
        self.placed: Counter[float] = Counter()  # answers nearest to each depth wanted

    def sample(self, number: int, forbidden: Seen | None) -> Sample | None:
        """The next sample; None when several stretches in a row give none."""
        length = self.config.lengths[number % len(self.config.lengths)]
        room = min(self.config.turns * _USUAL_TURN, length // 6)
        for _ in range(_TRIES):
            document, source, elsewhere = self._stretch(length - room)
            if forbidden is not None and forbidden.shares(document):
                self.made.dropped["stretches that share 12 words with validation"] += 1
                continue
            turns = self._turns(document, elsewhere)
            if turns and (sample := self._fitted(document, source, turns, length)):
                for question in sample.turns:
                    self.asked.add(_line(question))
                    self.times[question.kind] += 1
                return sample
        self.made.dropped["samples for which no new question was found"] += 1
        return None

    def _stretch(self, tokens: int) -> tuple[str, str, str]:
        """(document, its name, text from elsewhere) of about `tokens` tokens, filled up from other documents."""
        shelf = self.shelf
        number, first, end = shelf.draw(self.rng, tokens)
        book = shelf.books[number]
        parts, names = [book.text[first:end]], [book.name]
        rest = book.text[:first] if first > len(book.text) - end else book.text[end:]
        used, room = {number}, tokens - shelf.length(parts[0])
        while room > tokens // 8 and len(used) < len(shelf.books):
            other = self.rng.choice([i for i in range(len(shelf.books)) if i not in used])
            used.add(other)
            piece = shelf.beginning(other, room)
            parts.insert(self.rng.randrange(len(parts) + 1), piece)
            names.append(shelf.books[other].name)
            room -= shelf.length(piece) + 2
        if len(rest) < _ELSEWHERE_CHARS // 4:
            others = [other.text for i, other in enumerate(shelf.books) if i not in used]
            rest = self.rng.choice(others) if others else ""
        start = self.rng.randrange(max(1, len(rest) - _ELSEWHERE_CHARS))
        document = "\n\n".join(part.strip("\n") for part in parts) + "\n"
        return document, " + ".join(names), rest[start : start + _ELSEWHERE_CHARS]

    def _turns(self, document: str, elsewhere: str) -> list[TextQuestion]:
        """Questions for one document: of kinds that are rare so far, answers near the depths wanted, apart."""
        plain = [kind for kind in self.config.kinds if kind in ASKED_KINDS]
        helpers = _SHORT if "several" in self.config.kinds else ()
        found = questions(document, self.rng, kinds=list(dict.fromkeys([*plain, *helpers])), most=_MOST)
        fresh = [q for q in found if not self.asked.shares(_line(q))]
        self.made.dropped["questions like others asked before"] += len(found) - len(fresh)
        pools = {kind: [q for q in fresh if q.kind == kind] for kind in plain}
        pools["several"] = self._several(fresh) if "several" in self.config.kinds else []
        pools["absent"] = self._absent(document, elsewhere) if "absent" in self.config.kinds else []
        chosen: list[TextQuestion] = []
        while len(chosen) < self.config.turns:
            apart = {k: [q for q in pool if _apart(q, chosen)] for k, pool in pools.items()}
            kinds = [kind for kind, pool in apart.items() if pool]
            if not kinds:
                break
            here = Counter(q.kind for q in chosen)
            kind = min(kinds, key=lambda kind: (here[kind], self.times[kind], self.rng.random()))
            wanted = min(self.config.depths, key=lambda depth: self.placed[depth])
            question = min(apart[kind], key=lambda q: abs(q.start / len(document) - wanted))
            pools[kind].remove(question)
            if self._fits(question):
                chosen.append(question)
                if question.start >= 0:
                    found = question.start / len(document)
                    self.placed[min(self.config.depths, key=lambda depth: abs(depth - found))] += 1
        return self.rng.sample(chosen, len(chosen))

    def _fits(self, question: TextQuestion) -> bool:
        longest = _LONGEST_LIST if question.kind == "contents" else _LONGEST_TURN
        return self.shelf.length(_line(question)) <= longest

    def _several(self, fresh: Sequence[TextQuestion]) -> list[TextQuestion]:
        """Two or three short questions as one, their answers far apart in the text."""
        short = [q for q in fresh if q.kind in _SHORT]
        made = []
        for _ in range(4):
            by_kind = {q.kind: q for q in self.rng.sample(short, len(short))}  # kinds that differ, as far as they can
            picked = self.rng.sample(list(by_kind.values()), min(len(by_kind), self.rng.choice((2, 2, 3))))
            if len(picked) < 2 or any(not _apart(q, [p for p in picked if p is not q]) for q in picked):
                continue
            asked = "\n".join(f"{i}. {q.question}" for i, q in enumerate(picked, start=1))
            answer = "\n".join(f"{i}. {q.answer}" for i, q in enumerate(picked, start=1))
            places = tuple((q.start, q.end) for q in picked[1:]) + tuple(p for q in picked for p in q.places)
            first = picked[0]
            question = f"Answer these questions about the text:\n{asked}"
            made.append(TextQuestion("several", question, answer, first.start, first.end, places))
        return made

    def _absent(self, document: str, elsewhere: str) -> list[TextQuestion]:
        """Questions that another text answers and this one does not."""
        there = flat(document)
        found = questions(elsewhere, self.rng, kinds=_QUOTING, most=3)
        asked = [TextQuestion("absent", q.question, NO_ANSWER, -1, -1) for q in found if is_absent(q, there)]
        return [q for q in asked if not self.asked.shares(_line(q))]

    def _fitted(self, document: str, source: str, turns: list[TextQuestion], length: int) -> Sample | None:
        """The sample with as many turns as the length allows."""
        while turns:
            entry = Entry(source, document, tuple((r, text) for question in turns for r, text in _roles(question)))
            tokens = len(self.encoder(entry).token_ids)
            if tokens <= length:
                offsets = self.shelf.token_places(document)
                places = tuple(_token_place(offsets, q) for q in turns)
                return Sample(document, source, tuple(turns), tokens, length, places)
            turns = turns[:-1]
        return None


def _roles(question: TextQuestion) -> Iterator[tuple[str, str]]:
    yield "user", question.question
    yield "assistant", question.answer


def _line(question: TextQuestion) -> str:
    return f"{question.question} {question.answer}"


def _spans(question: TextQuestion) -> list[tuple[int, int]]:
    return [(question.start, question.end), *question.places]


def _apart(question: TextQuestion, others: Sequence[TextQuestion]) -> bool:
    """Whether a question rests on other parts of the text than the others do, so that none gives another away."""
    if question.start < 0:
        return all(other.kind != "absent" for other in others)
    return not any(
        start < b and a < end
        for other in others
        if other.start >= 0
        for a, b in _spans(other)
        for start, end in _spans(question)
    )


def _token_place(offsets: Sequence[tuple[int, int]], question: TextQuestion) -> tuple[int, int] | None:
    """The tokens that the answer's characters stand in."""
    if question.start < 0:
        return None
    first = bisect_right(offsets, question.start, key=lambda offset: offset[1])
    last = bisect_right(offsets, question.end - 1, key=lambda offset: offset[0])
    return first, last


def is_absent(question: TextQuestion, there: str) -> bool:
    """Whether what a question quotes or names stands nowhere in a text, `there` being on one line.

    Of a quotation no run of five words may stand there; of code, not the name.
    """
    if named := re.findall("`([^`]+)`", question.question):
        return all(name not in there for name in named)
    quoted = re.findall('"(.+)"', question.question) or [question.question]
    words = quoted[0].replace("____", "").split()
    return len(words) >= 5 and all(" ".join(words[i : i + 5]) not in there for i in range(len(words) - 4))


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
