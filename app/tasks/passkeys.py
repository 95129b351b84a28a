"""Passkey texts: what is planted, asked and expected. Pure text, shared by training and evaluation."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

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
