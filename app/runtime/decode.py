"""Answering: token after token over a cache; about long texts after a draft, which tells where the answer is."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.errors import CancelledError
from app.memory.config import GenerationConfig
from app.records import Ending
from app.runtime.cache import RegionCache
from app.runtime.held import Held
from app.runtime.sampling import Repetition, Sampler
from app.runtime.single import SharedChoices

if TYPE_CHECKING:
    from app.runtime.engine import Engine

Cancelled = Callable[[], bool] | None


def answer(
    engine: "Engine", cache: RegionCache, last: int, config: GenerationConfig, cancelled: Cancelled
) -> Generator[int, None, Ending]:
    """Yield token after token; `cache.evidence` gathers where each of them looked.

    Args:
        last: the prompt's last token, the query that predicts the first one; those before it have been run.

    Returns:
        why the answer ended; the stop token is run but not yielded.
    """
    sampler = Sampler(config, engine.model.device)
    repeats = Repetition(config.repeat_tokens, [memory.token_ids for memory in cache.memories])
    evidence = cache.watch()
    with _shared_choices(engine, cache) as held:
        hidden = _step(engine, cache, last, held)
        for _ in range(config.max_new_tokens):
            token = int(sampler(engine.logits(hidden)))
            ending: Ending = "stop" if token in engine.stop_ids else "repetition" if repeats(token) else "length"
            if ending != "stop":
                evidence.take()
                yield token
            hidden = _step(engine, cache, token, held)
            if cancelled and cancelled():
                return ""
            if ending != "length":
                return ending
        return "length"


def second_look(engine: "Engine", cache: RegionCache, last: int, cancelled: Cancelled) -> Tensor | None:
    """Draft an answer and tell which regions of the memories it looked at, for the answer itself to see no others.

    Where a text has thousands of regions, each head chooses by itself and chooses a little wrong; what all heads and
    tokens of a draft looked at is surer (docs/experiments.md, "A second look"). Nothing is drafted where an answer sees
    everything, where tokens were dropped, or where regions are chosen otherwise (StreamingLLM, InfLLM).

    Returns:
        Regions [N], with their neighbours and the sinks as many as a query has room for; None: the answer may see all.

    Raises:
        CancelledError: `cancelled` said so.
    """
    a, policy = engine.spec.attention, engine.spec.policy
    chooses = a.votes_by_means and policy.scores and not policy.sees_all and not _drops(engine, cache)
    if not engine.draft_tokens or not chooses:
        return None
    seen = torch.ones(cache.base_regions, dtype=torch.bool) if cache.allowed is None else cache.allowed.clone().cpu()
    if int(seen.sum()) + cache.tail.regions <= a.budget_regions:
        return None
    draft = cache.fork()
    for _ in answer(engine, draft, last, GenerationConfig(max_new_tokens=engine.draft_tokens), cancelled):
        pass
    if cancelled and cancelled():
        raise CancelledError("stopped in a draft")
    assert draft.evidence is not None, "it has been watched"
    sinks = a.sink_regions if a.forced == "all" else 0
    seen[:sinks] = False  # a query attends to them anyway, as to what is near
    found = draft.evidence.around(a.budget_regions - sinks - a.local_regions - 1, seen)
    return torch.cat([torch.arange(sinks), found]) if len(found) else None


def _drops(engine: "Engine", cache: RegionCache) -> bool:
    return engine.shape.compaction is not None or any(memory.dropped for memory in cache.memories)


@contextmanager
def _shared_choices(engine: "Engine", cache: RegionCache) -> Iterator[Held]:
    """Let the tokens of an answer share choices of regions as `engine.reselect_every` says."""

    def forward(token: Tensor) -> Tensor:
        return engine.model.model(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]

    every = engine.reselect_every
    held = Held(engine.spec, cache, every if isinstance(every, int) else 1, forward)
    cache.choices = None if isinstance(every, int) or _drops(engine, cache) else SharedChoices(every)
    try:
        yield held
    finally:
        cache.choices = None
        held.release()


@torch.no_grad()
def _step(engine: "Engine", cache: RegionCache, token: int, held: Held) -> Tensor:
    """Run one token of an answer, with the selection that is held or with a new one; returns its hidden state."""
    if held.goes_on:
        return held.step(token)
    held.release()
    hidden = engine.forward(cache, [token])[-1]
    held.hold()
    return hidden
