"""What answers say, by their words: against reference answers, and whether they refuse. Pure text, shared by all."""

import re
import string
from collections import Counter
from typing import Any

REFUSALS = (
    "does not say",
    "doesn't say",
    "does not mention",
    "doesn't mention",
    "does not state",
    "does not tell",
    "does not contain",
    "does not provide",
    "not in the text",
    "not mentioned",
    "not stated",
    "not given in the",
    "no answer",
    "no information",
    "not enough information",
    "unanswerable",
    "cannot be answered",
    "can't be answered",
    "cannot answer",
    "can't answer",
    "i do not know",
    "i don't know",
)
REFUSAL_WORDS = 20
MAY_SAY = (
    "A demonstration model may say so although the text does say. Ask in the words of the text, or load a larger model."
)


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


def holds(answer: str, gold: str) -> float:
    """Whether the answer has the gold one's words in it, side by side (as Liu et al. 2023, Lost in the Middle)."""
    said, wanted = normalise(answer), normalise(gold)
    starts = range(len(said) - len(wanted) + 1)
    return float(bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in starts))


def is_refusal(answer: str) -> bool:
    """Whether the answer says that the text holds none; an empty answer says nothing."""
    plain = " ".join(answer.lower().replace("\u2019", "'").split())
    return any(phrase in plain for phrase in REFUSALS)


def only_refuses(answer: str) -> bool:
    """Whether the answer says nothing but that: a long one that also says so tells something else too."""
    return is_refusal(answer) and len(answer.split()) <= REFUSAL_WORDS


def ending(ended: str, new_tokens: int) -> str:
    """What the user should know of why an answer ended; "" when the model ended it, or the user.

    Args:
        ended: as `AnswerStats` has it; `new_tokens` too.
    """
    if ended == "repetition":
        return "Stopped because the answer repeated itself."
    return f"Cut off at the longest answer, {new_tokens:,} tokens." if ended == "length" else ""


def passage_of(entry: dict[str, Any], asked: dict[str, Any]) -> str:
    """The sections that a question needs, in their order, or the whole text where it names none.

    Args:
        entry: a document: `text`, and maybe `sections`, each with its number `n` and its `text`.
        asked: one of its questions, maybe with `sections`: numbers, separated by commas.

    Raises:
        KeyError: it names a section that is not there.
    """
    texts = {str(section["n"]): section["text"] for section in entry.get("sections") or ()}
    named = [number.strip() for number in str(asked.get("sections") or "").split(",") if number.strip()]
    return "\n".join(texts[number] for number in named) if texts and named else entry["text"]
