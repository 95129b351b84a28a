"""Keys and values that are lost in the middle of a step: counted once when it is repeated, left out at the worst."""

import pytest
import torch

from app.errors import StoreError
from app.memory.config import GenerationConfig
from app.runtime import recover
from tests import tiny

GROUP = tiny.SMALL.group_tokens
TEXT = tiny.token_ids(30 * GROUP)
TURN = tiny.token_ids(20, seed=1)


class Shelf:
    """Keeps the stored rows of a memory's groups, one row for each layer; `broken` ones are not given."""

    def __init__(self, memory):
        self.rows = {g: memory.pages.export_rows(g * GROUP, (g + 1) * GROUP) for g in range(memory.groups)}
        self.broken: set[tuple[int, int]] = set()

    def fetch(self, groups, rows):
        return [
            None if self.broken & {(group, row) for row in rows} else b"".join(self.rows[group][r] for r in rows)
            for group in groups
        ]

    def replace(self, group, memory):
        self.broken -= {(group, row) for row in range(2)}


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr("app.memory.shape.MAX_ROW_BYTES", 1)  # each layer's rows are fetched by themselves
    return tiny.engine()


def cold(engine, *broken):
    """A memory whose keys and values are all on the shelf; those of the last layer of groups `broken` are not."""
    memory = engine.read(TEXT)
    memory.pages.source = Shelf(memory)
    lose(memory, broken)
    return memory


def lose(memory, broken):
    memory.pages.source.broken = {(group, 1) for group in broken}
    for table, pool in zip(memory.pages._hot, memory.shape.tiers.hot, strict=True):
        pool.release(table, table.held())


def answer(engine, memory):
    cache = engine.open_chat([memory])
    said = list(engine.generate(cache, TURN, GenerationConfig(max_new_tokens=4)))
    return said, cache


@torch.no_grad()
def test_a_step_that_is_repeated_counts_once(engine):
    memories, caches = [cold(engine) for _ in range(2)], []
    for memory, broken in zip(memories, ((), range(30)), strict=True):
        caches.append(cache := engine.open_chat([memory]))
        engine.forward(cache, TURN)
        evidence = cache.watch()
        lose(memory, broken)
        engine.forward(cache, [5])
        evidence.take()
    cache, repeated = caches
    again = 30 - len(memories[1].pages.source.broken)  # after the first layer had counted
    assert again and memories[1].counts()["tokens_reread"] == GROUP * again
    torch.testing.assert_close(repeated.evidence.density, cache.evidence.density)
    for books in ("mass", "exposure"):
        for mine, theirs in zip(getattr(repeated.tail, books), getattr(cache.tail, books), strict=True):
            torch.testing.assert_close(mine, theirs)


