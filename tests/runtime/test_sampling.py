"""Tokens are drawn as often as they are probable, from the likely ones alone, and a seed repeats itself."""

import pytest
import torch

from app.runtime.config import GenerationConfig
from app.runtime.sampling import Sampler, choose

LOGITS = torch.tensor([0.5, -1.0, 2.0, float("-inf"), 1.0, 0.5])
DRAWS = 6000


def counts(temperature, top_p):
    draws = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS  # evenly: no chance in the test
    found = [int(choose(LOGITS, draw, temperature, top_p)) for draw in draws]
    return torch.bincount(torch.tensor(found), minlength=len(LOGITS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_as_often_as_probable(temperature):
    wanted = (LOGITS / temperature).softmax(0) * DRAWS
    assert ((counts(temperature, 1.0) - wanted).abs() <= 1.5).all()


def test_likely_tokens_alone():
    probs = LOGITS.softmax(0)
    kept = probs.clone()
    kept[[1, 5]] = 0  # 2, 4 and the first of two equal ones reach 0.8, no fewer do
    assert probs[[2, 4]].sum() < 0.8 < probs[[2, 4, 0]].sum()
    assert ((counts(1.0, 0.8) - kept / kept.sum() * DRAWS).abs() <= 1.5).all()
    assert counts(1.0, 0.1)[2] == DRAWS  # always the best one, however little is asked for


def test_the_ends_of_the_draw():
    for draw, token in ((0.0, 0), (1 - 2**-53, 5)):
        assert choose(LOGITS, torch.tensor(draw, dtype=torch.float64), 1.0, 1.0) == token


def test_temperature_zero_takes_the_best():
    assert Sampler(GenerationConfig(), torch.device("cpu"))(LOGITS) == 2


def test_a_seed_repeats_itself_and_goes_on(monkeypatch):
    def drawn(ahead, seed=7):
        monkeypatch.setattr(Sampler, "AHEAD", ahead)
        sampler = Sampler(GenerationConfig(temperature=1.0, seed=seed), torch.device("cpu"))
        return [int(sampler(LOGITS)) for _ in range(50)]

    assert drawn(50) == drawn(8) and drawn(8) != drawn(8, seed=8)
    assert len(set(drawn(8))) > 2
