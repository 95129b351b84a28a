"""Entries to token ids and loss weights, laid out exactly as the app lays out a document and a chat."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import InputError
from app.models.turns import Turns
from app.train.tune.instructions import Entry

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
