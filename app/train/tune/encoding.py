"""Entries to token ids and loss weights, laid out exactly as the app lays out a document and a chat."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import InputError
from app.train.tune.instructions import Entry

_MARK = re.compile(r"\x02(\d+)\x03")
_PIECE_CHARS = 1 << 18  # longer texts are cut at lines, so that all cores tokenise
_END_WITHIN = 3  # tokens between an answer and its end marker


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
    """Renders entries with a tokenizer's chat template.

    A text is BOS and its tokens, all with weight 1. A conversation is BOS, its document, if it has one, and its turns;
    answers and their end markers weigh 1, turns of others `prompt_weight`, the document `document_weight`. Without a
    chat template turns are "Question: ..." and "Answer: ..." lines, as the app asks such models.

    Contents go in after the template is rendered, so that a marker inside them stays text.

    Attributes:
        plain: tokenizers.Tokenizer that takes markers as plain characters.
    """

    def __init__(self, tokenizer: Any, *, prompt_weight: float = 0.0, document_weight: float = 0.0) -> None:
        if not tokenizer.is_fast:
            raise InputError("this model's tokenizer has no tokenizer.json; convert it to the fast format")
        self.tokenizer = tokenizer
        self.prompt_weight, self.document_weight = prompt_weight, document_weight
        backend = tokenizer.backend_tokenizer
        self.plain = type(backend).from_str(backend.to_str())
        self.plain.encode_special_tokens = True
        self.plain.no_truncation()
        added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._ends = added | set(tokenizer.all_special_ids)
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = next((id for id in (tokenizer.pad_token_id, self.eos) if id is not None), 0)

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
        if not self.tokenizer.chat_template:
            return self._lines(entry)
        rendered = self._render(entry)
        ids: list[int] = []
        weights: list[float] = []
        answered = False
        for i, piece in enumerate(_MARK.split(rendered)):
            if i % 2:
                role, content = entry.turns[int(piece)]
                tokens, answered = self._text(content), role == "assistant"
                weights += [1.0 if answered else self.prompt_weight] * len(tokens)
            else:
                tokens = self.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
                end = next((k for k, token in enumerate(tokens[:_END_WITHIN], start=1) if token in self._ends), 0)
                if answered and not end and i == 2 * len(entry.turns) and self.eos is not None:
                    tokens, end = [self.eos, *tokens], 1  # a template that leaves the last answer open
                weights += [1.0] * end if answered else [self.prompt_weight] * end
                weights += [self.prompt_weight] * (len(tokens) - end)
            ids += tokens
        return ids, weights

    def _render(self, entry: Entry) -> str:
        messages = [{"role": role, "content": f"\x02{i}\x03"} for i, (role, _) in enumerate(entry.turns)]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # templates are programs; what they raise is theirs
            reason = str(error).strip().splitlines()
            raise InputError(
                f"{entry.where}: this model's chat template refuses the turns {', '.join(r for r, _ in entry.turns)}: "
                f"{reason[0] if reason else type(error).__name__}; mend the entry or leave it out"
            ) from error
        if self.tokenizer.bos_token:
            text = text.removeprefix(self.tokenizer.bos_token)
        found = [int(number) for number in _MARK.findall(text)]
        if found != list(range(len(entry.turns))):
            raise InputError(
                f"{entry.where}: this model's chat template does not show all {len(entry.turns)} turns "
                f"(those shown: {found}); mend the entry or leave it out"
            )
        return text

    def _lines(self, entry: Entry) -> tuple[list[int], list[float]]:
        """Turns for a model without a chat template; an answer ends with EOS."""
        ids: list[int] = []
        weights: list[float] = []
        for role, content in entry.turns:
            if role == "assistant":
                opening = self._text("\nAnswer:")
                answer = self._text(f" {content}") + ([] if self.eos is None else [self.eos])
            else:
                opening, answer = self._text(f"\n{'Question: ' if role == 'user' else ''}{content}"), []
            ids += opening + answer
            weights += [self.prompt_weight] * len(opening) + [1.0] * len(answer)
        return ids, weights
