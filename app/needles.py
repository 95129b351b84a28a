"""Facts to hide in a text and ask for, beyond the passkey: pairs of keys and values, and chains of variables.

Written anew after the published description of RULER's task families. Pure text, shared by training and evaluation.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from app.passkeys import NAMES

PairKind = Literal["digits", "uuid", "word"]
PAIR_KINDS: tuple[PairKind, ...] = ("digits", "uuid", "word")


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


def pairs(rng: random.Random, count: int, kind: PairKind, names: Sequence[str] = NAMES) -> list[Needle]:
    """Keys with one value each; every key differs. Words are at most as many as there are names."""
    if kind == "word":
        if not 1 <= count <= len(names):
            raise ValueError(f"pairs of words in one text: {count}, must lie between 1 and {len(names)}")
        keys, values = rng.sample(names, count), [_digits(rng) for _ in range(count)]
    else:
        make = _digits if kind == "digits" else _uuid
        keys = list(dict.fromkeys(make(rng) for _ in range(2 * count)))[:count]
        values = [make(rng) for _ in keys]
    return [
        Needle(
            sentences=(f"The value of {key} is {value}.",),
            question=f"What is the value of {key}?",
            answer=f"The value of {key} is {value}.",
            values=(value,),
        )
        for key, value in zip(keys, values, strict=True)
    ]


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
