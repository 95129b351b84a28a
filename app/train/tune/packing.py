"""Entries of different lengths to rows of one length: several in a row, none lost unsaid, reproducible by step."""

import logging
import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.errors import ConfigError, InputError
from app.models.turns import Turns
from app.train.tune.instructions import Entry
from app.train.tune.sources import Source

_PIECE_CHARS = 1 << 18  # longer texts are cut at lines, so that all cores tokenise


def _cut(text: str) -> list[str]:
    """A long text in pieces that end with lines."""
    pieces, start = [], 0
    while len(text) - start > _PIECE_CHARS:
        end = text.rfind("\n", start, start + _PIECE_CHARS) + 1 or start + _PIECE_CHARS
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


@dataclass(frozen=True)
class Encoded:
    """One entry as tokens.

    Attributes:
        token_ids: [N] int32.
        weights: [N] float32, loss weight of predicting each token.
        splittable: a plain text, whose parts can be learnt apart.
    """

    token_ids: np.ndarray
    weights: np.ndarray
    splittable: bool


class Encoder:
    """Entries as the app lays them out, see `app.models.turns`.

    A text is the token with which documents begin and its tokens, all with weight 1. A conversation is that token, its
    document, if it has one, and its turns; answers and their end markers weigh 1, turns of others `prompt_weight`, the
    document `document_weight`.

    Attributes:
        plain: tokenizers.Tokenizer that takes markers as plain characters.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt_weight: float = 0.0,
        document_weight: float = 0.0,
        system_prompt: str = "",
        document_start: str | None = None,
    ) -> None:
        """Takes a fast tokenizer of transformers; `system_prompt` and `document_start` as lectern.json has them."""
        if not tokenizer.is_fast:
            raise InputError("this model's tokenizer has no tokenizer.json; convert it to the fast format")
        self.tokenizer = tokenizer
        self.prompt_weight, self.document_weight = prompt_weight, document_weight
        self.turns = Turns(tokenizer, system_prompt, document_start)
        self.plain, self.bos = self.turns.text_tokenizer, self.turns.start_id
        self.pad = next((id for id in (tokenizer.pad_token_id, tokenizer.eos_token_id) if id is not None), 0)

    def __call__(self, entry: Entry) -> Encoded:
        """Encode a text or a conversation.

        Raises:
            InputError: the model's chat template refuses the turns.
        """
        start = [] if self.bos is None else [self.bos]
        text = self._text(entry.text) if entry.text else []
        if not entry.turns:
            weights = np.ones(len(start) + len(text), np.float32)
            weights[:1] = 0  # nothing predicts the first token
            return Encoded(np.asarray(start + text, np.int32), weights, splittable=True)
        turns, turn_weights = self._turns(entry)
        before = [0.0] * len(start) + [self.document_weight] * len(text)
        weights = np.asarray(before + turn_weights, np.float32)
        weights[:1] = 0
        return Encoded(np.asarray(start + text + turns, np.int32), weights, splittable=False)

    def _text(self, text: str) -> list[int]:
        """Token ids of a content; markers in it are characters like others."""
        pieces = [text] if len(text) <= _PIECE_CHARS else _cut(text)
        return [id for e in self.plain.encode_batch_fast(pieces, add_special_tokens=False) for id in e.ids]

    def _turns(self, entry: Entry) -> tuple[list[int], list[float]]:
        messages = [{"role": role, "content": content} for role, content in entry.turns]
        try:
            ids, owners = self.turns.chat(messages)
        except InputError as error:
            raise InputError(f"{entry.where}: {error}; mend the entry or leave it out") from error
        answers = {number for number, (role, _) in enumerate(entry.turns) if role == "assistant"}
        return ids, [1.0 if owner in answers else self.prompt_weight for owner in owners]


log = logging.getLogger(__name__)
OPEN_ROWS = 512


@dataclass(frozen=True)
class Counts:
    """What became of the entries.

    Attributes:
        tokens: of all entries, before anything was split or left out; BOS counts once for each.
        learnt: tokens whose prediction weighs something.
        split: texts that were longer than a row and stand in several.
        cut: conversations that were longer than a row, and `cut_tokens`, what their ends lost.
        left_out: conversations whose first answer lies beyond a row, and `left_out_tokens`.
        padding: tokens that fill rows up.
    """

    entries: int = 0
    tokens: int = 0
    learnt: int = 0
    split: int = 0
    cut: int = 0
    cut_tokens: int = 0
    left_out: int = 0
    left_out_tokens: int = 0
    rows: int = 0
    padding: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def told(self, length: int) -> str:
        """In words, for rows of `length` tokens."""
        share = self.padding / (self.rows * length) if self.rows else 0
        said = [
            f"{self.entries:,} entries, {self.tokens:,} tokens, {self.learnt:,} of them learnt, in {self.rows:,} rows "
            f"of {length:,} ({100 * share:.1f}% padding)"
        ]
        if self.split:
            said.append(f"{self.split:,} texts longer than a row were split")
        if self.cut:
            said.append(f"{self.cut:,} conversations longer than a row lost {self.cut_tokens:,} tokens at their end")
        if self.left_out:
            said.append(
                f"{self.left_out:,} conversations ({self.left_out_tokens:,} tokens) were left out, because their first "
                "answer lies beyond a row; train longer rows or make shorter samples"
            )
        return "; ".join(said)


def _pieces(encoded: Encoded, length: int, bos: int | None) -> tuple[list[tuple[np.ndarray, np.ndarray]], Counts]:
    """An entry as pieces of at most `length` tokens."""
    ids, weights = encoded.token_ids, encoded.weights
    counts = Counts(entries=1, tokens=len(ids), learnt=int(np.count_nonzero(weights[:length])))
    if len(ids) <= length:
        return [(ids, weights)], counts
    if encoded.splittable:
        pieces = []
        for start in range(0, len(ids) - 1, length - 1):  # each piece sees BOS, or the token before it, first
            piece, piece_weights = ids[start : start + length].copy(), weights[start : start + length].copy()
            if bos is not None:
                piece[0] = bos
            piece_weights[0] = 0
            pieces.append((piece, piece_weights))
        return pieces, counts + Counts(learnt=int(np.count_nonzero(weights[length:])), split=1)
    if (weights[:length] == 1.0).any():
        return [(ids[:length], weights[:length])], counts + Counts(cut=1, cut_tokens=len(ids) - length)
    return [], Counts(entries=1, tokens=len(ids), left_out=1, left_out_tokens=len(ids))


def _fill(lengths: Sequence[int], length: int, rng: random.Random) -> list[list[int]]:
    """Put pieces into rows: in random order, each into the row that it fills best."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for piece in rng.sample(range(len(lengths)), len(lengths)):
        at = bisect_left(open_rows, (lengths[piece], -1))
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if room > lengths[piece]:
            insort(open_rows, (room - lengths[piece], row))
        if len(open_rows) > OPEN_ROWS:
            open_rows.pop(0)
    return rows


