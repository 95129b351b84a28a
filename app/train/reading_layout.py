"""Rows of readings: a text is encoded once, and every question about it goes on after it as if it were alone.

A reading has text parts, a trunk and branches. The first part is seen by all (a sink, or the whole text); each further
part sees that one and itself alone, as passages do that were read far apart and are looked at together. The trunk (the
system turn) sees all parts, and each branch (a question and its answer, or a whole chat) sees parts, trunk and itself.
Positions are compact: every branch goes on where the trunk ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from app.models.turns import ANSWER, Turns

TEXT, TRUNK, BRANCH = 0, 1, 2


@dataclass(frozen=True)
class Piece:
    """Token ids, and what predicting each of them counts."""

    ids: Sequence[int]
    weights: Sequence[float]
    source: int = 0  # a number to tell losses apart by


@dataclass(frozen=True)
class Reading:
    """One text and what is asked about it.

    Attributes:
        parts: token ids of each part; at least one.
        trunk: what all branches begin with.
    """

    parts: Sequence[Sequence[int]]
    trunk: Sequence[int]
    branches: Sequence[Piece]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.parts)) + len(self.trunk) + sum(len(b.ids) for b in self.branches)

    @property
    def context(self) -> int:
        return sum(map(len, self.parts)) + len(self.trunk)


def as_row(readings: Sequence[Reading]) -> dict[str, Tensor]:
    """One row of tensors [1, T]: input_ids, weights, positions, kinds (TEXT, TRUNK, BRANCH), runs, documents, sources.

    `runs` numbers parts, trunks and branches through the row; `documents` the readings.
    """
    ids: list[int] = []
    columns: dict[str, list] = {name: [] for name in ("weights", "positions", "kinds", "runs", "documents", "sources")}

    def add(tokens: Sequence[int], weights: Sequence[float], start: int, kind: int, document: int, source: int) -> None:
        run = columns["runs"][-1] + 1 if columns["runs"] else 0
        count = len(tokens)
        ids.extend(tokens)
        columns["weights"].extend(weights)
        columns["positions"].extend(range(start, start + count))
        for name, value in (("kinds", kind), ("runs", run), ("documents", document), ("sources", source)):
            columns[name].extend([value] * count)

    for number, reading in enumerate(readings):
        at = 0
        for part in reading.parts:
            add(part, [0.0] * len(part), at, TEXT, number, 0)
            at += len(part)
        if reading.trunk:
            add(reading.trunk, [0.0] * len(reading.trunk), at, TRUNK, number, 0)
            at += len(reading.trunk)
        for branch in reading.branches:
            weights = [0.0, *branch.weights[1:]]  # its first token stands after the trunk, not after its neighbour
            add(branch.ids, weights, at, BRANCH, number, branch.source)
    row = {"input_ids": torch.tensor([ids], dtype=torch.int64)}
    for name, values in columns.items():
        dtype = torch.float32 if name == "weights" else torch.int64
        row[name] = torch.from_numpy(np.asarray([values])).to(dtype)
    return row


@dataclass(frozen=True)
class Chunk:
    """Branches of a reading that are attended together: places of the row, and which keys each query may see."""

    start: int
    stop: int
    bias: Tensor  # [stop - start, context + stop - start], 0 or -inf


@dataclass
class Runs:
    """Where one reading's runs lie in the row.

    Attributes:
        parts: (start, stop) of each.
        trunk: (start, stop), empty when both are equal.
        chunks: of its branches.
        biases: of each part but the first.
    """

    parts: list[tuple[int, int]] = field(default_factory=list)
    trunk: tuple[int, int] = (0, 0)
    branches: list[tuple[int, int]] = field(default_factory=list)

    @property
    def context(self) -> tuple[int, int]:
        """(start, stop) of all that the branches see."""
        return self.parts[0][0], max(self.parts[-1][1], self.trunk[1])


def runs_of(kinds: Tensor, runs: Tensor, documents: Tensor) -> list[Runs]:
    """The readings of a row from its columns [1, T] (see `as_row`)."""
    numbers, which, documents = kinds[0].tolist(), runs[0].tolist(), documents[0].tolist()
    found: list[Runs] = []
    start = 0
    for stop in range(1, len(which) + 1):
        if stop < len(which) and which[stop] == which[start]:
            continue
        if start == 0 or documents[start] != documents[start - 1]:
            found.append(Runs())
        span = (start, stop)
        if numbers[start] == TEXT:
            found[-1].parts.append(span)
        elif numbers[start] == TRUNK:
            found[-1].trunk = span
        else:
            found[-1].branches.append(span)
        start = stop
    return found


def causal_bias(rows: int, before: int) -> Tensor:
    """[rows, before + rows]: everything before, and itself causally."""
    seen = torch.ones(rows, before + rows, dtype=torch.bool).tril(before)
    return torch.zeros(rows, before + rows).masked_fill_(~seen, float("-inf"))


def branch_bias(spans: Sequence[tuple[int, int]], context: int) -> Tensor:
    """[N, context + N] for neighbouring branches of N tokens in all: the context, and each its own causally."""
    first, last = spans[0][0], spans[-1][1]
    bias = torch.full((last - first, context + last - first), float("-inf"))
    bias[:, :context] = 0
    for start, stop in spans:
        a, b = start - first, stop - first
        bias[a:b, context + a : context + b] = causal_bias(b - a, 0)
    return bias


LONG_ANSWER = 16  # tokens from which an answer counts no more: long ones would drown the short


class ChatPieces:
    """What a text, a question and a chat become.

    Attributes:
        start: what a document begins with.
        trunk: what every chat begins with, up to the first question: the system turn.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.start = [] if turns.start_id is None else [turns.start_id]
        self.line = self.text("\n")
        self.trunk = self._trunk()

    def text(self, text: str) -> list[int]:
        """Markers inside stay text."""
        return self.turns.text_tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.turns.text_tokenizer.decode(list(ids), skip_special_tokens=False)

    def branch(self, turns: Sequence[tuple[str, str]], source: int = 0) -> Piece:
        """Questions and answers of one chat after the trunk; answers are learnt, each with the marker that ends it."""
        messages = []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": ANSWER, "content": answer}]
        ids, owners = self.turns.chat(messages)
        last = max(place for place, owner in enumerate(owners) if owner == len(messages) - 1) + 1
        owners = [owner if owner % 2 else -1 for owner in owners[len(self.trunk) : last]]
        counts = {owner: min(1.0, LONG_ANSWER / owners.count(owner)) for owner in {*owners} - {-1}}
        return Piece(ids[len(self.trunk) : last], [counts.get(owner, 0.0) for owner in owners], source)

    def asked(self, question: str) -> list[int]:
        """A first question after the trunk, up to where its answer begins."""
        return self.turns.question([{"role": "user", "content": question}])[len(self.trunk) :]

    def _trunk(self) -> list[int]:
        """What two chats have in common, up to the marker that opens the first question."""
        one, other = (self.turns.question([{"role": "user", "content": text}]) for text in ("a", "Zz 1"))
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
        marks = set(self.turns.tokenizer.all_special_ids) | {
            id for id, token in self.turns.tokenizer.added_tokens_decoder.items() if token.special
        }
        return one[: max((i for i in range(same) if one[i] in marks), default=0)]
