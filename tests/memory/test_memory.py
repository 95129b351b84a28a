"""Memories at their edges: spare room, few tokens, going back."""

import pytest
import torch

from app.errors import ConfigError
from app.memory.config import AttentionConfig
from app.memory.memory import RegionMemory
from app.memory.pools import Tiers
from app.models.checkpoint import Recipe
from app.runtime.engine import Engine
from tests import tiny


def resumed(engine, ids, groups):
    """The memory of a text, of which the first groups came from the store; it grew by doubling."""
    whole, memory = engine.read(ids), RegionMemory(engine.shape)
    for group in range(groups):
        start, end = whole.group_range(group)
        memory.import_group(ids[start:end], *whole.export_group(group))
    return whole, engine.read(ids, resume=memory)


def test_spare_room_in_a_memory_changes_nothing():
    engine = tiny.engine()
    whole, grown = resumed(engine, tiny.token_ids(300), groups=10)
    assert grown.capacity > whole.capacity
    other, turn = engine.read(tiny.token_ids(200, seed=2)), tiny.token_ids(12, seed=4)[1:]
    expected = engine.forward(engine.open_chat([whole, other]), turn)
    torch.testing.assert_close(engine.forward(engine.open_chat([grown, other]), turn), expected)


@pytest.mark.parametrize(("codec", "quantized"), [("raw", 0), ("int8", 96), ("int4", 96)])
def test_whole_groups_are_quantized_and_counted(codec, quantized):
    counts = tiny.engine(codec=codec).read(tiny.token_ids(100)).counts()
    assert (counts["tokens_quantized"], counts["tokens_kept"]) == (quantized, 100)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_segments_do_not_matter_to_a_codec(codec):
    """Dense and selecting: a group that is whole is seen as it is packed, also by its own segment."""
    ids, logits = tiny.token_ids(300), []
    for groups in (1, 4, 100):
        engine = tiny.engine(codec=codec)
        engine.segment_tokens = engine.most_segment_tokens = groups * engine.shape.attention.group_tokens
        logits.append(engine.log_probs(ids))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], atol=1e-5, rtol=1e-5)
    raw = tiny.engine().log_probs(ids)
    assert 1e-6 < (raw - logits[0]).abs().mean() < 0.5


def test_a_budget_too_small_for_a_segment_is_refused():
    with pytest.raises(ConfigError, match="host_budget_gb: it makes room for .* give more"):
        Engine(tiny.model(0), tiny.byte_tokenizer(), Recipe(tiny.SMALL, 64), tiers=Tiers(host_bytes=1 << 16))


def test_groups_smaller_than_the_rows_that_are_counted():
    small = AttentionConfig(budget_tokens=64, region_tokens=4, merge=1, query_sub=2, key_sub=2, coarse_sub=4)
    engine = tiny.engine(small)
    assert engine.read(tiny.token_ids(100)).tokens == 100


def test_a_first_memory_shorter_than_the_sinks():
    """Muting nothing changes nothing."""
    engine = tiny.engine()
    memories = [engine.read(tiny.token_ids(2)), engine.read(tiny.token_ids(100, seed=1))]
    free, told = engine.open_chat(memories), engine.open_chat(memories)
    told.allow([True] * told.base_regions)
    turn = tiny.token_ids(12, seed=4)[1:]
    torch.testing.assert_close(engine.forward(told, turn), engine.forward(free, turn))


def test_a_truncated_memory_goes_on_as_if_no_more_had_come():
    engine = tiny.engine()
    ids, more = tiny.token_ids(300), tiny.token_ids(40, seed=6)[1:]
    long, short = engine.open_chat(), engine.open_chat()
    for start, end in ((0, 160), (160, 203)):
        engine.forward(long, ids[start:end])
        engine.forward(short, ids[start:end])
    engine.forward(long, ids[203:300])
    long.tail.truncate(203)
    assert long.tail.token_ids == ids[:203]
    torch.testing.assert_close(engine.forward(long, more), engine.forward(short, more), atol=1e-6, rtol=1e-6)


def test_reading_leaves_spare_room_alone():
    """Its pages are never touched, so that room for millions of tokens costs neither time nor memory."""
    engine, ids = tiny.engine(), tiny.token_ids(100)
    memory = RegionMemory(engine.shape, 400)
    for layer in range(2):
        memory.exposure[layer][:, 104:] = float("nan")
    read = engine.read(ids, resume=memory)
    for layer in range(2):
        assert memory.exposure[layer][:, 104:].isnan().all()
        torch.testing.assert_close(memory.exposure[layer][:, :104], engine.read(ids).exposure[layer][:, :104])
    assert read is memory
