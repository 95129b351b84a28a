"""The fast path's selection: options by name against the oracle, and the tree against scoring every region."""

from dataclasses import replace

import pytest
import torch

from app.errors import ConfigError
from app.kernels.tree import SPAN
from app.memory.config import AttentionConfig
from app.runtime import selection
from tests import tiny

VARIANTS = {
    "plain averages": {"query_sub": 8, "key_sub": 8, "coarse_sub": 8},
    "short query regions": {"query_region_tokens": 4, "merge": 4},
    "long query regions": {"query_region_tokens": 16, "merge": 1},
    "bounds": {"score": "minmax"},
    "one angle": {"score_angle": 40},
    "shared heads": {"heads": "shared"},
    "raw sum": {"combine": "raw_sum"},
    "own only": {"forced": "own"},
    "more sinks, no local": {"sink_regions": 2, "local_regions": 0},
    "original positions": {"positions": "original"},
    "one distance": {"positions": "one_distance"},
    "a dense layer": {"dense_layers": 1},
}
# Everything is a candidate while a text has at most 128 regions, so the fast path must choose as the oracle does.
LONG = 128 * 8


def both(attention, tokens, **options):
    """Hidden states of the fast path, read by segments, and of the oracle."""
    engine, ids = tiny.engine(attention, **options), tiny.token_ids(tokens)
    with torch.no_grad():
        oracle = engine.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    parts = [hidden for _, _, hidden in engine.segments(engine.open_chat(), ids, None)]
    return torch.cat(parts), oracle


@pytest.mark.parametrize(
    ("name", "tokens"), [*((name, 300) for name in VARIANTS), ("one distance", 63), ("long query regions", 63)]
)
def test_every_option_equals_the_oracle(name, tokens):
    fast, oracle = both(replace(tiny.SMALL, **VARIANTS[name]), tokens)
    torch.testing.assert_close(fast, oracle, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_changes_what_is_read(name):
    fast, _ = both(replace(tiny.SMALL, **VARIANTS[name]), 300)
    assert not torch.allclose(fast, both(tiny.SMALL, 300)[0], atol=1e-4)


@pytest.mark.parametrize("name", ["original positions", "one distance", "more sinks, no local", "own only", "bounds"])
def test_options_hold_over_attached_memories_and_in_decode(name):
    """A document, then a chat after it, token by token: nothing fails and segments do not matter."""
    engine = tiny.engine(replace(tiny.SMALL, **VARIANTS[name]))
    memory, turn = engine.read(tiny.token_ids(200)), tiny.token_ids(83, seed=1)[1:]
    runs = []
    for size in (16, 64):
        engine.segment_tokens = engine.most_segment_tokens = size
        cache = engine.open_chat([memory])
        hidden = [x for _, _, x in engine.segments(cache, turn, None)]
        hidden += [engine.forward(cache, [7 + i]) for i in range(20)]
        runs.append(torch.cat(hidden))
    torch.testing.assert_close(*runs, atol=1e-5, rtol=1e-5)
    assert runs[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"), [("permute", "stride"), ("score", "infllm"), ("tree", "binary"), ("tree_beam", 0)]
)
def test_what_a_memory_cannot_do_is_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigError, match=rf"{name} = {value!r}"):
        AttentionConfig(**{name: value})


TREE = replace(tiny.SMALL, tree_from_tokens=4 * SPAN, decode_tree_from_tokens=4 * SPAN, tree_beam=64)


def filled(attention, tokens, segments=(2048,), seed=0):
    """A memory of random keys, grown by segments of these sizes in turn, and a cache over it."""
    engine = tiny.engine(attention)
    cache = engine.open_chat()
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, tokens, 8, generator=generator)
    start, i = 0, 0
    while start < tokens:
        end = min(start + segments[i % len(segments)], tokens)
        for layer in range(engine.shape.layers):
            cache.tail.append(layer, keys[:, start:end], keys[:, start:end])
        start, i = end, i + 1
    return engine, cache


