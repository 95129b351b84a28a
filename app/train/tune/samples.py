"""Long-context instruction samples from documents: questions that a text answers itself, with the answer's place.

In the spirit of LongAlpaca-plus, but made by rules (app/tasks/questions), so that every answer is known to stand where
it is said to stand. A sample is a stretch of one document, or of several when one is too short, and a few turns.
"""

import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.errors import InputError
from app.tasks.questions import KINDS as ASKED_KINDS
from app.tasks.questions import TextQuestion, flat, questions
from app.train.pretrain.corpus import NO_ANSWER, Seen
from app.train.tune.contexts import Book, Shelf
from app.train.tune.packing import Encoder
from app.train.tune.sample_file import KINDS, Made, Sample, SampleConfig, laid_out
from app.train.tune.sources import read_sources

_SHORT = ("who_said", "who_did", "who_is", "named", "fact", "number", "cloze", "chapter_title", "defined_in",
          "method_of", "constant", "imported_from", "base_class")  # fmt: skip
_QUOTING = ("who_said", "who_did", "quote", "continue", "next_sentence", "number", "docstring", "defined_in",
            "method_of", "arguments", "constant", "base_class")  # fmt: skip
_MOST = 12  # questions of a kind made for each stretch
_ELSEWHERE_CHARS = 12_000
_TRIES, _GIVE_UP = 6, 5  # stretches for a sample; samples in a row that could not be made
_USUAL_TURN, _LONGEST_TURN = 72, 160  # tokens of a question and its answer
_LONGEST_LIST = 400


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
    if not all(shelf.books for shelf in shelves):
        raise InputError(
            f"{_named(books)}: too short to keep {config.validation} of it for validation; give longer ones"
        )
    made, asked, contexts = Made(), Seen(), Seen()
    tell = on_progress or (lambda done, total: None)
    if kept_back:
        rng = random.Random(f"{config.seed}-validation")
        maker = _Maker(shelves[1], encoder, config, rng, asked, made)
        made.validation = maker.samples(kept_back, None, lambda done: tell(done, config.count))
        for sample in made.validation:
            contexts.add(sample.document)
    maker = _Maker(shelves[0], encoder, config, random.Random(f"{config.seed}-training"), asked, made)
    made.training = maker.samples(
        config.count - kept_back, contexts if kept_back else None, lambda done: tell(kept_back + done, config.count)
    )
    if not made.training or (kept_back and not made.validation):
        kinds = "" if config.kinds == KINDS else f" of the kinds {', '.join(config.kinds)}"
        side = "validation" if made.training else "training"
        raise InputError(
            f"{_named(books)}: no question{kinds} could be made for {side}; give longer documents, other kinds or "
            "shorter lengths"
        )
    return made


def _named(books: Sequence[Book]) -> str:
    names = [book.name for book in books]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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

    def samples(self, count: int, forbidden: Seen | None, tell: Callable[[int], None]) -> list[Sample]:
        """As many samples as can be made, at most `count`."""
        made: list[Sample] = []
        failed = 0
        for number in range(count):
            sample = self._sample(number, forbidden)
            made += [sample] if sample else []
            failed = 0 if sample else failed + 1
            tell(number + 1)
            if failed == _GIVE_UP:
                self.made.dropped["samples that were not tried, as no new question was found"] += count - number - 1
                break
        return made

    def _sample(self, number: int, forbidden: Seen | None) -> Sample | None:
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
            tokens = len(self.encoder(laid_out(source, document, turns, self.config.layout)).token_ids)
            if tokens <= length:
                offsets = self.shelf.token_places(document)
                places = tuple(_token_place(offsets, q) for q in turns)
                return Sample(document, source, tuple(turns), tokens, length, places)
            turns = turns[:-1]
        return None


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
