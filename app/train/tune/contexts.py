"""Stretches of documents of a wanted length in tokens, cut where a reader would cut."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LOOK_CHARS, _BACK_CHARS = 2_000, 400
_SAMPLE_CHARS = 3_000
_FILE = re.compile(r"^(?=\S*[./])[\w@.+/-]*\w \((?:[A-Z]|text)[\w+#. -]*\)$", re.MULTILINE)


@dataclass(frozen=True)
class Book:
    """A document, or one side of it."""

    name: str
    text: str

    def cut(self, share: float) -> tuple["Book", "Book"]:
        """The document in two at a paragraph or file, the second with about `share` of it."""
        middle = _start_near(self.text, int(len(self.text) * (1 - share)))
        return Book(self.name, self.text[:middle]), Book(self.name, self.text[middle:])


class Shelf:
    """The documents of one side. Only what is drawn is tokenised whole."""

    def __init__(self, books: Sequence[Book], tokenizer: "Tokenizer") -> None:
        self.books = [book for book in books if book.text.strip()]
        self._tokenizer = tokenizer

    @cached_property
    def _token_chars(self) -> list[float]:
        """Characters of a token in each document, from samples of it."""
        rates = []
        for book in self.books:
            step = max(_SAMPLE_CHARS, len(book.text) // 4)
            sampled = [book.text[at : at + _SAMPLE_CHARS] for at in range(0, len(book.text), step)]
            rates.append(sum(map(len, sampled)) / max(1, sum(map(self.length, sampled))))
        return rates

    def length(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_places(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in characters of each token of a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def draw(self, rng: random.Random, tokens: int) -> tuple[int, int, int]:
        """A stretch of at most `tokens` tokens: (document, first character, end). Longer documents come more often."""
        chars = [int(tokens * rate) for rate in self._token_chars]
        sizes = [min(len(book.text), 4 * most) for book, most in zip(self.books, chars, strict=True)]
        (number,) = rng.choices(range(len(self.books)), sizes)
        text = self.books[number].text
        if len(text) <= chars[number]:
            return number, 0, self.end(text, 0, tokens, chars[number])
        first = _start_near(text, rng.randrange(len(text) - chars[number] + 1))
        if len(text) - first < chars[number] * 7 // 8:  # it moved on to a paragraph too near the end
            first = _start_near(text, len(text) - chars[number])
        return number, first, self.end(text, first, tokens, chars[number])

    def beginning(self, number: int, tokens: int) -> str:
        """The beginning of a document, at most `tokens` tokens of it."""
        text = self.books[number].text
        return text[: self.end(text, 0, tokens, int(tokens * self._token_chars[number]))]

    def end(self, text: str, first: int, tokens: int, chars: int) -> int:
        """Where a stretch of at most `tokens` tokens that begins at `first` ends; they are about `chars` characters."""
        places = self.token_places(text[first : first + chars * 9 // 8 + 16])
        if len(places) <= tokens:
            return first + (places[-1][1] if places else 0)
        return _end_near(text, first + places[tokens][0], first)


def _start_near(text: str, at: int) -> int:
    """A good place to begin at or after `at`: a file of a codebase, a paragraph, a line, else right there."""
    if at <= 0:
        return 0
    window = text[at : at + _LOOK_CHARS]
    if found := _FILE.search(window, 1):
        return at + found.start()
    for mark in ("\n\n", "\n", " "):
        place = window.find(mark)
        if place >= 0:
            return at + place + len(mark)
    return at


def _end_near(text: str, at: int, first: int) -> int:
    """A good place to end at or before `at`: after a paragraph, a line or a sentence, not far back."""
    window = text[max(first + (at - first) * 9 // 10, at - _BACK_CHARS) : at]
    for mark in ("\n\n", "\n", ". ", " "):
        place = window.rfind(mark)
        if place > 0:
            return at - len(window) + place + len(mark)
    return at