class _Pool:
    """The packed rows of one source, drawn epoch after epoch, each time in another order."""

    def __init__(self, source: Source, encoder: Encoder, length: int, seed: int, number: int) -> None:
        self.length, self.pad, self._seed, self._number = length, encoder.pad, seed, number
        self._pieces: list[tuple[np.ndarray, np.ndarray]] = []
        self.counts = Counts()
        log.info("tokenising %s: %s entries", source.name, f"{len(source.entries):,}")
        for entry in source.entries:
            pieces, counts = _pieces(encoder(entry), length, encoder.bos)
            self._pieces += pieces
            self.counts += counts
        self._rows = _fill([len(ids) for ids, _ in self._pieces], length, random.Random(f"{seed}-{number}-rows"))
        filled = sum(len(ids) for ids, _ in self._pieces)
        self.counts += Counts(rows=len(self._rows), padding=len(self._rows) * length - filled)
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, index: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The pieces of the index-th row that is drawn from here."""
        epoch, place = divmod(index, len(self._rows))
        if self._order[0] != epoch:
            rng = random.Random(f"{self._seed}-{self._number}-{epoch}")
            self._order = epoch, rng.sample(range(len(self._rows)), len(self._rows))
        return self.row(self._order[1][place])

    def row(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._pieces[piece] for piece in self._rows[number]]


class PackedRows:
    """Batches for training: `packed(step, rows)` gives the same for the same step, and no earlier step is computed.

    Every source's rows come once before any comes again, in an order that changes from epoch to epoch.

    Attributes:
        counts: what became of the entries.
        notes: what was left out, source by source.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Any,
        *,
        tokens: int,
        seed: int = 0,
        shares: Sequence[float] = (),
        prompt_weight: float = 0.0,
        document_weight: float = 0.0,
        system_prompt: str = "",
        document_start: str | None = None,
    ) -> None:
        """Encode and pack.

        Args:
            tokens: length of each row.
            shares: of each source in the rows; none: by size.
            prompt_weight: loss weight of turns that are no answers.
            document_weight: loss weight of documents that turns are about.
            system_prompt, document_start: what chats and documents begin with, see `app.models.turns`.

        Raises:
            ConfigError: the shares do not fit.
            InputError: a source holds nothing that fits into a row.
        """
        if shares and (len(shares) != len(sources) or min(shares) < 0 or not any(shares)):
            raise ConfigError(f"shares {list(shares)}: give {len(sources)} numbers, none below 0 and not all 0")
        if tokens < 2:
            raise ConfigError(f"rows of {tokens} tokens: give at least 2")
        self.tokens = tokens
        encoder = Encoder(
            tokenizer,
            prompt_weight=prompt_weight,
            document_weight=document_weight,
            system_prompt=system_prompt,
            document_start=document_start,
        )
        self._pools = [_Pool(source, encoder, tokens, seed, i) for i, source in enumerate(sources)]
        self.counts = sum((pool.counts for pool in self._pools), Counts())
        self.notes = tuple(note for source in sources for note in source.notes)
        for source, pool in zip(sources, self._pools, strict=True):
            if not pool:
                raise InputError(f"{source.name}: nothing in it can be learnt from: {pool.counts.told(tokens)}")
        self._shares = [share / sum(shares) for share in shares] if shares else self._by_size()
        self._drawn: list[tuple[int, int]] = []  # (pool, index in it) of each row drawn
        self._taken = [0] * len(self._pools)

    def _by_size(self) -> list[float]:
        return [len(pool) / sum(map(len, self._pools)) for pool in self._pools]

    @property
    def rows(self) -> int:
        """How many rows hold everything once."""
        return sum(map(len, self._pools))

    def told(self) -> str:
        """What is learnt and what was split, cut or left out, in words."""
        return "; ".join([self.counts.told(self.tokens), *self.notes])

    def __call__(self, step: int, rows: int) -> dict[str, Tensor]:
        """The batch of a step.

        Args:
            step: from 0.
            rows: in each batch; always the same in one run.

        Returns:
            input_ids: [rows, tokens] int64, padded with the pad token.
            weights: [rows, tokens] float32, of predicting each token; 0 for padding and where a document begins.
            documents: [rows, tokens] int64, equal numbers for one document, -1 for padding.
        """
        places = [self._place(row) for row in range(step * rows, (step + 1) * rows)]
        return self._batch([self._pools[pool].draw(index) for pool, index in places])

    def in_order(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """Everything once, for validation; the last batch may have fewer rows."""
        everything = [(pool, number) for pool in self._pools for number in range(len(pool))]
        for start in range(0, len(everything), rows):
            yield self._batch([pool.row(number) for pool, number in everything[start : start + rows]])

    def _place(self, row: int) -> tuple[int, int]:
        """The source and the place in it of a row: always the source that is furthest behind its share."""
        if len(self._pools) == 1:
            return 0, row
        while len(self._drawn) <= row:
            count = len(self._drawn) + 1
            behind = [share * count - taken for share, taken in zip(self._shares, self._taken, strict=True)]
            pool = behind.index(max(behind))
            self._drawn.append((pool, self._taken[pool]))
            self._taken[pool] += 1
        return self._drawn[row]

    def _batch(self, rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> dict[str, Tensor]:
        shape = (len(rows), self.tokens)
        ids = np.full(shape, self._pools[0].pad, np.int64)
        weights, documents = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
        for row, pieces in enumerate(rows):
            at = 0
            for number, (piece, piece_weights) in enumerate(pieces):
                span = slice(at, at := at + len(piece))
                ids[row, span], weights[row, span], documents[row, span] = piece, piece_weights, number
        return {
            "input_ids": torch.from_numpy(ids),
            "weights": torch.from_numpy(weights),
            "documents": torch.from_numpy(documents),
        }
