"""An engine whose every operation runs its kernel reads and answers as one that runs the reference."""

import pytest
import torch

from app.kernels.backend import VARIABLE, backend
from app.memory.config import GenerationConfig
from tests import tiny


def answer(codec: str, every: int) -> tuple:
    """(tokens, mass of the tail, evidence) of a short answer over a text that is longer than the budget."""
    engine = tiny.engine(codec=codec)
    engine.stop_ids, engine.reselect_every = frozenset(), every
    cache = engine.open_chat([engine.read(tiny.token_ids(100))])
    tokens = list(engine.generate(cache, tiny.token_ids(5, seed=1)[1:], GenerationConfig(max_new_tokens=3)))
    return tokens, cache.tail.mass, cache.evidence.density


@pytest.mark.slow  # in the interpreter
@pytest.mark.parametrize("codec, every", [("raw", 1), ("int8", 3)])
def test_an_answer(codec: str, every: int, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "cuda":
        pytest.skip("tests/runtime compares on a GPU")
    found = answer(codec, every)
    monkeypatch.setenv(VARIABLE, "reference")
    backend.cache_clear()
    torch.testing.assert_close(found, answer(codec, every), atol=1e-4, rtol=1e-4)
