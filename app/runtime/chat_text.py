"""ChatText: between what is said and the tokens that the model runs."""

import re
from collections.abc import Iterator, Sequence

NEIGHBOURS = 8  # tokens before one that decide how it is spelt
CONTENT_MARK = re.compile(r"\x02(\d+)\x03")


class ChatText:
    """A model's tokenizer, its chat template, and what it is told before a chat.

    Attributes:
        text_tokenizer: tokenizers.Tokenizer that takes markers inside a text as plain characters.
        stop_ids: tokens that end an answer.
    """

    def __init__(self, model, tokenizer, system_prompt: str) -> None:
        self.tokenizer, self.system_prompt = tokenizer, system_prompt
        backend = tokenizer.backend_tokenizer
        self.text_tokenizer = type(backend).from_str(backend.to_str())
        self.text_tokenizer.encode_special_tokens = True
        self.stop_ids = _stop_ids(model, tokenizer)

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id

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
        history = list(messages)
        if self.system_prompt and history[0]["role"] != "system":
            history.insert(0, {"role": "system", "content": self.system_prompt})
        # Contents are put in after rendering: a marker that a user types stays text, and the place of the last answer
        # is known whatever its words are.
        marked = [{**message, "content": f"\x02{i}\x03"} for i, message in enumerate(history)]
        text = self._render(marked)
        answers = [message["content"] for message in marked if message["role"] == "assistant"]
        if last_token is not None and answers:
            _, found, text = text.rpartition(answers[-1])
            if not found:  # the template leaves out old answers: open the turn afresh
                text = self._render(marked[-1:])
            if last_token in self.stop_ids:  # an answer that was cut still needs its end
                text = text.removeprefix(self.tokenizer.decode([last_token]))
        if self.tokenizer.bos_token:
            text = text.removeprefix(self.tokenizer.bos_token)
        ids: list[int] = []
        for i, piece in enumerate(CONTENT_MARK.split(text)):
            if i % 2:
                ids += self.text_tokenizer.encode(history[int(piece)]["content"], add_special_tokens=False).ids
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        if not self.tokenizer.chat_template:
            lines = [f"{'Answer' if m['role'] == 'assistant' else 'Question'}: {m['content']}\n" for m in messages]
            return "\n" + "".join(lines) + "Answer:"
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _stop_ids(model, tokenizer) -> frozenset[int]:
    """End-of-sequence ids of the tokenizer and of the model's generation config."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return frozenset(i for i in ids if i is not None)
