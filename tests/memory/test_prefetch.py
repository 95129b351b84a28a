"""Which groups are brought ahead, in which order, and that nothing is used before it is there."""

import pytest
import torch

from app.memory.pages import KVPages
from app.models.checkpoint import Recipe
from app.runtime.engine import Engine
from tests import tiny
from tests.memory.test_pools import GROUP, fill, held, shape, stored, text

HEADS = torch.zeros(2, dtype=torch.int64)


class LateLane:
    """Copies nothing before somebody waits for it, so that what is used too early is wrong."""

    def __init__(self):
        self.queue, self.began, self.waits = [], 0, 0

    def run(self, work, uses=()):
        self.queue.append(work)
        self.began += 1
        return self.began

    def wait(self, mark):
        self.waits += 1
        self.finish(mark)

    def finish(self, mark):
        while self.began - len(self.queue) < mark:
            self.queue.pop(0)()


@pytest.fixture
def pages(monkeypatch):
    """Twenty groups, of which four may be hot, one layer in a bundle; a lane."""
    made = KVPages(shape("int8", groups=4, bundle=1, monkeypatch=monkeypatch))
    made.shape.tiers.lane = LateLane()
    for pool in made.shape.tiers.packed:
        pool.limit = None
    kv = text(20 * GROUP)
    for group in range(20):
        fill(made, kv, group * GROUP, (group + 1) * GROUP)
    stored(made, 20)
    made.whole = whole(kv)
    return made


def whole(kv):
    return held(fill(KVPages(shape("int8")), kv), kv.shape[3])


def take(pages, layer, *groups):
    """Take the first region of two groups; they must hold what they hold without a lane."""
    regions = torch.tensor(groups) * 2
    pair = pages.take(layer, HEADS, regions)
    for i, x in enumerate(pair):
        for n, group in enumerate(groups):
            assert torch.equal(x[n], pages.whole[layer, i, 0, group * GROUP : group * GROUP + 16])


def hot(pages, layer):
    return pages._hot[layer].held().tolist()


def forget(pages, layer):
    """Fill the slots of one layer with other groups."""
    pages.rows(layer, 15 * GROUP, 19 * GROUP)


def test_the_next_layer_finds_what_it_took_last(pages):
    lane, step = pages.shape.tiers.lane, ((0, (1, 2)), (1, (3, 4)), (2, (5, 6)))
    for layer, groups in step:
        take(pages, layer, *groups)
    for layer in range(3):
        forget(pages, layer)
    assert not lane.queue  # what is missing now has come
    take(pages, 0, 1, 2)
    began = lane.began
    assert {3, 4} <= set(hot(pages, 1)) and not {5, 6} & set(hot(pages, 2))
    assert len(lane.queue) == 1  # it is still on its way
    take(pages, 1, 3, 4)
    assert lane.began == began + 1 and len(lane.queue) == 1
    take(pages, 2, 5, 6)
    assert lane.began == began + 1 and not lane.queue  # layer 0 has everything


def test_what_is_there_or_on_its_way_is_not_fetched_again(pages):
    lane = pages.shape.tiers.lane
    take(pages, 0, 1, 2)
    take(pages, 1, 3, 4)
    began = lane.began
    for _ in range(3):
        take(pages, 0, 1, 2)
        take(pages, 1, 3, 4)
    assert lane.began == began
    forget(pages, 1)
    began = lane.began
    take(pages, 0, 1, 2)
    take(pages, 0, 1, 2)  # layer 1 has not come yet
    assert lane.began == began + 1


def test_nothing_is_brought_ahead_where_there_is_no_room(pages):
    lane, pool = pages.shape.tiers.lane, pages.shape.tiers.hot[1]
    take(pages, 1, 3, 4)
    forget(pages, 1)
    pool.loose[:] = False
    take(pages, 0, 1, 2)
    assert not lane.queue and len(pool.tables) == 4


