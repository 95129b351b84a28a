"""Slots: who goes first, what is never lost, what comes back from below."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from app.memory.config import AttentionConfig
from app.memory.groups import PagesLost
from app.memory.pages import KVPages
from app.memory.pools import Tiers
from app.memory.shape import MemoryShape

GROUP, CODECS = 32, ("raw", "int8", "int4")
ATTENTION = AttentionConfig(
    budget_tokens=160, region_tokens=16, merge=2, query_sub=4, key_sub=4, coarse_sub=8, candidates=4
)


def shape(codec="raw", groups=None, bundle=None, monkeypatch=None):
    """Three layers; `groups`: hot slots; `bundle`: layers of a stored row."""
    made = MemoryShape(3, 2, 8, ATTENTION, torch.float32, torch.device("cpu"), codec=codec)
    if bundle:
        monkeypatch.setattr("app.memory.shape.MAX_ROW_BYTES", bundle * made.token_bytes // 3 * GROUP)
    if groups is None:
        return made
    share = 4 if codec != "raw" else 1
    return replace(made, tiers=Tiers(host_bytes=share * groups * made.token_bytes * GROUP))


def text(tokens, seed=0):
    return torch.randn(3, 2, 2, tokens, 8, generator=torch.Generator().manual_seed(seed))


def fill(pages, kv, start=0, end=None):
    end = kv.shape[3] if end is None else end
    pages.reserve(end)
    for layer in range(3):
        pages.append(layer, start, kv[layer, 0, :, start:end], kv[layer, 1, :, start:end])
    return pages


def held(pages, tokens):
    return torch.stack([torch.stack(pages.rows(layer, 0, tokens)) for layer in range(3)])


class Shelf:
    """A source that keeps stored rows, and counts what is fetched."""

    def __init__(self, pages, groups):
        self.rows = {group: pages.export_rows(group * GROUP, (group + 1) * GROUP) for group in range(groups)}
        self.fetched = []

    def fetch(self, groups, rows):
        self.fetched += groups
        return [b"".join(self.rows[g][rows.start : rows.stop]) if g in self.rows else None for g in groups]


def shelve(pages, group):
    """Store a group, as a reading does when it is sealed."""
    pages.source = pages.source or Shelf(pages, 0)
    pages.source.rows[group] = pages.export_rows(group * GROUP, (group + 1) * GROUP)
    pages.settle([group])


def stored(pages, groups):
    for group in range(groups):
        shelve(pages, group)
    return pages.source


@pytest.mark.parametrize("cuts", [(0, 200), (0, 32, 64, 200), (0, 5, 7, 40, 96, 97, 200)])
def test_what_is_appended_in_pieces_is_what_is_held(cuts):
    kv, pages = text(200), KVPages(shape())
    for start, end in pairwise(cuts):
        fill(pages, kv, start, end)
    assert torch.equal(held(pages, 200), kv)
    k, v = pages.rows(1, 35, 130)
    assert torch.equal(k, kv[1, 0, :, 35:130]) and torch.equal(v, kv[1, 1, :, 35:130])


@pytest.mark.parametrize("bundle", [1, 2, 3])
def test_regions_are_those_of_their_layer_and_head(bundle, monkeypatch):
    kv = text(160)
    pages = fill(KVPages(shape(bundle=bundle, monkeypatch=monkeypatch)), kv)
    assert len(pages.shape.bundles) == -(-3 // bundle)
    heads, regions = torch.tensor([1, 0, 1, 1]), torch.tensor([9, 0, 3, 3])
    for layer in range(3):
        for i, x in enumerate(pages.take(layer, heads, regions)):
            for n, (head, region) in enumerate(zip(heads, regions, strict=True)):
                assert torch.equal(x[n], kv[layer, i, head, region * 16 : region * 16 + 16])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bundle", [1, 3])
def test_few_slots_show_the_same_as_many(codec, bundle, monkeypatch):
    kv = text(20 * GROUP)
    pages = [KVPages(shape(codec, groups, bundle, monkeypatch)) for groups in (None, 4 if codec == "raw" else 1)]
    for each in pages:
        for group in range(20):
            fill(each, kv, group * GROUP, (group + 1) * GROUP)
            shelve(each, group)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        heads = torch.randint(2, (30,), generator=generator)
        regions = torch.randint(40, (30,), generator=generator)
        for layer in range(3):
            few, many = (p.take(layer, heads, regions) for p in (pages[1], pages[0]))
            assert torch.equal(few[0], many[0]) and torch.equal(few[1], many[1])
    assert torch.equal(held(pages[1], 20 * GROUP), held(pages[0], 20 * GROUP))
    assert not pages[0].source.fetched and pages[1].source.fetched


def test_slots_stay_within_the_budget_once_they_can_be_fetched():
    pages = KVPages(shape(groups=4))
    kv = text(40 * GROUP)
    for group in range(40):
        fill(pages, kv, group * GROUP, (group + 1) * GROUP)
        shelve(pages, group)
    (pool,) = pages.shape.tiers.hot
    assert len(pool.tables) == 4 and pages.size_bytes == 4 * pool.slot_bytes
    assert torch.equal(held(pages, 40 * GROUP), kv) and len(pool.tables) == 4


def test_tokens_are_counted_where_they_are():
    pages = fill(KVPages(shape("int8", groups=4)), text(6 * GROUP + 5))
    stored(pages, 6)
    for tables, pools, groups in (
        (pages._hot, pages.shape.tiers.hot, torch.tensor([0, 1, 2])),
        (pages._packed, pages.shape.tiers.packed, torch.tensor([2, 3])),
    ):
        pools[0].release(tables[0], groups)
    pages.reread, pages.left_out = {0, 4}, {4}
    expected = {"device": 0, "host": 4 * GROUP + 5, "disk": GROUP, "ids": GROUP, "reread": GROUP}
    assert pages.places(6 * GROUP + 5) == {f"tokens_{name}": n for name, n in expected.items()}


def test_what_is_nowhere_else_is_never_lost():
    kv = text(10 * GROUP)
    pages = fill(KVPages(shape(groups=2)), kv)
    assert torch.equal(held(pages, 10 * GROUP), kv)


def test_least_recently_used_goes_first_then_least_mass():
    pages = fill(KVPages(shape(groups=4)), text(4 * GROUP))
    shelf = stored(pages, 4)
    pages.scores = torch.tensor([5.0, 1.0, 3.0, 2.0])
    (pool,), (table,) = pages.shape.tiers.hot, pages._hot
    pool.score[table.slots] = pages.scores
    other = KVPages(pages.shape)
    pages.rows(0, 2 * GROUP, 3 * GROUP)
    pages.take(0, torch.tensor([0, 0]), torch.tensor([0, 2]))  # groups 0 and 1, at once
    fill(other, text(GROUP, seed=1))
    assert table.slots.tolist()[3] == -1  # oldest
    fill(other, text(2 * GROUP, seed=1), GROUP)
    assert table.slots.tolist()[2] == -1
    fill(other, text(3 * GROUP, seed=1), 2 * GROUP)
    assert table.slots.tolist()[1] == -1 and table.slots.tolist()[0] >= 0  # as old as 0, but worth less
    assert not shelf.fetched


def test_slots_of_a_memory_that_is_gone_are_used_again():
    made = shape(groups=4)
    pages = fill(KVPages(made), text(4 * GROUP))
    del pages
    fill(KVPages(made), text(4 * GROUP))
    assert len(made.tiers.hot[0].tables) == 4


@pytest.mark.parametrize("codec", CODECS)
def test_a_copy_goes_on_by_itself(codec):
    kv, pages = text(100), KVPages(shape(codec, groups=5))
    fill(pages, kv)
    twin = KVPages(pages.shape)
    twin.reserve(100)
    twin.copy_from(pages)
    assert torch.equal(held(twin, 100), held(pages, 100))
    before = held(pages, 100)
    fill(twin, text(120, seed=1), 100)
    assert torch.equal(held(pages, 100), before)


@pytest.mark.parametrize("codec", ("int8", "int4"))
def test_all_layers_of_a_group_share_its_packed_copy(codec):
    """Layer by layer, as a segment comes; then every group is had from its packed copy."""
    pages = KVPages(shape(codec))
    for start in range(0, 20 * GROUP, 4 * GROUP):
        fill(pages, text(20 * GROUP), start, start + 4 * GROUP)
    expected = held(pages, 20 * GROUP)
    for table, pool in zip(pages._hot, pages.shape.tiers.hot, strict=True):
        pool.release(table, table.held())
    assert torch.equal(held(pages, 20 * GROUP), expected)


@pytest.mark.parametrize("codec", ("int8", "int4"))
def test_a_group_is_packed_once_and_its_end_not_at_all(codec):
    kv, cuts = text(100), (0, 10, 32, 90, 100)
    pieces, whole = KVPages(shape(codec)), fill(KVPages(shape(codec)), kv)
    for start, end in pairwise(cuts):
        fill(pieces, kv, start, end)
    assert torch.equal(held(pieces, 100), held(whole, 100))
    assert torch.equal(held(whole, 100)[..., 96:, :], kv[..., 96:, :])
    assert 0 < (held(whole, 96) - kv[..., :96, :]).abs().max() < 0.25
    back = KVPages(shape(codec))
    back.reserve(100)
    for start in range(0, 100, GROUP):
        back.import_rows(start, min(GROUP, 100 - start), pieces.export_rows(start, min(start + GROUP, 100)))
    assert torch.equal(held(back, 100), held(pieces, 100))
    for start in range(0, 96, GROUP):
        assert back.export_rows(start, start + GROUP) == pieces.export_rows(start, start + GROUP)


@pytest.mark.parametrize("codec", CODECS)
def test_a_lost_group_is_named(codec):
    pages = fill(KVPages(shape(codec, groups=8)), text(8 * GROUP))
    shelf = stored(pages, 8)
    fill(KVPages(pages.shape), text(8 * GROUP))  # takes all slots
    for tables, pools in ((pages._hot, pages.shape.tiers.hot), (pages._packed, pages.shape.tiers.packed)):
        for table, pool in zip(tables, pools, strict=True):
            pool.release(table, table.held())
    del shelf.rows[3]
    shelf.rows[4][0] = shelf.rows[4][0][:-1]
    with pytest.raises(PagesLost) as lost:
        pages.take(1, torch.zeros(4, dtype=torch.int64), torch.tensor([2, 6, 8, 14]))
    assert lost.value.groups == [3, 4] and lost.value.pages is pages


@pytest.mark.parametrize("first", [0, 2 * GROUP])
def test_kept_slots_move_to_the_front_behind_those_that_stay(first):
    kv, pages = text(100), KVPages(shape())
    fill(pages, kv)
    moved = torch.stack([torch.arange(first, 100, 2), torch.arange(first + 1, 100, 2)])
    slots = torch.cat([torch.arange(first).expand(2, -1), moved], dim=1)
    for layer in range(3):
        pages.keep(layer, slots, first)
        k, v = pages.rows(layer, 0, slots.shape[1])
        assert torch.equal(k[1], kv[layer, 0, 1, slots[1]]) and torch.equal(v[0], kv[layer, 1, 0, slots[0]])


def test_a_budget_that_is_too_small_is_not_copied_for_every_group():
    pages, grown = KVPages(shape(groups=8)), []
    for group in range(200):
        pages.reserve((group + 1) * GROUP)
        for layer in range(3):
            pages.append(layer, group * GROUP, *text(GROUP)[layer])
        grown.append(len(pages.shape.tiers.hot[0].tables))
    assert len(set(grown)) < 40 and grown[-1] < 2 * 200
