"""Answering: token after token over a cache; about long texts after a draft, which tells where the answer is."""

from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from app.errors import CancelledError
from app.kernels.backend import use_triton
from app.memory.config import GenerationConfig
from app.memory.shape import MemoryShape
from app.records import Ending
from app.runtime.cache import SINK_TOKENS, RegionCache, SharedChoices
from app.runtime.evidence import AnswerEvidence, Chosen
from app.runtime.held import Held
from app.runtime.policies import AttentionSpec
from app.runtime.together import Together
from app.runtime.windows import Windows


class Engine(Protocol):
    """What answering needs of `app.runtime.engine.Engine`."""

    model: Any
    spec: AttentionSpec
    shape: MemoryShape
    stop_ids: frozenset[int]
    draft_tokens: int
    lookup: str
    reselect_every: int | Sequence[int]
    together: Together

    def segments(
        self, cache: RegionCache, token_ids: Sequence[int], cancelled: Callable[[], bool] | None
    ) -> Iterator[tuple[int, int, Tensor]]: ...

    def forward(self, cache: RegionCache, token_ids: Sequence[int]) -> Tensor: ...

    def choosing_step(self, cache: RegionCache, token: int) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Sampler:
    """Draws token after token.

    The uniform numbers come from a generator on the CPU, so that a seed means the same on every device; they are sent
    ahead, many at a time.
    """

    AHEAD = 256  # draws sent at a time

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self.config, self._device = config, device
        self._generator = torch.Generator().manual_seed(config.seed)
        self._draws: list[Tensor] = []

    def __call__(self, logits: Tensor) -> Tensor:
        """The chosen token of logits [V], a number on their device; temperature 0 takes the best."""
        if self.config.temperature == 0:
            return logits.argmax()
        if not self._draws:
            draws = torch.rand(self.AHEAD, generator=self._generator, dtype=torch.float64)
            self._draws = list(draws.to(self._device, non_blocking=True).unbind())
        return choose(logits, self._draws.pop(0), self.config.temperature, self.config.top_p)


def choose(logits: Tensor, draw: Tensor, temperature: float, top_p: float) -> Tensor:
    """The token in which a uniform number falls, where tokens take as much room as they are probable.

    Args:
        logits: [V]. draw: float64, at least 0 and below 1.
        top_p: likely tokens that together reach this much are drawn from, no others.

    Returns:
        int64 without axes. No step waits for the device, and all shapes are fixed.
    """
    probs, order = torch.softmax(logits.float() / temperature, dim=-1), None
    if top_p < 1:
        probs, order = probs.sort(descending=True, stable=True)
        probs = probs.masked_fill(probs.cumsum(0) - probs > top_p, 0)
    reach = probs.double().cumsum(0)
    place = torch.searchsorted(reach, draw * reach[-1], right=True).clamp(max=len(reach) - 1)
    return place if order is None else order[place]


class Repetition:
    """Notices that an answer does nothing any more but repeat itself. It changes no token.

    As vLLM's repetition detection does, it looks for runs that stand at the end again and again. What stands so in a
    text that was read is no sign of it: an answer may quote a refrain or a table of zeros, however long.
    """

    LONGEST = 32  # tokens of a run

    def __init__(self, repeat_tokens: int, texts: Sequence[Sequence[int]] = ()) -> None:
        """So many tokens have to equal those one run before them; 0 notices nothing. `texts`: what was read."""
        self._enough, self._texts = repeat_tokens, texts
        self._said: list[int] = []
        self._repeats = [0] * (self.LONGEST + 1)  # by length of the run: the last tokens that repeat one

    def __call__(self, token: int) -> bool:
        """Take the answer's next token; whether the answer repeats itself now."""
        said, repeats = self._said, self._repeats
        said.append(token)
        for run in range(1, min(self.LONGEST, len(said) - 1) + 1):
            repeats[run] = repeats[run] + 1 if said[-1 - run] == token else 0
        run = repeats.index(max(repeats))
        enough = 0 < self._enough <= repeats[run]
        return enough and not any(_holds(text, said[-repeats[run] - run :]) for text in self._texts)


