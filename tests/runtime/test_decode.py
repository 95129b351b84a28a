"""Steps that keep a selection: where all is attended they change nothing, else they attend to what was chosen."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from app.memory.config import GenerationConfig
from app.runtime import attention, decode, held, windows
from app.runtime.cache import SharedChoices
from app.runtime.evidence import Chosen
from app.runtime.held import Captured
from tests import tiny

GREEDY = GenerationConfig(max_new_tokens=40)
TURN = tiny.token_ids(9, seed=1)[1:]


def answer(engine, every, memory_tokens, *, texts=1, config=GREEDY):
    """(tokens, cache, held steps) of an answer over memories."""
    engine.stop_ids, engine.reselect_every = frozenset(), every
    memories = [engine.read(tiny.token_ids(memory_tokens, seed=seed)) for seed in range(texts)]
    cache, steps = engine.open_chat(memories), []
    with pytest.MonkeyPatch.context() as patch:
        for kind, name in ((held.Held, "step"), (windows.Windows, "stepping")):
            step = getattr(kind, name)
            patch.setattr(kind, name, lambda self, token, step=step: steps.append(token) or step(self, token))
        tokens = list(engine.generate(cache, TURN, config))
    return tokens, cache, len(steps)


def left_behind(tail, layer):
    """What a tail knows of its tokens; what room it has for more is its own affair."""
    for book in (tail.mass[layer], tail.exposure[layer]):
        assert not book[:, tail.slots :].any()
        yield book[:, : tail.slots]
    yield from tail.pages.rows(layer, 0, tail.slots)
    yield from (means[layer][:, : -(-tail.slots // tail.index.subs[name])] for name, means in tail.index.means.items())


def same(one, two):
    """The two tails hold the same, and the evidence is the same."""
    (_, a, _), (_, b, _) = one, two
    assert a.tail.token_ids == b.tail.token_ids and a.tail.filled == b.tail.filled
    for layer in range(a.shape.layers):
        for x, y in zip(left_behind(a.tail, layer), left_behind(b.tail, layer), strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.evidence.density, b.evidence.density, atol=1e-5, rtol=1e-5)
    looks = [[[region for region, _ in token] for token in cache.evidence.looks()] for cache in (a, b)]
    assert looks[0] == looks[1]


@pytest.mark.parametrize(("every", "texts"), [(2, 1), (5, 0), (100, 1)])
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


@pytest.mark.parametrize(("positions", "texts"), [("compact", 1), ("compact", 2), ("original", 2), ("one_distance", 1)])
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


def test_what_does_not_fit_into_hot_slots_is_shared_all_the_same():
    (few, _, kept), (many, _, _) = (answer(tiny.engine(codec="int8", hot_groups=n), 8, 300) for n in (3, None))
    assert kept > 20 and few == many


def test_slots_that_somebody_else_used_change_nothing():
    answers = []
    for disturbed in (False, True):
        engine = tiny.engine()
        engine.stop_ids, engine.reselect_every = frozenset(), 8
        memory = engine.read(tiny.token_ids(150))
        answering = engine.generate(engine.open_chat([memory]), TURN, GREEDY)
        tokens = [next(answering) for _ in range(3)]
        if disturbed:
            for book in engine.shape.tiers.hot:
                book.tick()
            memory.pages.rows(0, 0, 8)
        answers.append([*tokens, *answering])
    assert answers[0] == answers[1]


def test_what_is_narrowed_is_seen_whole_without_a_choice(monkeypatch):
    """Regions that an answer may see and that fit the budget are all attended to: nothing has to be chosen for long."""
    counted, made = choices_by_layer(monkeypatch), []
    for every in (1, 2, (1, 3)):
        engine = tiny.engine()
        engine.stop_ids, engine.reselect_every = frozenset(), every
        cache = engine.open_chat([engine.read(tiny.token_ids(150))])
        counted.clear()
        cache.narrow(Chosen(torch.tensor([0, 3, 9]), torch.zeros(0, dtype=torch.int64)))
        made.append((list(decode.answer(engine, cache, 9, replace(GREEDY, max_new_tokens=12), None)), cache, 0))
        assert counted[0] == 13 if every == 1 else counted[0] <= 6  # as long as there is room for what is said
    for other in made[1:]:
        assert made[0][0] == other[0]
        same(made[0], other)


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
