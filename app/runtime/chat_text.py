"""ChatText: between what is said and the tokens that the model runs."""

from collections.abc import Iterator, Sequence

from app.models.turns import Turns

NEIGHBOURS = 8  # tokens before one that decide how it is spelt


class ChatText:
    """A model's tokenizer, its chat template, and what it is told before a chat.

    Attributes:
        turns: how documents begin and what turns become.
        text_tokenizer: tokenizers.Tokenizer that takes markers inside a text as plain characters.
        stop_ids: tokens that end an answer.
    """

    def __init__(self, model, tokenizer, system_prompt: str, document_start: str | None = None) -> None:
        self.tokenizer, self.system_prompt = tokenizer, system_prompt
        self.turns = Turns(tokenizer, system_prompt, document_start)
        self.text_tokenizer = self.turns.text_tokenizer
        self.stop_ids = _stop_ids(model, tokenizer, self.turns)

    @property
    def bos_id(self) -> int | None:
        """The token with which a document begins, whatever the tokenizer calls it."""
        return self.turns.start_id

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds to the ones before it."""
        ids = list(token_ids)
        starts = [max(0, i - NEIGHBOURS) for i in range(len(ids))]
        return [self.decode(ids[start : i + 1])[len(self.decode(ids[start:i])) :] for i, start in enumerate(starts)]

    def stream_text(self, tokens: Iterator[int], stop: Sequence[str] = ()) -> Iterator[str]:
        """Text of a token stream, piece by piece; ends before the first stop string. Half characters wait."""
        ids, sent = [], ""
        for token in tokens:
            ids.append(token)
            text = self.decode(ids)
            if text.endswith("\ufffd"):
                continue
            found = min((i for s in stop if (i := text.find(s)) >= 0), default=None)
            if found is not None:
                yield text[len(sent) : found]
                return
            held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
            piece = text[len(sent) : len(text) - held]
            if piece:
                sent += piece
                yield piece
        rest = self.decode(ids)[len(sent) :]
        if rest:
            yield rest

    def encode_turn(self, messages: Sequence[dict[str, str]], last_token: int | None = None) -> list[int]:
        """Token ids of what the last user message adds to the chat, the answer's opening included.

        Args:
            messages: role/content of the whole chat, ending in a user message.
            last_token: the last token of the chat that was run; None when nothing of it was.
        """
        return self.turns.question(messages, last_token, self.stop_ids)


def _stop_ids(model, tokenizer, turns: Turns) -> frozenset[int]:
    """What generation config and tokenizer call the end, and the marker with which the template ends an answer."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id, turns.end_id}
    return frozenset(i for i in ids if i is not None)