def _holds(text: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether tokens stand in a text, in a row."""
    whole, wanted, place = array("q", text).tobytes(), array("q", tokens).tobytes(), -1
    while (place := whole.find(wanted, place + 1)) >= 0:
        if place % array("q").itemsize == 0:
            return True
    return False


Cancelled = Callable[[], bool] | None
WORDS_SHARE = 3  # a third of the budget each for what words and attention found, where both look
KEPT_SHARE = 4  # of it a quarter for what is left of both: a short text, as most of those that models are tuned on
KEPT_BY_WORDS = 5  # regions beside these, of the passage that words found first
DRAFT_TOKENS = 16  # where the recipe says nothing, and attention has to look beside words


def answer(
    engine: "Engine", cache: RegionCache, last: int, config: GenerationConfig, cancelled: Cancelled, asked_from: int = 0
) -> Generator[int, None, Ending]:
    """Yield token after token; `cache.evidence` gathers where each of them looked, and tells at the end where all did.

    Args:
        last: the prompt's last token, the query that predicts the first one; those before it have been run.
        asked_from: token of the tail with which the question begins.

    Returns:
        why the answer ended; the stop token is run but not yielded.
    """
    end, before = cache.tail.tokens + 1, cache.tail.tokens  # the question's last token is to come
    book = None if _drops(engine, cache) else [mass[:, :end].sum(0) for mass in cache.tail.mass]
    try:
        return (yield from _answer(engine, cache, last, config, cancelled))
    finally:
        _share(engine, cache, book, (asked_from, end), cache.tail.tokens - before)


def _share(engine: "Engine", cache: RegionCache, book: list[Tensor] | None, asked: tuple[int, int], steps: int) -> None:
    """Tell the evidence where the answer's attention went, by what the chat's own tokens received since `book`."""
    evidence, shape = cache.evidence, cache.shape
    if evidence is None or steps < 1:
        return
    own = None
    if book is not None and cache.tail.tokens >= asked[1]:
        got = torch.zeros(asked[1], device=shape.device)
        for mass, old in zip(cache.tail.mass, book, strict=True):
            got += mass[:, : asked[1]].sum(0)
            got[: len(old)] -= old
        sinks = 0 if cache.memories else SINK_TOKENS
        own = float(got[sinks : asked[0]].sum()) / steps, float(got[max(sinks, asked[0]) :].sum()) / steps
    evidence.share(shape.layers * engine.model.config.num_attention_heads, own)


def _answer(
    engine: "Engine", cache: RegionCache, last: int, config: GenerationConfig, cancelled: Cancelled
) -> Generator[int, None, Ending]:
    sampler = Sampler(config, engine.model.device)
    repeats = Repetition(config.repeat_tokens, [memory.token_ids for memory in cache.memories])
    evidence = cache.watch()
    with _shared_choices(engine, cache) as held, engine.together.answering():
        logits = _step(engine, cache, last, held)
        for _ in range(config.max_new_tokens):
            token = int(sampler(logits))
            ending: Ending = "stop" if token in engine.stop_ids else "repetition" if repeats(token) else "length"
            if ending != "stop":
                evidence.take()
                if config.log_probs is not None:
                    evidence.score(logits, token, config.log_probs)
                yield token
            logits = _step(engine, cache, token, held)
            if cancelled and cancelled():
                return ""
            if ending != "length":
                return ending
        return "length"


def glance(
    engine: "Engine", cache: RegionCache, token_ids: Sequence[int], tokens: int, cancelled: Cancelled
) -> AnswerEvidence:
    """Where the first tokens of an answer look, without a draft.

    Raises:
        CancelledError: `cancelled` said so.
    """
    for _ in engine.segments(cache, token_ids[:-1], cancelled):
        pass
    for _ in answer(engine, cache, token_ids[-1], GenerationConfig(max_new_tokens=tokens), cancelled):
        pass
    assert cache.evidence is not None, "it has been watched"
    return cache.evidence


def look_up(
    engine: "Engine", cache: RegionCache, token_ids: Sequence[int], offered: Sequence[int], cancelled: Cancelled
) -> None:
    """Run a question, and let the cache see no more than what an answer to it needs of long texts.

    Attention finds it by a draft: where a text has thousands of regions, each head chooses by itself and chooses a
    little wrong; what all heads and tokens of a draft looked at is surer. Words find it by themselves: `offered`. Where
    both look, each has a third of the budget; then the question is run again among what they found, as if that were
    the whole text, and what a draft looks at there is what the answer sees (docs/algorithm.md, "A second look"), and
    always the passage that words found first. All is seen where it fits the budget, where tokens were dropped, or where
    regions are chosen otherwise (StreamingLLM, InfLLM).

    Args:
        token_ids: the turn; its last token is left to the answer.
        offered: regions that the words of the question found, best first.

    Raises:
        CancelledError: `cancelled` said so; the cache's tail has to be truncated.
    """
    before, last, room = cache.tail.tokens, token_ids[-1], _room(engine, cache, len(token_ids) - 1)
    ranked = _by_words(engine, cache, offered, room)
    words = torch.tensor(sorted(ranked), dtype=torch.int64)

    def ask() -> None:
        cache.tail.truncate(before)
        for _ in engine.segments(cache, token_ids[:-1], cancelled):
            pass

    if engine.lookup == "words" and len(words):
        cache.narrow(Chosen(torch.arange(_sinks(engine)), words))
        return ask()
    ask()
    if not room:
        return
    third = engine.spec.attention.budget_regions // WORDS_SHARE
    found = _by_draft(engine, cache, last, min(room, third) if len(words) else room, cancelled)
    if not len(found) and not len(words):
        return
    chosen = Chosen(torch.cat([torch.arange(_sinks(engine)), found]), words)
    cache.narrow(chosen)
    if len(words):
        ask()
        kept = _by_draft(engine, cache, last, engine.spec.attention.budget_regions // KEPT_SHARE, cancelled)
        if len(kept):
            kept = torch.tensor(sorted({*range(_sinks(engine)), *kept.tolist(), *ranked[:KEPT_BY_WORDS]}))
            cache.narrow(replace(chosen, kept=kept))
            ask()


def _room(engine: "Engine", cache: RegionCache, asked_tokens: int) -> int:
    """Regions of the memories that an answer has room for beside the sinks and what is near; 0 where it sees all."""
    a, policy = engine.spec.attention, engine.spec.policy
    if not (a.votes_by_means and policy.scores) or policy.sees_all or _drops(engine, cache):
        return 0
    seen = cache.base_regions if cache.allowed is None else int(cache.allowed.sum())
    if seen + -(-(cache.tail.tokens + asked_tokens) // a.region_tokens) <= a.budget_regions:
        return 0
    return max(0, a.budget_regions - _sinks(engine) - a.local_regions - 1)


def _sinks(engine: "Engine") -> int:
    a = engine.spec.attention
    return a.sink_regions if a.forced == "all" else 0


def _by_words(engine: "Engine", cache: RegionCache, offered: Sequence[int], room: int) -> list[int]:
    """Those of the regions offered that may be seen, as many as words have room for; best first."""
    if engine.lookup == "attention" or not room:
        return []
    if engine.lookup == "both":
        room = min(room, engine.spec.attention.budget_regions // WORDS_SHARE)
    sinks, allowed = _sinks(engine), cache.allowed
    seen = [r for r in dict.fromkeys(offered) if r >= sinks and (allowed is None or bool(allowed[r]))]
    return seen[:room]


def _by_draft(engine: "Engine", cache: RegionCache, last: int, room: int, cancelled: Cancelled) -> Tensor:
    """The regions that a draft of the answer looked at most, with their neighbours, at most `room`; ascending."""
    tokens = engine.draft_tokens or (DRAFT_TOKENS if engine.lookup == "both" else 0)
    if not tokens or room < 1:
        return torch.zeros(0, dtype=torch.int64)
    draft = cache.fork()
    for _ in answer(engine, draft, last, GenerationConfig(max_new_tokens=tokens), cancelled):
        pass
    if cancelled and cancelled():
        raise CancelledError("stopped in a draft")
    assert draft.evidence is not None, "it has been watched"
    seen = torch.ones(cache.base_regions, dtype=torch.bool) if cache.allowed is None else cache.allowed.clone().cpu()
    seen[: _sinks(engine)] = False  # a query attends to them anyway, as to what is near
    return draft.evidence.around(room, seen)


def _drops(engine: "Engine", cache: RegionCache) -> bool:
    return engine.shape.compaction is not None or any(memory.dropped for memory in cache.memories)


@contextmanager
def _shared_choices(engine: "Engine", cache: RegionCache) -> Iterator["Held | Windows"]:
    """Let the tokens of an answer share choices of regions as `engine.reselect_every` says."""

    def forward(token: Tensor) -> Tensor:
        return engine.model.model(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]

    every = engine.reselect_every
    shared = every if isinstance(every, int) else 1
    if use_triton(engine.model.model.norm.weight):
        held: Held | Windows = Held(engine.spec, cache, shared, forward)
    else:
        held = Windows(engine.spec, cache, shared, settled=every != 1)
    cache.choices = None if isinstance(every, int) or _drops(engine, cache) else SharedChoices(every)
    try:
        yield held
    finally:
        cache.choices = None
        held.release()


@torch.no_grad()
def _step(engine: "Engine", cache: RegionCache, token: int, held: "Held | Windows") -> Tensor:
    """Run one token of an answer, with the selection that is held or with a new one; returns the logits [V]."""
    if not held.goes_on:
        with held.choosing():
            return engine.choosing_step(cache, token)
    if isinstance(held, Windows):
        return engine.together.step(token, held)
    return engine.logits(held.step(token))
