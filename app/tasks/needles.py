"""Facts to hide in a text and ask for: passkeys, pairs of keys and values, chains of variables, lists to count in.

Written anew after the published description of RULER's task families. Pure text, shared by training and evaluation.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

REPEAT_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

NAMES = tuple(
    """amber anchor apple arrow autumn badger bamboo barley basket beacon bridge bronze butter button cactus camel
    candle canyon carpet castle cedar cherry circle clover cobalt comet copper coral cotton cricket crystal dagger
    daisy desert diamond dragon eagle ember engine falcon feather fiddle flower forest fossil fountain galaxy garden
    garlic ginger glacier granite guitar hammer harbor hazel helmet hermit honey hunter island ivory jacket jasmine
    jungle kettle kitten ladder lagoon lantern lemon lizard lobster lotus magnet mango maple marble meadow mirror
    monkey morning mountain needle nutmeg oasis ocean olive onion orange orchid otter oyster paddle palace panther
    parrot peach pebble pepper pilot planet pocket prairie pumpkin quartz rabbit raven ribbon river rocket saddle
    salmon silver spider spring storm summer sunset temple thunder tiger timber tulip turtle valley velvet violet
    walnut whale willow window winter wizard""".split()
)


@dataclass(frozen=True)
class Passkey:
    """A five-digit number to plant in a text; `name` tells several in one text apart."""

    number: str
    name: str | None = None

    @property
    def _of(self) -> str:
        return f" for {self.name}" if self.name else ""

    @property
    def sentence(self) -> str:
        return f"The pass key{self._of} is {self.number}. Remember it. {self.number} is the pass key{self._of}."

    @property
    def question(self) -> str:
        return f"What is the pass key{self._of}?"

    @property
    def answer(self) -> str:
        return f"The pass key{self._of} is {self.number}."

    def found_in(self, answer: str) -> bool:
        """Whether the answer's first run of five or more digits is this number."""
        digits = ""
        for char in answer + " ":
            if char.isdigit():
                digits += char
            elif len(digits) >= 5:
                break
            else:
                digits = ""
        return digits == self.number


def draw(rng: random.Random, count: int, names: Sequence[str] = NAMES) -> list[Passkey]:
    """Draw passkeys with distinct numbers, and distinct names when there are several."""
    if not 1 <= count <= len(names):
        raise ValueError(f"passkeys in one text: {count}, must lie between 1 and {len(names)}")
    numbers = rng.sample(range(10_000, 100_000), count)
    chosen = rng.sample(names, count) if count > 1 else [None]
    return [Passkey(str(number), name) for number, name in zip(numbers, chosen, strict=True)]


def plant(filler: Sequence[str], keys: Sequence[Passkey], depths: Sequence[float]) -> str:
    """Put each key on a line of its own at its depth (0 start, 1 end) among the filler paragraphs."""
    lines = list(filler)
    places = sorted(zip(depths, keys, strict=True), key=lambda place: -place[0])
    for depth, key in places:
        lines.insert(round(depth * len(filler)), key.sentence)
    return "\n".join(lines) + "\n"


PairKind = Literal["digits", "uuid", "word"]
PAIR_KINDS: tuple[PairKind, ...] = ("digits", "uuid", "word")
WORDS_A_LINE = 10


@dataclass(frozen=True)
class Needle:
    """What is planted, asked and expected.

    Attributes:
        sentences: lines to plant, in this order, not necessarily side by side.
        values: strings that a right answer holds, all of them.
    """

    sentences: tuple[str, ...]
    question: str
    answer: str
    values: tuple[str, ...]

    def score(self, answer: str) -> float:
        """Share of the expected values that the answer holds."""
        words = answer.replace(".", " ").replace(",", " ").split()
        return sum(value in words for value in self.values) / len(self.values)


def _digits(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))