def test_a_group_on_its_way_is_not_evicted(pages):
    take(pages, 1, 3, 4)
    forget(pages, 1)
    take(pages, 0, 1, 2)
    other = KVPages(pages.shape)
    kv = text(6 * GROUP, seed=1)
    for group in range(6):
        fill(other, kv, group * GROUP, (group + 1) * GROUP)
    assert {3, 4} <= set(hot(pages, 1))
    take(pages, 1, 3, 4)
    assert torch.equal(held(other, 6 * GROUP), whole(kv))


def test_packed_slots_are_read_before_they_are_used_again(pages):
    for pool in pages.shape.tiers.packed:
        pool.limit = 20
    take(pages, 1, 3, 4)
    forget(pages, 1)
    take(pages, 0, 1, 2)
    other, kv = KVPages(pages.shape), text(20 * GROUP, seed=1)
    for group in range(20):
        fill(other, kv, group * GROUP, (group + 1) * GROUP)
    assert not pages._packed[1].held().numel()
    take(pages, 1, 3, 4)


def test_slots_of_a_memory_that_went_are_not_written_afterwards(pages):
    take(pages, 1, 3, 4)
    forget(pages, 1)
    take(pages, 0, 1, 2)
    shape, lane = pages.shape, pages.shape.tiers.lane
    for table, pool in zip(pages._hot, shape.tiers.hot, strict=True):
        pool.drop(table)
    kv = text(8 * GROUP, seed=1)
    other = fill(KVPages(shape), kv)
    lane.finish(lane.began)
    assert torch.equal(held(other, 8 * GROUP), whole(kv))


def test_what_was_sealed_has_come_when_it_is_stored(pages):
    kv, plain = text(3 * GROUP, seed=2), KVPages(shape("int8"))
    fill(plain, kv)
    for pool in pages.shape.tiers.hot:
        pool.limit = None
    late = fill(KVPages(pages.shape), kv)
    assert pages.shape.tiers.lane.queue  # it is still on its way
    for group in range(3):
        assert late.export_rows(group * GROUP, (group + 1) * GROUP) == plain.export_rows(
            group * GROUP, (group + 1) * GROUP
        )


def test_what_was_sealed_does_not_come_over_what_came_later(pages):
    """The slots of a memory that went are given to another, whose groups come from the disk."""
    kv, plain, lane = text(4 * GROUP, seed=3), KVPages(shape("int8")), pages.shape.tiers.lane
    stored_rows = [fill(plain, kv).export_rows(g * GROUP, (g + 1) * GROUP) for g in range(4)]
    for pool in pages.shape.tiers.hot:
        pool.limit = None
    gone = fill(KVPages(pages.shape), text(4 * GROUP, seed=4))
    slots = [table.slots.clone() for table in gone._packed]
    assert lane.queue
    for table, pool in zip(gone._packed, pages.shape.tiers.packed, strict=True):
        pool.drop(table)
    other = KVPages(pages.shape)
    other.reserve(4 * GROUP)
    for group, rows in enumerate(stored_rows):
        other.import_rows(group * GROUP, GROUP, rows)
    assert {*other._packed[0].slots.tolist()} & {*slots[0].tolist()}
    lane.finish(lane.began)
    assert [other.export_rows(g * GROUP, (g + 1) * GROUP) for g in range(4)] == stored_rows


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_answers_are_the_same_with_and_without_prefetch(codec):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    scores = []
    for ahead in (True, False):
        recipe = Recipe(attention=tiny.SMALL, trained_tokens=tiny.SMALL.budget_tokens)
        engine = Engine(tiny.model().to("cuda"), tiny.byte_tokenizer(), recipe, kv_dtype=torch.float32, codec=codec)
        for pool in engine.shape.tiers.hot:
            pool.limit = 12
        if not ahead:
            engine.shape.tiers.lane = None
        memory = engine.read(tiny.token_ids(1600))
        cache = engine.open_chat([memory])
        scores.append(engine.score(cache, tiny.token_ids(40, seed=1), tiny.token_ids(200, seed=2)))
    assert torch.equal(*scores)
