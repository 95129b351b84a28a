import math

import pytest

from app.errors import ConfigError, InputError
from app.eval import perplexity
from app.eval.perplexity import PerplexityConfig, Window
from tests import tiny
from tests.eval.fake_engine import BOS, FakeEngine


def test_windows_end_inside_the_text_and_count_no_token_twice() -> None:
    config = PerplexityConfig((100, 400), counted=50, windows=4)
    assert perplexity.ends(1000, config) == [400, 600, 800, 1000]
    assert perplexity.ends(460, config) == [400, 460]
    assert perplexity.ends(400, config) == [400]
    with pytest.raises(InputError, match="fewer than the length 400"):
        perplexity.ends(399, config)


def test_lengths_count_the_same_tokens_after_more_text() -> None:
    engine = FakeEngine(lambda text, question: "")
    asked = []
    log_probs = engine.log_probs
    engine.log_probs = lambda ids, **options: asked.append((ids, options["counted_from"])) or log_probs(ids, **options)
    ids = [BOS, *range(1, 200)]
    config = PerplexityConfig((20, 80), counted=10, windows=2)
    windows = list(perplexity.run(engine, ids, config))
    assert [len(read) for read, _ in asked] == [20, 20, 80, 80]
    assert all(read[0] == BOS for read, _ in asked)
    counted = [read[start:] for read, start in asked]
    assert all(len(tokens) == 10 for tokens in counted)
    assert counted[0] == counted[2] and counted[1] == counted[3] and counted[0] != counted[1]
    short, long = perplexity.summary(windows, config)["lengths"]
    assert long["perplexity"] < short["perplexity"]
    assert short["nats"] == pytest.approx(sum(1 / i for i in range(10, 20)) / 10)
    assert short["counted_tokens"] == 20


def test_summary_states_the_stride_and_the_error() -> None:
    config = PerplexityConfig((100,), counted=10, windows=2)
    values = perplexity.summary([Window(100, 100, 1.0), Window(100, 300, 3.0)], config)
    assert values["stride"] == 200
    (row,) = values["lengths"]
    assert row["perplexity"] == pytest.approx(math.e**2)
    assert row["standard_error"] == pytest.approx(1.0)


def test_counted_tokens_follow_the_shortest_length() -> None:
    assert PerplexityConfig((100, 4000)).counted_tokens == 50
    assert PerplexityConfig((4000,)).counted_tokens == 512
    with pytest.raises(ConfigError):
        PerplexityConfig((100,), counted=100)


def test_the_engine_reads_as_it_is_asked() -> None:
    engine, ids = tiny.engine(), tiny.token_ids(300)
    config = PerplexityConfig((100,), counted=30, windows=1)
    (window,) = perplexity.run(engine, ids, config)
    alone = engine.log_probs([ids[0], *ids[201:]])
    assert window.nats == pytest.approx(-float(alone[-30:].mean()), abs=1e-5)
