"""An Engine without a model: it reads bytes and answers with a function of the document's text and the question."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.memory.config import GenerationConfig

BOS = 256


def byte_tokenizer() -> Tokenizer:
    """One token per byte."""
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class FakeMemory:
    """Token ids, and the text of them."""

    def __init__(self, token_ids: list[int], text: str) -> None:
        self.token_ids, self.text = token_ids, text

    def truncate(self, tokens: int) -> None:
        del self.token_ids[tokens:]


class FakeChat:
    """Memories, and the tokens of the turns."""

    def __init__(self, memories: Sequence[FakeMemory]) -> None:
        self.text = "".join(memory.text for memory in memories)
        self.tail = FakeMemory([], "")
        self.turns = 0
        self.evidence = SimpleNamespace(density=torch.zeros(0))


class FakeEngine:
    """Remembers what it read; `reply(text, question)` answers.

    Attributes:
        readings: text of each reading.
        kept: tokens that each reading took over from the one before it.
        chats: how many chats were opened.
        turns: of each question asked, which one of its chat it was, from 0.
    """

    trained_tokens = 256
    budget_tokens = 256
    bos_id = BOS
    policy = "keep-all"
    lookup = "attention"
    description = {"name": "fake"}
    shape = SimpleNamespace(attention=SimpleNamespace(group_tokens=8, region_tokens=4))

    def __init__(self, reply: Callable[[str, str], str]) -> None:
        self.text_tokenizer = byte_tokenizer()
        self.text_tokenizer.encode_special_tokens = True
        self.reply = reply
        self.readings: list[str] = []
        self.kept: list[int] = []
        self.chats = 0
        self.turns: list[int] = []

    def read(
        self,
        token_ids: Sequence[int],
        *,
        resume: FakeMemory | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> FakeMemory:
        assert token_ids[0] == BOS
        kept = resume.token_ids if resume else []
        assert kept == list(token_ids[: len(kept)]) and len(kept) < len(token_ids)
        if on_progress:
            on_progress(len(token_ids), len(token_ids))
        self.kept.append(len(kept))
        self.readings.append(self.decode(token_ids[1:]))
        return FakeMemory(list(token_ids), self.readings[-1])

    def open_chat(self, memories: Sequence[FakeMemory]) -> FakeChat:
        self.chats += 1
        return FakeChat(memories)

    def encode_turn(self, messages: Sequence[dict[str, str]], last_token: int | None = None) -> list[int]:
        assert (last_token is None) == (len(messages) == 1)
        return self.text_tokenizer.encode(messages[-1]["content"]).ids

    def generate(
        self,
        cache: FakeChat,
        token_ids: Sequence[int],
        config: GenerationConfig,
        *,
        offered: Sequence[int] = (),
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        assert not offered, "attention looks alone"
        assert config.temperature == 0
        reply = self.text_tokenizer.encode(self.reply(cache.text, self.decode(token_ids))).ids[: config.max_new_tokens]
        self.turns.append(cache.turns)
        cache.turns += 1
        cache.tail.token_ids += [*token_ids, *reply]
        yield from reply

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.text_tokenizer.decode(list(token_ids))

    def log_probs(
        self, token_ids: Sequence[int], *, counted_from: int = 0, cancelled: Callable[[], bool] | None = None
    ) -> torch.Tensor:
        """Tokens are the likelier the more stands before them."""
        return -1 / torch.arange(counted_from, len(token_ids), dtype=torch.float32)