def _uuid(rng: random.Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _drawn(rng: random.Random, count: int, kind: PairKind, names: Sequence[str]) -> list[tuple[str, str]]:
    """Keys that all differ, and their values."""
    if kind == "word":
        if not 1 <= count <= len(names):
            raise ValueError(f"pairs of words in one text: {count}, must lie between 1 and {len(names)}")
        keys, values = rng.sample(names, count), [_digits(rng) for _ in range(count)]
    else:
        make = _digits if kind == "digits" else _uuid
        keys = list(dict.fromkeys(make(rng) for _ in range(2 * count)))[:count]
        values = [make(rng) for _ in keys]
    return list(zip(keys, values, strict=True))


def _fact(key: str, value: str) -> str:
    return f"The value of {key} is {value}."


def passes(rng: random.Random, count: int, names: Sequence[str] = NAMES) -> list[Needle]:
    """Passkeys; they have names when there are several."""
    return [Needle((key.sentence,), key.question, key.answer, (key.number,)) for key in draw(rng, count, names)]


def pairs(rng: random.Random, count: int, kind: PairKind, names: Sequence[str] = NAMES) -> list[Needle]:
    """Keys with one value each; every key differs. Words are at most as many as there are names."""
    return [
        Needle(
            sentences=(_fact(key, value),),
            question=f"What is the value of {key}?",
            answer=_fact(key, value),
            values=(value,),
        )
        for key, value in _drawn(rng, count, kind, names)
    ]


def queries(
    rng: random.Random, count: int, keys: int, kind: PairKind = "word", names: Sequence[str] = NAMES
) -> list[Needle]:
    """Questions that each ask for `keys` pairs, two or more, at once; the pairs look as those of `pairs`."""
    if keys < 2:
        raise ValueError(f"keys of one question: {keys}, must be at least 2")
    drawn = _drawn(rng, count * keys, kind, names)
    needles = []
    for asked in (drawn[i : i + keys] for i in range(0, len(drawn), keys)):
        facts = [_fact(key, value) for key, value in asked]
        first, last = ", ".join(key for key, _ in asked[:-1]), asked[-1][0]
        needles.append(
            Needle(
                sentences=tuple(facts),
                question=f"What are the values of {first} and {last}?",
                answer=" ".join(facts),
                values=tuple(value for _, value in asked),
            )
        )
    return needles


def several_values(rng: random.Random, keys: int, values: int, names: Sequence[str] = NAMES) -> list[Needle]:
    """Names that have several numbers each, one to a sentence; all are asked for at once."""
    needles = []
    for name in rng.sample(names, keys):
        numbers = [_digits(rng) for _ in range(values)]
        needles.append(
            Needle(
                sentences=tuple(f"One of the numbers of {name} is {number}." for number in numbers),
                question=f"What are the numbers of {name}?",
                answer=f"The numbers of {name} are {', '.join(numbers)}.",
                values=tuple(numbers),
            )
        )
    return needles


def chains(rng: random.Random, count: int, hops: int, names: Sequence[str] = NAMES) -> list[Needle]:
    """Variables of which the first holds a number and each other is set to the one before it."""
    variables = rng.sample(names, count * (hops + 1))
    needles = []
    for i in range(count):
        chain, number = variables[i * (hops + 1) : (i + 1) * (hops + 1)], _digits(rng)
        links = [f"Variable {after} is set to variable {before}." for before, after in pairwise(chain)]
        needles.append(
            Needle(
                sentences=(f"Variable {chain[0]} is set to {number}.", *links),
                question=f"Which variables hold {number}?",
                answer=f"The variables that hold {number} are {', '.join(chain)}.",
                values=tuple(chain),
            )
        )
    return needles


def common_words(
    rng: random.Random,
    count: int,
    *,
    often: int,
    times: int,
    others: int,
    other_times: int,
    names: Sequence[str] = NAMES,
) -> list[Needle]:
    """Lists in which `often` words stand `times` times each, and `others` words `other_times` times, fewer."""
    if not 1 <= other_times < times:
        raise ValueError(f"words that stand {times} and {other_times} times: the second must be less, and at least 1")
    lists = []
    for name in rng.sample(names, count):
        words = rng.sample(NAMES, often + others)
        lists.append(
            _word_list(rng, name, {w: times if i < often else other_times for i, w in enumerate(words)}, often)
        )
    return lists


def frequent_words(
    rng: random.Random, count: int, *, words: int, asked: int, names: Sequence[str] = NAMES
) -> list[Needle]:
    """Lists of about `words` made-up words, of which the k-th stands in proportion to 1 / k^2, rounded.

    Raises:
        ValueError: too few words for the first `asked` to stand out.
    """
    ranks = range(1, words + 1)
    times = [round(words * k**-2 / sum(r**-2 for r in ranks)) for k in ranks]
    times = [n for n in times if n]
    if len(times) <= asked or times[asked - 1] == times[asked]:
        raise ValueError(f"{words} words: the first {asked} do not stand more often than the next; take more words")
    return [
        _word_list(rng, name, dict(zip(_coded(rng, len(times)), times, strict=True)), asked)
        for name in rng.sample(names, count)
    ]


def _coded(rng: random.Random, count: int) -> list[str]:
    """Different words of six random letters."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6))] = None
    return list(found)


def _word_list(rng: random.Random, name: str, times: dict[str, int], asked: int) -> Needle:
    """The words shuffled, over lines that each say whose they are; `times` goes from the most frequent down."""
    words = [word for word, n in times.items() for _ in range(n)]
    rng.shuffle(words)
    values = list(times)[:asked]
    return Needle(
        sentences=tuple(
            f"List {name}: {', '.join(words[i : i + WORDS_A_LINE])}." for i in range(0, len(words), WORDS_A_LINE)
        ),
        question=f"Which {asked} words stand most often in list {name}?",
        answer=f"The words that stand most often in list {name} are {', '.join(values)}.",
        values=tuple(values),
    )