@torch.no_grad()
def test_what_dense_queries_counted_is_taken_back_as_well(engine):
    memory = engine.read(tiny.token_ids(GROUP))
    cache = engine.open_chat([memory])
    memory.pages.source = Shelf(memory)
    engine.forward(cache, TURN)
    before = [book.clone() for books in (cache.tail.mass, cache.tail.exposure) for book in books]
    cache.begin()
    engine._hidden(cache, tiny.token_ids(28, seed=3))
    cache.take_back(len(TURN))
    after = [*cache.tail.mass, *cache.tail.exposure]
    assert all(torch.equal(a[:, : len(TURN)], b[:, : len(TURN)]) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("gone", [(0,), (3, 17)])
def test_what_cannot_be_read_again_is_left_out_as_if_it_were_muted(engine, monkeypatch, gone):
    monkeypatch.setattr(recover, "_read_groups", lambda *args: (_ for _ in ()).throw(RuntimeError("out of memory")))
    memory, whole = cold(engine, *gone), cold(engine)
    cache, muted = engine.open_chat([memory]), engine.open_chat([whole])
    with torch.no_grad():
        memory.pages.leave_out(gone)
        cache.look()
        found = engine.forward(cache, TURN)
    muted.allow([region // 2 not in gone for region in range(muted.base_regions)])
    muted._sinks = cache._sinks  # a mute leaves the sinks to be seen
    torch.testing.assert_close(found, engine.forward(muted, TURN))
    assert engine.open_chat([memory]).fork().allowed.tolist() == cache.allowed.tolist()


def test_an_answer_goes_on_without_what_is_lost_for_good(engine, monkeypatch):
    monkeypatch.setattr(recover, "_read_groups", lambda *args: (_ for _ in ()).throw(RuntimeError("out of memory")))
    memory = cold(engine, *range(10, 20))
    said, cache = answer(engine, memory)
    assert len(said) == 4 and memory.pages.left_out <= set(range(10, 20)) and memory.pages.left_out
    assert not cache.evidence.density[[2 * group for group in memory.pages.left_out]].any()
    assert memory.counts()["tokens_ids"] == GROUP * len(memory.pages.left_out)


def test_what_is_lost_again_and_again_is_left_out(engine):
    memory = cold(engine, 0, 29)
    memory.pages.source.replace = lambda group, memory: [  # stored, and at once lost again
        pool.release(table, torch.tensor([group]))
        for table, pool in zip(memory.pages._hot, engine.shape.tiers.hot, strict=True)
    ]
    said, _ = answer(engine, memory)
    assert len(said) == 4 and 0 in memory.pages.left_out


def test_a_reading_does_not_go_on_over_a_hole(engine, monkeypatch):
    monkeypatch.setattr(recover, "_read_groups", lambda *args: (_ for _ in ()).throw(RuntimeError("out of memory")))
    memory = cold(engine, *range(30))
    with pytest.raises(StoreError, match="read the document again"):
        engine.read([*TEXT, *TURN], resume=memory)


def cut_alike(engine):
    """Bfloat16, in segments of four groups; what it computes depends on their length by far more than rounding does."""
    engine.model.to(torch.bfloat16)
    engine.most_segment_tokens = 4 * GROUP
    engine.model.model.embed_tokens.register_forward_hook(lambda module, ids, out: out * (1 + ids[0].numel() / 100))


@pytest.mark.parametrize("gone", [(0,), (5,), (13, 29)])
def test_a_bfloat16_model_reads_lost_parts_again_in_the_same_cuts(engine, gone):
    """Rounding depends on where a text is cut, and so do chosen regions: fixed cuts give back the same bytes."""
    cut_alike(engine)
    assert engine.cut_tokens == 4 * GROUP
    whole, memory = cold(engine), cold(engine, *gone)
    said, _ = answer(engine, whole)
    assert answer(engine, memory)[0] == said
    lost = recover.PagesLost(memory.pages, list(gone))
    with torch.no_grad():
        recover.read_again(engine.open_chat([memory]), lost, engine._hidden, engine.cut_tokens)
    for layer in range(2):
        for mine, theirs in zip(
            memory.pages.rows(layer, 0, len(TEXT)), whole.pages.rows(layer, 0, len(TEXT)), strict=True
        ):
            assert torch.equal(mine, theirs)
    for name, means in memory.index.means.items():
        assert all(map(torch.equal, means, whole.index.means[name]))
    assert memory.counts()["tokens_reread"] >= GROUP * len(gone)


def test_a_text_is_cut_alike_wherever_a_reading_went_on(engine):
    cut_alike(engine)
    whole = engine.read(TEXT)
    begun = engine.read(TEXT[: 6 * GROUP])
    cuts = list(engine.read_steps(TEXT, resume=begun))
    assert cuts == [*range(8 * GROUP, len(TEXT), 4 * GROUP), len(TEXT)]  # two groups are read again
    for mine, theirs in zip(begun.pages.rows(1, 0, len(TEXT)), whole.pages.rows(1, 0, len(TEXT)), strict=True):
        assert torch.equal(mine, theirs)
