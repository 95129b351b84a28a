"""What answers say, by their words: against reference answers, and whether they refuse. Pure text, shared by all."""

import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from app.records import FROM_MEMORY

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
NO_ANSWER = "The text does not say."  # as models are tuned to say it
HARDLY = "The text hardly speaks for an answer: a refusal is as likely with it as without."
FROM_MODEL = "From memory of the model, not from the text: it looked at no place more than when nothing is asked."
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


def knows(stats: Mapping[str, Any]) -> str:
    """How the answer knows what it says: where its attention went; "" where nothing is known of it."""
    named = ("documents", "chat", "question")
    found = [(name, share) for name in named if (share := stats.get(f"on_{name}")) is not None]
    if not stats.get("source") or not found:
        return ""
    shares = ", ".join(f"{share:.0%} on the {name}" for name, share in found)
    memory = f" {FROM_MODEL}" if stats["source"] == FROM_MEMORY else ""
    weak = stats["source"] != FROM_MEMORY and (stats.get("held") or 1.0) <= 0
    return f"Attention: {shares}.{memory}{f' {HARDLY}' if weak else ''}"


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