def chosen(engine, cache, end, queries, attention=None):
    """Regions [G, 2, K] that queries [4, T, 8], the last up to token `end`, choose."""
    a = attention or engine.spec.attention
    rows = min(a.group_tokens, queries.shape[1])
    q = queries.view(2, 2, -1, rows, 8).permute(2, 0, 1, 3, 4)
    own = max(1, rows // a.region_tokens)
    firsts = cache.base_regions - (-end // a.region_tokens) - len(q) * own + torch.arange(len(q)) * own
    spec = replace(engine.spec, attention=a)
    if queries.shape[1] == 1:
        return selection.select_one(spec, cache, 0, q, int(firsts), cache.table(end)[1])
    return selection.select(spec, cache, 0, q, firsts, own, cache.table(end)[1])


def queries(count, seed=5):
    return torch.randn(4, count, 8, generator=torch.Generator().manual_seed(seed))


TOKENS = 24 * SPAN + 32  # 24,608: twelve spans of fine means and a short end, above the threshold of 4,096


@pytest.mark.parametrize("rows", [1, 64])
def test_a_beam_of_everything_is_exact(rows):
    wide = replace(TREE, tree_beam=10_000, candidates=TOKENS)
    engine, cache = filled(wide, TOKENS)
    without = replace(wide, tree="none")
    assert torch.equal(
        chosen(engine, cache, TOKENS, queries(rows)), chosen(engine, cache, TOKENS, queries(rows), without)
    )


@pytest.mark.parametrize(
    ("rows", "place"), [(1, 900), (16, 5_000), (1, 9_999), (16, 20_000), (1, 24_000), (16, 24_000)]
)
def test_the_tree_finds_the_key_that_answers(rows, place, monkeypatch):
    """Among random keys, at a narrow beam, in every part of the text: sealed spans, the unsealed end, the newest."""
    narrow = replace(TREE, tree_beam=8, candidates=16)
    engine, cache = filled(narrow, TOKENS)
    asked = queries(rows)
    asked[3, -1] *= 6
    index, exact = cache.tail.index, selection.region_scores
    cache.tail.index.update(0, place - place % 4, asked[3:, -1].expand(2, 4, 8).contiguous())
    span = place // 2 // SPAN
    if span < 12:
        index._seal(0, span * SPAN, (span + 1) * SPAN)
    counted = []
    monkeypatch.setattr(selection, "region_scores", lambda q, fine: (counted.append(fine.shape[-3]), exact(q, fine))[1])
    found = chosen(engine, cache, TOKENS, asked)
    assert place // 8 in found[-1, 1].tolist()
    assert max(counted, default=0) <= 32  # 3,076 regions were not scored one by one


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({}, 200), ({}, TOKENS), ({"tree_beam": 10_000, "candidates": TOKENS}, TOKENS)]
    + [({"tree": "none", "candidates": TOKENS}, tokens) for tokens in (1000, TOKENS)],
)
def test_a_single_query_chooses_as_a_group_of_one(options, tokens):
    """Over two memories and a tail; exactly so when every region is scored, or a beam looks everywhere."""
    attention, exact = replace(TREE, **options), replace(TREE, decode_tree_from_tokens=1 << 40, candidates=TOKENS)
    engine, cache = filled(attention, tokens)
    other = filled(attention, 300, seed=1)[1].tail
    chat = engine.open_chat([cache.tail.freeze(), other.freeze()])
    for layer in range(2):
        chat.tail.append(layer, torch.randn(2, 90, 8), torch.randn(2, 90, 8))
    first, lengths = chat.base_regions + 89 // attention.region_tokens, chat.table(90)[1]
    same = total = 0
    for seed in range(20):
        q = queries(1, seed).view(1, 2, 2, 1, 8)
        one = selection.select_one(engine.spec, chat, 0, q, first, lengths)
        all_ = selection.select(replace(engine.spec, attention=exact), chat, 0, q, torch.tensor([first]), 1, lengths)
        assert one.shape == all_.shape and (one.diff(dim=-1) > 0).all()
        for h in range(2):
            same += len(set(one[0, h].tolist()) & set(all_[0, h].tolist()))
            total += one.shape[-1]
    assert same == total if options else same >= 0.8 * total


def test_each_group_chooses_by_its_own_place():
    """Together in one segment that crosses the threshold, or one by one."""
    engine, cache = filled(TREE, 5000)
    asked = queries(64 * 16)
    together = chosen(engine, cache, 4992, asked)
    size = TREE.group_tokens
    for g in range(64):
        alone = chosen(engine, cache, 4992 - (63 - g) * size, asked[:, g * size : (g + 1) * size])
        assert torch.equal(together[g], alone[0])


def test_later_tokens_do_not_change_a_choice_by_tree():
    engine, longer = filled(TREE, TOKENS)
    shorter = filled(TREE, 8192)[1]
    for layer in range(2):
        shorter.tail.truncate(0)
        keys = longer.tail.index.means["fine"][layer]
        shorter.tail.index.means["fine"][layer][:, :4096] = keys[:, :4096]
        shorter.tail.index._seal(layer, 0, 4096)
    asked = queries(16)
    assert torch.equal(chosen(engine, longer, 8192, asked), chosen(engine, shorter, 8192, asked))


def test_muted_regions_are_left_out_of_a_long_memory():
    engine, cache = filled(TREE, TOKENS)
    memory = cache.tail
    chat = engine.open_chat([memory])
    asked = queries(1)
    for layer in range(2):
        chat.tail.append(layer, torch.randn(2, 8, 8), torch.randn(2, 8, 8))
    regions = memory.regions
    free = chosen(engine, chat, 8, asked)
    assert chat.base_regions == regions
    allowed = torch.ones(regions, dtype=torch.bool)
    allowed[free[0, :, 1:-2].flatten()] = False
    chat.allow(allowed.tolist())
    again = chosen(engine, chat, 8, asked)
    assert not set(again[0, :, 1:-2].flatten().tolist()) & set(free[0, :, 1:-2].flatten().tolist())


def test_the_tree_is_stored_and_counted():
    engine, cache = filled(TREE, TOKENS)
    index, copy = cache.tail.index, engine.open_chat().tail.index
    copy.reserve(TOKENS + 8)
    for start in range(0, TOKENS, 16):
        end = min(start + 16, TOKENS)
        copy.import_rows(start, end - start, index.export_rows(start, end))
    for mine, other in zip(index.levels[1][0].tensors(), copy.levels[1][0].tensors(), strict=True):
        assert torch.equal(mine[:, : 12 * 64], other[:, : 12 * 64])
    without = filled(replace(TREE, tree="none"), TOKENS)[1].tail.index
    assert index.size_bytes > without.size_bytes
    with pytest.raises(ValueError, match="expected"):
        copy.import_rows(0, 16, b"12")
