"""Questions about texts: SQuAD-style F1 and exact match, refusals, and the same questions inside a long reading."""

import lzma
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import ConfigError, InputError
from app.eval import report, texts
from app.eval.texts import word_index
from app.tasks.scoring import exact, f1, holds, is_refusal, passage_of
from app.wellformed import parse_json

if TYPE_CHECKING:
    from app.memory.memory import RegionMemory
    from app.runtime.engine import Engine

ANSWER_TOKENS = 64
SHOWN = 3  # regions of an answer


@dataclass(frozen=True)
class Question:
    """One question of a file; no answers means that the text holds none."""

    id: str
    title: str
    text: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class QaConfig:
    """What to ask.

    Attributes:
        limit: questions drawn by `seed`; None means all.
        haystack: a document whose lines surround the passages; None reads each passage alone.
        tokens: length of one reading with a haystack.
        per_reading: passages planted in one reading.
        second: of a reading's questions, how many are asked once more as the second question of a chat; scored apart.
    """

    limit: int | None = None
    seed: int = 0
    haystack: Path | None = None
    tokens: int | None = None
    per_reading: int = 10
    second: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit {self.limit}: must be at least 1")
        if (self.haystack is None) != (self.tokens is None):
            raise ConfigError("haystack and tokens go together: name the text and how many tokens to read")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens {self.tokens}: must be at least 1")
        if self.per_reading < 1:
            raise ConfigError(f"passages per reading {self.per_reading}: must be at least 1")
        if self.second < 0:
            raise ConfigError(f"second questions {self.second}: must be 0 or more")


@dataclass(frozen=True)
class Answered:
    """A question and what the model said.

    Attributes:
        turn: 1, or 2 for a question after another in the same chat.
        rank: place, from 1, of the best region that holds an answer's words among those that the model looked at most;
            None where it looked at none of them, 0 where the passage does not have the words of any answer.
    """

    question: Question
    answer: str
    document_tokens: int
    turn: int = 1
    rank: int | None = 0

    @property
    def refused(self) -> bool:
        return is_refusal(self.answer)

    @property
    def f1(self) -> float:
        return 0.0 if self.refused else max(f1(self.answer, gold) for gold in self.question.answers)

    @property
    def exact(self) -> float:
        return 0.0 if self.refused else max(exact(self.answer, gold) for gold in self.question.answers)

    @property
    def holds(self) -> float:
        """Whether a reference answer stands in what was said, word for word, as in a quotation."""
        return 0.0 if self.refused else max(holds(self.answer, gold) for gold in self.question.answers)


def load(path: Path) -> tuple[list[Question], int]:
    """Read the questions of a JSON lines file, plain or .xz.

    Returns:
        Questions that can be scored, and how many cannot: no answers, yet not marked as unanswerable.

    Raises:
        InputError: the file is missing, or a line is not an object with `text` and `qas`.
    """
    questions, skipped = [], 0
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found, without = _questions(parse_json(line), f"{path}, line {number}")
                    questions += found
                    skipped += without
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {error}") from error
    if not questions:
        raise InputError(f"{path}: holds no question that can be scored; need lines with text and qas")
    return questions, skipped


def _questions(entry: Any, place: str) -> tuple[list[Question], int]:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not isinstance(entry.get("qas"), list):
        raise InputError(f'{place}: need an object with "text" and a list "qas"')
    questions, skipped = [], 0
    for index, asked in enumerate(entry["qas"]):
        try:
            answers = tuple(str(a["text"] if isinstance(a, dict) else a) for a in asked.get("answers") or ())
            answerable = asked.get("answerable", True)
            if answerable and not answers:
                skipped += 1
                continue
            name = str(asked.get("id", f"{entry.get('id', place)}-{index}"))
            title = str(entry.get("title", ""))
            questions.append(
                Question(name, title, passage_of(entry, asked), str(asked["question"]), answers if answerable else ())
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f'{place}, question {index + 1}: need "question" and "answers" ({error})') from error
    return questions, skipped


