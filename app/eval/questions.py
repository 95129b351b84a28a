"""Validation questions: drawn evenly from sets of texts and questions, answerable and unanswerable ones mixed."""

import json
import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import ConfigError, InputError
from app.eval.qa import Question


@dataclass(frozen=True)
class Source:
    """A text of a set and the questions about it, each with its answers; none means that the text holds none."""

    name: str
    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]

    def of(self, *, answerable: bool) -> list[tuple[str, tuple[str, ...]]]:
        return [question for question in self.questions if bool(question[1]) == answerable]


@dataclass(frozen=True)
class MixConfig:
    """What to draw.

    Attributes:
        count: questions, each about another text.
        unanswerable: share of them that their text does not answer: half of them asked about it for that end, as in
            SQuAD 2, where the sets have such, and the others about a text of another set that is not drawn.
        longest_chars: longer texts are left out.
    """

    count: int = 300
    unanswerable: float = 1 / 6
    longest_chars: int = 3500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count {self.count}: must be at least 1")
        if not 0 <= self.unanswerable < 1:
            raise ConfigError(f"unanswerable {self.unanswerable}: must lie between 0 and 1, a share of the questions")
        if self.longest_chars < 1:
            raise ConfigError(f"longest text {self.longest_chars} characters: must be at least 1")


class _Pool:
    """Texts by set, in random order, to be taken from the sets in turn."""

    def __init__(self, sources: Sequence[Source], rng: random.Random) -> None:
        self.left: dict[str, list[Source]] = {}
        for source in rng.sample(list(sources), len(sources)):
            self.left.setdefault(source.name, []).append(source)

    def take(self, count: int, *, answerable: bool | None = None) -> Iterator[Source]:
        """At most `count` texts that have a question of the kind, as many of each set as it has."""
        ready = {
            name: [s for s in sources if answerable is None or s.of(answerable=answerable)]
            for name, sources in sorted(self.left.items())
        }
        while count > 0 and any(ready.values()):
            for name in [name for name, sources in ready.items() if sources][:count]:
                source = ready[name].pop()
                self.left[name].remove(source)
                yield source
                count -= 1


def mix(sources: Sequence[Source], config: MixConfig) -> list[Question]:
    """Draw questions, one to a text, from the sets in turn. Ids tell the kind: `answer`, `none` or `absent`.

    Raises:
        InputError: the sets have too few texts.
    """
    rng = random.Random(config.seed)
    texts = {s.text: s for s in sources if s.text.strip() and len(s.text) <= config.longest_chars}
    pool = _Pool(list(texts.values()), rng)
    unanswerable = round(config.count * config.unanswerable)
    drawn = [("none", s, rng.choice(s.of(answerable=False))) for s in pool.take(unanswerable // 2, answerable=False)]
    absent = unanswerable - len(drawn)
    some = list(pool.take(config.count - unanswerable, answerable=True))
    drawn += [("answer", source, rng.choice(source.of(answerable=True))) for source in some]
    about = list(pool.take(absent))
    drawn += [("absent", source, (asked, ())) for source, asked in zip(about, _others(pool, about, rng), strict=False)]
    if len(drawn) < config.count:
        raise InputError(
            f"{config.count} questions, each about another text: the sets have enough for {len(drawn)}; ask for fewer"
        )
    rng.shuffle(drawn)
    return [
        Question(f"{kind}-{source.name}-{i}", source.name, source.text, question, answers)
        for i, (kind, source, (question, answers)) in enumerate(drawn)
    ]


def _others(pool: _Pool, about: Sequence[Source], rng: random.Random) -> Iterator[str]:
    """For each text a question that was asked about one of another set, of those that are left."""
    for source in about:
        others = [s for name, left in sorted(pool.left.items()) if name != source.name for s in left if s.questions]
        if not others:
            return
        other = rng.choice(others)
        pool.left[other.name].remove(other)
        yield rng.choice(other.questions)[0]


def write(questions: Sequence[Question], path: Path) -> None:
    """Write them as `eval qa` reads them, one JSON object per line; packed when the name ends in .xz.

    Raises:
        InputError: the file cannot be written.
    """
    lines = [
        {
            "id": q.id,
            "title": q.title,
            "text": q.text,
            "qas": [
                {"id": q.id, "question": q.question, "answers": list(q.answers)}
                | ({} if q.answers else {"answerable": False})
            ],
        }
        for q in questions
    ]
    data = ("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n").encode()
    try:
        path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; choose another file") from error
