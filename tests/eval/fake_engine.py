"""An Engine without a model: it reads bytes and answers with a function of the document's text and the question."""

from collections.abc import Callable, Iterator, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.runtime.config import GenerationConfig

BOS = 256


def byte_tokenizer() -> Tokenizer:
    """One token per byte."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class FakeEngine:
    """Remembers what it read; `reply(text, question)` answers.

    Attributes:
        readings: text of each reading.
        chats: how many chats were opened.
    """

    trained_tokens = 256
    budget_tokens = 256
    bos_id = BOS
    description = {"name": "fake"}

    def __init__(self, reply: Callable[[str, str], str]) -> None:
        self.text_tokenizer = byte_tokenizer()
        self.text_tokenizer.encode_special_tokens = True
        self.reply = reply
        self.readings: list[str] = []
        self.chats = 0

    def read(
        self,
        token_ids: Sequence[int],
        *,
        on_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> str:
        assert token_ids[0] == BOS
        if on_progress:
            on_progress(len(token_ids), len(token_ids))
        self.readings.append(self.decode(token_ids[1:]))
        return self.readings[-1]

    def open_chat(self, memories: Sequence[str]) -> str:
        self.chats += 1
        return "".join(memories)

    def encode_turn(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return self.text_tokenizer.encode(messages[-1]["content"]).ids

    def generate(
        self,
        cache: str,
        token_ids: Sequence[int],
        config: GenerationConfig,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        assert config.temperature == 0
        yield from self.text_tokenizer.encode(self.reply(cache, self.decode(token_ids))).ids[: config.max_new_tokens]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.text_tokenizer.decode(list(token_ids))

    def log_probs(
        self, token_ids: Sequence[int], *, counted_from: int = 0, cancelled: Callable[[], bool] | None = None
    ) -> torch.Tensor:
        """Tokens are the likelier the more stands before them."""
        return -1 / torch.arange(counted_from, len(token_ids), dtype=torch.float32)