def draw(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """The questions to ask: depends on the file, the limit and the seed, and on nothing else."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return random.Random(seed).sample(list(questions), limit)


def together(passages: Sequence[tuple[str, str]], per_reading: int) -> list[list[str]]:
    """Deal passages, given as (title, text), into readings; those of one title are spread, as they resemble."""
    readings = -(-len(passages) // per_reading)
    ordered = [text for _, text in sorted(passages, key=lambda passage: passage[0])]
    return [ordered[i::readings] for i in range(readings)]


def run(
    engine: "Engine",
    questions: Sequence[Question],
    config: QaConfig,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = texts.never,
) -> Iterator[Answered]:
    """Ask each question in a chat of its own, from the memory of its passage; passages are read once.

    Args:
        on_progress: gets how many questions are answered, and of how many.
    """
    done = 0
    for here, ids in _readings(engine, questions, config):
        memory = engine.read(ids, cancelled=cancelled)
        for answered in ask(engine, memory, here, config.second, cancelled):
            done += answered.turn == 1
            on_progress(done, len(questions))
            yield answered


def ask(
    engine: "Engine",
    memory: "RegionMemory",
    questions: Sequence[Question],
    second: int = 0,
    cancelled: Callable[[], bool] = texts.never,
) -> Iterator[Answered]:
    """Ask each question in a chat of its own; `second` chats, evenly chosen, go on with the question after it.

    What finds the passages of a long text is the engine's `lookup`.
    """
    count, words = len(questions), word_index(engine, [memory])
    follow = texts.evenly(min(second, count), count) if count > 1 else set()
    for i, question in enumerate(questions):
        turns = [question, questions[(i + 1) % count]] if i in follow else [question]
        replies = texts.converse(engine, [memory], [q.question for q in turns], ANSWER_TOKENS, cancelled, words)
        for turn, (asked, reply) in enumerate(zip(turns, replies, strict=True), start=1):
            held = regions_of(engine, memory, asked)
            rank = next((n for n, region in enumerate(reply.looked, start=1) if region in held), None) if held else 0
            yield Answered(asked, reply.text, len(memory.token_ids), turn, rank)


def regions_of(engine: "Engine", memory: "RegionMemory", question: Question) -> set[int]:
    """Regions of a memory where the words of an answer stand in the question's passage; none where they do not."""
    wanted = "|".join(re.escape(answer) for answer in question.answers if answer)
    pattern = re.compile(rf"(?<!\w)(?:{wanted})(?!\w)", re.IGNORECASE)
    found: set[int] = set()
    for line in question.text.splitlines() if wanted else ():
        for match in pattern.finditer(line):
            found |= set(texts.regions_of(engine, memory, line, *match.span()))
    return found


def _readings(
    engine: "Engine", questions: Sequence[Question], config: QaConfig
) -> Iterator[tuple[list[Question], list[int]]]:
    """The questions of each reading and its token ids."""
    rng = random.Random(f"haystack-{config.seed}")
    if config.haystack is None or config.tokens is None:
        for asked in _by_text(questions).values():
            yield asked, texts.encode(engine, asked[0].text)
        return
    filler = texts.lines_of(config.haystack)
    for here in deal(questions, config.per_reading, rng):
        passages = list(_by_text(here))
        depths = [rng.random() for _ in passages]
        yield here, texts.filled(engine, filler, passages, depths, config.tokens, rng.randrange(2**32))


def deal(questions: Sequence[Question], per_reading: int, rng: random.Random) -> list[list[Question]]:
    """The questions of each reading, at most `per_reading` passages in one."""
    by_text = _by_text(questions)
    shuffled = rng.sample([(asked[0].title, text) for text, asked in by_text.items()], len(by_text))
    return [[q for text in passages for q in by_text[text]] for passages in together(shuffled, per_reading)]


def _by_text(questions: Sequence[Question]) -> dict[str, list[Question]]:
    by_text: dict[str, list[Question]] = {}
    for question in questions:
        by_text.setdefault(question.text, []).append(question)
    return by_text


def summary(answered: Sequence[Answered]) -> dict[str, Any]:
    """Scores of first questions and, under `second`, of second ones; None without any."""
    second = [a for a in answered if a.turn == 2]
    return _scores([a for a in answered if a.turn == 1]) | {"second": _scores(second) if second else None}


def _scores(answered: Sequence[Answered]) -> dict[str, Any]:
    """Scores from 0 to 100, to two places. `refusal_f1` is None with nothing unanswerable or refused."""
    answerable = [a for a in answered if a.question.answers]
    kept = [a for a in answerable if not a.refused]
    refused = sum(a.refused for a in answered)
    unanswerable = len(answered) - len(answerable)
    rightly = sum(a.refused for a in answered if not a.question.answers)
    return {
        "f1": _mean([a.f1 for a in answerable]),
        "exact": _mean([a.exact for a in answerable]),
        "holds": _mean([a.holds for a in answerable]),
        "refusal_f1": round(200 * rightly / (refused + unanswerable), 2) if refused + unanswerable else None,
        "refusal_cost": round(_mean([a.f1 for a in kept]) * (1 - len(kept) / len(answerable)), 2) if kept else None,
        "n": len(answered),
        "answerable": len(answerable),
        "unanswerable": unanswerable,
        "refused": refused,
        "evidence": _evidence(answered),
    }


def _evidence(answered: Sequence[Answered]) -> dict[str, Any]:
    """Of the answers that hold one of the passage's: how many of those regions were among the first three looked at."""
    ranks = [a.rank for a in answered if a.question.answers and a.rank != 0 and a.holds]
    shown = sum(rank is not None and rank <= SHOWN for rank in ranks)
    return {
        "right": len(ranks),
        f"top_{SHOWN}": shown,
        "lower_bound_95": round(report.lower_bound_95(shown, len(ranks)), 4),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(100 * sum(values) / len(values), 2) if values else None
