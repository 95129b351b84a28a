"""Prefill by the kernels that walk lists: the same hidden states and the same mass as the path that gathers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from app.kernels.backend import VARIABLE, backend
from app.memory.pages import KVPages
from app.runtime import attention, cache
from tests import tiny


def hold(
    engine, *, attached: bool = False, muted: bool = False, places: tuple[int, ...] = (0, 64, 70, 130)
) -> tuple[Tensor, list[Tensor]]:
    """(logits of a turn, mass of the tail by layer); with `attached` two texts stand before it.

    The turn comes in pieces: what still fits the budget, groups that are not whole, then whole ones and a piece.
    """
    memories = [engine.read(tiny.token_ids(count, seed=count)) for count in ((83, 45) if attached else ())]
    cache = engine.open_chat(memories)
    if muted:
        cache.allow([number % 3 > 0 for number in range(cache.base_regions)])
    for start, end in pairwise(places):
        ids = tiny.token_ids(places[-1], seed=1)[start:end]
        logits = engine.model(torch.tensor([ids]), past_key_values=cache).logits
    return logits, [mass.clone() for mass in cache.tail.mass]


CASES: dict[str, dict] = {
    "compact": {},
    "original": {"positions": "original"},
    "own only": {"forced": "own"},
    "attached": {"attached": True},
    "attached and muted": {"attached": True, "muted": True},
    "copies, when not all are hot": {"attached": True},
}


@pytest.mark.parametrize("name", CASES)
def test_lists_give_what_gathering_gives(name: str, monkeypatch: pytest.MonkeyPatch, watch_calls: Callable) -> None:
    case = dict(CASES[name])
    options = {x: case.pop(x) for x in ("positions", "forced") if x in case}

    def run() -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            return hold(tiny.engine(replace(tiny.SMALL, **options)), **case)

    expected = run()
    calls, copies = watch_calls(attention, "selected_attention"), watch_calls(cache, "gather")
    if name.startswith("copies"):
        monkeypatch.setattr(KVPages, "find", lambda self, layer, heads, regions: (regions * 0 - 1, regions))
    monkeypatch.setattr(attention, "walks_lists", lambda *_: True)  # the reference of lists: sound on any device
    found = run()
    assert calls and bool(copies) == name.startswith("copies")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def watch_calls(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A function that counts the calls of another from now on."""

    def watch(module, name: str) -> list[tuple]:
        calls, real = [], getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **named: calls.append(args) or real(*args, **named))
        return calls

    return watch


def test_the_kernels_give_the_same(monkeypatch: pytest.MonkeyPatch, watch_calls: Callable) -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("triton is there compiled, and the tiny engine runs on the CPU")
    expected = hold(tiny.engine(), places=(0, 64, 85))
    from app.kernels import selected_grad_triton, selected_triton

    calls = watch_calls(selected_grad_triton, "forward"), watch_calls(selected_triton, "mass")
    monkeypatch.setenv(VARIABLE, "triton")
    backend.cache_clear()
    try:
        with torch.no_grad():
            found = hold(tiny.engine(), places=(0, 64, 85))
    finally:
        backend.cache_clear()
    assert all(calls)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
