"""The documents of h2o.py: plain text with facts in its prompt, and text in which passages come again and again."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from app.eval import needles, texts
from app.tasks import needles as facts
from app.tasks.needles import Needle

if TYPE_CHECKING:
    from app.runtime.engine import Engine

QUOTES, QUOTED_WORDS = 6, 12
AGAIN = 0.5  # how often a passage of the dictionary comes instead of a piece of the book
PIECE_WORDS = 16  # of the book: some books have a paragraph to a line


def document(
    engine: "Engine", lines: Sequence[str], args: argparse.Namespace, rng: random.Random
) -> tuple[list[int], list[bool], list[Needle]]:
    """Token ids of a text whose facts all stand in the prompt, once, which of them were there before, and the facts."""
    tokens = args.prompt + args.text
    share = 0.9 * args.prompt / (2 * tokens)
    asked = needles.plan(rng, ["multi-key"], args.facts)
    early = [replace(place, depths=tuple(share * depth for depth in place.depths)) for place in asked]
    ids = needles.document(engine, lines, early, 2 * tokens, rng.randrange(2**32))  # may lack a line at its end
    return ids[:tokens], [False] * tokens, [place.needle for place in asked]


def recurring(
    engine: "Engine", lines: Sequence[str], args: argparse.Namespace, rng: random.Random
) -> tuple[list[int], list[bool], list[Needle]]:
    """The same of a text in which passages of a dictionary recur; its facts are those that the prompt holds."""
    pairs = facts.pairs(rng, args.facts, "word")
    start, tokens = rng.randrange(len(lines)), args.prompt + args.text
    words = [line.split() for line in [*lines[start:], *lines[:start]]]
    long = [" ".join(line[:QUOTED_WORDS]) for line in words if len(line) >= QUOTED_WORDS]
    passages = [pair.sentences[0] for pair in pairs] + rng.sample(long, min(QUOTES, len(long)))
    pieces = (line.split() for line in texts.around(lines, rng))
    filler = (" ".join(line[i : i + PIECE_WORDS]) for line in pieces for i in range(0, len(line), PIECE_WORDS))
    ids, known, first = [engine.bos_id], [False], dict[str, int]()
    while len(ids) < tokens:
        passage = rng.choice(passages) if rng.random() < AGAIN else None
        more = engine.text_tokenizer.encode((passage or next(filler)) + "\n", add_special_tokens=False).ids
        known += [passage in first] * len(more)
        if passage is not None:
            first.setdefault(passage, len(ids) + len(more))
        ids += more
    asked = [pair for pair in pairs if first.get(pair.sentences[0], tokens) <= args.prompt]
    return ids[:tokens], known[:tokens], asked or pairs[:1]


def turn_of(engine: "Engine", needle: Needle) -> tuple[list[int], list[int]]:
    """Tokens of a question as the chat asks it, and of the answer with its end."""
    turn = engine.encode_turn([{"role": "user", "content": needle.question}])
    answer = engine.text_tokenizer.encode(needle.answer, add_special_tokens=False).ids
    return turn, [*answer, engine.tokenizer.eos_token_id]
