"""Tokens are drawn as often as they are probable, a seed repeats itself, and an answer that does so ends."""

import re

import pytest
import torch

from app.memory.config import GenerationConfig
from app.runtime.decode import Repetition, Sampler, choose

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


ENOUGH = GenerationConfig().repeat_tokens


def ends_at(tokens, texts=(), enough=ENOUGH):
    """After how many tokens an answer is found to repeat itself; None when it never is."""
    repeats = Repetition(enough, texts)
    return next((count for count, token in enumerate(tokens, start=1) if repeats(token)), None)


def words(text):
    """A number for each word and mark, as a tokenizer that keeps words whole would give."""
    found = re.findall(r"\w+|[^\w ]", text)
    return [sorted(set(found)).index(word) for word in found]


@pytest.mark.parametrize("run", [1, 2, 7, 31, 32])
def test_a_run_that_comes_again_and_again_ends_the_answer(run):
    said = [500, 501, 502, *(i % run for i in range(1000))]
    assert ends_at(said) == 3 + run + ENOUGH
    assert ends_at(said, enough=0) is None


def test_a_longer_run_or_one_that_changes_does_not():
    assert ends_at([i % 33 for i in range(1000)]) is None
    assert ends_at([i % 5 if i % 90 else 7000 + i for i in range(1000)]) is None  # as in a numbered list


@pytest.mark.parametrize(
    "said",
    [
        "buffer = [" + "0, " * 32 + "0]",
        "matrix = [" + "[0, 0, 0, 0], " * 5 + "]",
        "| --- " * 24 + "|",
        "ha " * 60,
        "Row, row, row your boat, gently down the stream, merrily, merrily, merrily, merrily, life is but a dream. "
        * 4,
    ],
)
def test_what_repeats_for_good_reason_is_said_whole(said):
    assert ends_at(words(said)) is None


def test_a_quotation_may_repeat_as_often_as_the_text_does():
    table = words("[0, 0, 0, 0, 0, 0, 0, 0], " * 40)
    text = [1, 2, 3, *table, 4, 5]
    assert ends_at([9, *table]) < len(table) and ends_at([9, *table], [[7], text]) is None
    assert ends_at([9, *table, *table], [text]) == 1 + len(table) + 1


def test_repetition_is_found_in_the_numbers_not_across_them():
    shifted = [1 << 8] * 300  # the same bytes, one place off
    assert ends_at([1] * 200, [shifted]) == 1 + ENOUGH
