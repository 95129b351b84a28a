"""Steps that keep a selection: where all is attended they change nothing, else they attend to what was chosen."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from app.memory.config import GenerationConfig
from app.runtime import attention, held
from app.runtime.cache import SharedChoices
from app.runtime.held import Captured
from tests import tiny

GREEDY = GenerationConfig(max_new_tokens=40)
TURN = tiny.token_ids(9, seed=1)[1:]


def answer(engine, every, memory_tokens, *, texts=1, config=GREEDY):
    """(tokens, cache, held steps) of an answer over memories."""
    engine.stop_ids, engine.reselect_every = frozenset(), every
    memories = [engine.read(tiny.token_ids(memory_tokens, seed=seed)) for seed in range(texts)]
    cache, steps = engine.open_chat(memories), []
    step = held.Held.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held.Held, "step", lambda self, token: steps.append(token) or step(self, token))
        tokens = list(engine.generate(cache, TURN, config))
    return tokens, cache, len(steps)


def same(one, two):
    """The two tails hold the same, and the evidence is the same."""
    (_, a, _), (_, b, _) = one, two
    assert a.tail.token_ids == b.tail.token_ids and a.tail.filled == b.tail.filled
    for layer in range(a.shape.layers):
        for x, y in zip(
            [*a.tail.pages.rows(layer, 0, a.tail.slots), a.tail.mass[layer], a.tail.exposure[layer]],
            [*b.tail.pages.rows(layer, 0, b.tail.slots), b.tail.mass[layer], b.tail.exposure[layer]],
            strict=True,
        ):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
        for x, y in zip(a.tail.index.means.values(), b.tail.index.means.values(), strict=True):
            torch.testing.assert_close(x[layer], y[layer], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.evidence.density, b.evidence.density, atol=1e-5, rtol=1e-5)
    looks = [[[region for region, _ in token] for token in cache.evidence.looks()] for cache in (a, b)]
    assert looks[0] == looks[1]


@pytest.mark.parametrize("every", [2, 5, 100])
@pytest.mark.parametrize("texts", [0, 1])
def test_where_all_is_attended_nothing_changes(every, texts):
    config = GenerationConfig(max_new_tokens=30)
    plain, kept = (answer(tiny.engine(), n, 16, texts=texts, config=config) for n in (1, every))
    assert plain[2] == 0 and kept[2] >= 12 and plain[0] == kept[0]
    same(plain, kept)


def choose_by_region(monkeypatch):
    """Let choices stand for whole regions of the tail, whoever asks."""
    choose, fixed = attention.select_one, {}

    def chosen(spec, cache, layer, q, first, lengths):
        key = id(cache), layer, first
        fixed[key] = fixed.get(key, choose(spec, cache, layer, q, first, lengths))
        return fixed[key]

    monkeypatch.setattr(attention, "select_one", chosen)


@pytest.mark.parametrize("positions", ["compact", "original", "one_distance"])
@pytest.mark.parametrize("texts", [1, 2])
def test_it_attends_to_what_was_chosen(positions, texts, monkeypatch):
    """With choices that stand for whole regions of the tail, keeping one for a while is the same as making it again."""
    choose_by_region(monkeypatch)
    selection = replace(tiny.SMALL, positions=positions)
    plain, kept = (answer(tiny.engine(selection), n, 150, texts=texts) for n in (1, 8))
    assert plain[2] == 0 and kept[2] > 20 and plain[0] == kept[0]
    same(plain, kept)


@pytest.mark.parametrize("every", [8, (8, 1)])
def test_memories_that_drop_tokens_choose_each_time(every, monkeypatch):
    from app.kernels.h2o import H2OOptions
    from app.runtime.policies import H2O

    counted = choices_by_layer(monkeypatch)
    engine = tiny.engine().under(H2O(H2OOptions(sinks=2, recent=8, block=4)))
    assert answer(engine, every, 150)[2] == 0 and len(set(counted.values())) == 1


def choices_by_layer(monkeypatch):
    """How often each layer chose, filled while an answer is made."""
    choose, counted = attention.select_one, Counter()

    def counting(spec, cache, layer, *rest):
        counted[layer] += 1
        return choose(spec, cache, layer, *rest)

    monkeypatch.setattr(attention, "select_one", counting)
    return counted


def test_each_layer_shares_its_choices_as_long_as_it_says(monkeypatch):
    counted = choices_by_layer(monkeypatch)
    tokens, cache, held_steps = answer(tiny.engine(), (4, 1), 150)
    assert held_steps == 0 and cache.choices is None
    assert counted[1] == len(tokens) + 1  # the turn's last token predicts the first
    assert counted[1] / 4 <= counted[0] <= counted[1] / 2  # a region that begins ends a choice


@pytest.mark.parametrize("every", [(8, 1), (1, 8), (3, 20)])
def test_choices_for_whole_regions_are_the_same_kept_by_some_layers(every, monkeypatch):
    choose_by_region(monkeypatch)
    plain, kept = (answer(tiny.engine(), n, 150) for n in (1, every))
    assert plain[0] == kept[0]
    same(plain, kept)


def test_a_step_that_is_repeated_chooses_anew():
    choices, made = SharedChoices((8,)), iter(range(9))
    assert [choices.of(0, 3, lambda: next(made)) for _ in range(3)] == [0, 0, 0]
    choices.forget()
    assert choices.of(0, 3, lambda: next(made)) == 1 and choices.of(0, 4, lambda: next(made)) == 2


def test_what_does_not_fit_into_hot_slots_is_chosen_each_time():
    engine = tiny.engine(codec="int8", hot_groups=3)
    assert answer(engine, 8, 300)[2] == 0


def test_slots_that_somebody_else_used_are_not_trusted():
    engine = tiny.engine()
    engine.stop_ids, engine.reselect_every = frozenset(), 8
    memory = engine.read(tiny.token_ids(150))
    cache = engine.open_chat([memory])
    answering = engine.generate(cache, TURN, GREEDY)
    for _ in range(3):
        next(answering)
    steps = answering.gi_yieldfrom.gi_frame.f_locals["held"]
    assert steps.goes_on
    memory.pages.rows(0, 0, 8)
    assert not steps.goes_on and next(answering) is not None


def test_an_answer_that_is_cut_leaves_a_whole_tail():
    engine, again = tiny.engine(), tiny.engine()
    caches = []
    for made, every in ((engine, 8), (again, 1)):
        made.stop_ids, made.reselect_every = frozenset(), every
        cache = made.open_chat([made.read(tiny.token_ids(16))])
        answering = made.generate(cache, TURN, GREEDY)
        for _ in range(7):
            next(answering)
        answering.close()
        caches.append(([], cache, 0))
    same(*caches)


def test_work_is_run_at_every_call_without_a_gpu():
    numbers = torch.zeros(1)
    captured = Captured(lambda: numbers.add_(1))
    assert [float(captured()) for _ in range(3)] == [1, 2, 3] and captured.replays == 0


@pytest.mark.gpu
def test_a_graph_gives_the_same_answer():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    engine = tiny.engine()
    made = type(engine)(engine.model.to("cuda"), tiny.byte_tokenizer(), tiny.Recipe(attention=tiny.SMALL))
    plain, kept = (answer(made, n, 16) for n in (1, 6))
    assert kept[2] > 20 and plain[0] == kept[0]
    same(plain, kept)
