"""Answers against reference answers, by words. Pure text, shared by training and evaluation."""

import re
import string
from collections import Counter


def normalise(text: str) -> list[str]:
    """Words in lower case without punctuation and articles, as SQuAD's evaluation script makes them."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(answer: str, gold: str) -> float:
    """Overlap of words, 0 to 1."""
    said, wanted = normalise(answer), normalise(gold)
    if not said or not wanted:
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))


def exact(answer: str, gold: str) -> float:
    return float(normalise(answer) == normalise(gold))
