"""What a single query chooses by int8 codes and by tree, against scoring every region with its means."""

from dataclasses import replace

import pytest
import torch

from app.kernels.tree import SPAN
from app.runtime import selection
from tests import tiny

TOKENS = 24 * SPAN + 32  # 3,076 regions of 8 tokens
ROUGH = replace(tiny.SMALL, candidates=128, tree="none")
TREE = replace(ROUGH, tree="similar", decode_tree_from_tokens=1, tree_beam=384)
EXACT = replace(ROUGH, candidates=TOKENS)


def chat(attention, tokens=TOKENS, seed=0):
    """A chat of 20 tokens after a document of random keys."""
    engine = tiny.engine(attention)
    memory = engine.open_chat().tail
    append(memory, tokens, seed)
    cache = engine.open_chat([memory.freeze()])
    append(cache.tail, 20, 99)
    return engine, cache


def append(memory, tokens, seed):
    keys = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(seed))
    for layer in range(2):
        memory.append(layer, keys, keys)


def choose(engine, cache, seed, size=1.0, attention=None):
    """[Hkv, K] regions."""
    q = size * torch.randn(1, 2, 2, 1, 8, generator=torch.Generator().manual_seed(seed))
    first = cache.base_regions + (cache.tail.filled[0] - 1) // tiny.SMALL.region_tokens
    spec = replace(engine.spec, attention=attention or engine.spec.attention)
    return selection.select_one(spec, cache, 0, q, first, cache.table(cache.tail.filled[0])[1])[0]


def shared(engine, cache, attention, size=1.0):
    """Share of the exactly chosen regions that are chosen under `attention`."""
    same = total = 0
    for seed in range(20):
        pairs = zip(choose(engine, cache, seed, size, EXACT), choose(engine, cache, seed, size, attention), strict=True)
        for one, two in pairs:
            assert len(one) == len(two) and (two.diff() > 0).all()
            same, total = same + len(set(one.tolist()) & set(two.tolist())), total + len(one)
    return same / total


@pytest.mark.parametrize("size", [0.3, 3.0])
@pytest.mark.parametrize("integers", [True, False])
def test_a_rough_scan_loses_next_to_nothing(size, integers, monkeypatch):
    if not integers:
        monkeypatch.setattr(selection, "uses_integers", lambda x: False)
    engine, cache = chat(ROUGH)
    assert shared(engine, cache, ROUGH, size) >= 0.98


def test_the_tree_finds_most_even_among_random_keys():
    engine, cache = chat(TREE)
    assert shared(engine, cache, TREE) >= 0.9


@pytest.mark.parametrize("attention", [ROUGH, TREE])
def test_codes_grow_with_the_text(attention):
    """Asked now and then while the text grows, or once at the end, or after the end was taken back."""
    growing, once = (tiny.engine(attention).open_chat() for _ in range(2))
    engine = tiny.engine(attention)
    for i, tokens in enumerate((2_100, 2_000, 64, 8_192, 1)):
        append(growing.tail, tokens, i)
        choose(engine, growing, i)
        append(once.tail, tokens, i)
    append(growing.tail, 3_000, 77)
    choose(engine, growing, 0)
    growing.tail.truncate(once.tail.filled[0] - 501)
    once.tail.truncate(once.tail.filled[0] - 501)
    for cache in (growing, once):
        append(cache.tail, 700, 5)
    for seed in range(5):
        assert torch.equal(choose(engine, growing, seed), choose(engine, once, seed))


def test_codes_count_as_memory():
    engine, cache = chat(ROUGH)
    before = cache.memories[0].size_bytes
    choose(engine, cache, 0)
    layer_bytes = 2 * TOKENS // tiny.SMALL.key_sub * 8
    assert before + layer_bytes <= cache.memories[0].size_bytes <= before + 1.3 * layer_bytes


@pytest.mark.parametrize("attention", [ROUGH, TREE])
def test_muted_regions_are_never_chosen(attention):
    engine, cache = chat(attention)
    free = choose(engine, cache, 1)[:, 1:-3]  # but for the sinks and the chat's three regions
    allowed = torch.ones(cache.base_regions, dtype=torch.bool)
    allowed[free.flatten()] = False
    cache.allow(allowed.tolist())
    again = choose(engine, cache, 1)[:, 1:-3]
    assert not set(again.flatten().tolist()) & set(free.flatten().tolist())
    few = torch.zeros_like(allowed)
    few[[40, 50, 60]] = True
    cache.allow(few.tolist())
    assert set(choose(engine, cache, 1)[:, 1:-3].flatten().tolist()) == {40, 50, 60}
    cache.allow([False] * cache.base_regions)
    assert choose(engine, cache, 1).tolist() == [[0, *range(cache.base_regions, cache.base_regions + 3)]] * 2
