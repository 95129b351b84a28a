"""Policies: each answers, and those that drop tokens keep to their promises."""

import hashlib
from dataclasses import replace

import pytest
import torch

from app.errors import ConfigError, ModelError
from app.kernels.h2o import PRESETS, SCORES, H2OOptions, peaks
from app.memory.compaction import Merging, merged_levels, pairs_to_merge
from app.memory.config import GenerationConfig
from app.memory.memory import RegionMemory
from app.runtime import policies
from app.runtime.engine import Engine
from app.runtime.policies import H2O, Bounded, Policy, memory_bytes
from app.settings import H2O_PRESETS, POLICIES, Settings
from tests import tiny

HEAVY = H2OOptions(sinks=2, recent=8, block=4)
GREEDY = GenerationConfig(max_new_tokens=40)


class Small(Bounded):
    """Bounded under a cap of so many bytes: megabytes are too many here."""

    def compaction(self, shape):
        group = shape.attention.group_tokens
        slots = next(n for n in range(4096, 0, -group) if memory_bytes(shape, n) <= self.cap_mb)
        return Merging(slots, group, self.options, spared_regions=2)


CAP_BYTES = 80_000


def engine(policy: str | Policy) -> Engine:
    if policy == "h2o":
        policy = H2O(HEAVY)
    elif policy == "bounded":
        policy = Small(CAP_BYTES, HEAVY)
    return tiny.engine(policy=policy)


def state(memory: RegionMemory) -> str:
    """Digest of all that a memory holds."""
    digest = hashlib.sha256(memory.export_state())
    for group in range(memory.groups):
        index, kv = memory.export_group(group)
        digest.update(index + b"".join(kv))
    return digest.hexdigest()


def test_the_names_are_those_of_the_settings():
    assert tuple(policies.KINDS) == POLICIES and tuple(PRESETS) == H2O_PRESETS
    assert all(kind.name == name for name, kind in policies.KINDS.items())


def told(held):
    """Tokens whose fate a memory or a cache tells."""
    counts = held.counts()
    return sum(counts[f"tokens_{fate}"] for fate in ("kept", "compressed", "evicted"))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_reads_and_answers(name):
    made = engine(name)
    memory = made.read(tiny.token_ids(400))
    assert memory.tokens == 400 == told(memory)
    cache = made.open_chat([memory])
    answer = list(made.generate(cache, tiny.token_ids(30, seed=1)[1:], GREEDY))
    assert answer and cache.counts()["tokens_kept"] > 0
    assert told(cache) == 400 + cache.tail.tokens
    again = made.open_chat([made.read(tiny.token_ids(400))])
    assert list(made.generate(again, tiny.token_ids(30, seed=1)[1:], GREEDY)) == answer


def test_recipes_differ_by_policy_and_by_its_options():
    kinds = [*POLICIES, H2O(replace(HEAVY, score="decay")), Small(CAP_BYTES + 1, HEAVY)]
    assert len({engine(kind).recipe for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    "options", [HEAVY, replace(HEAVY, rows="all"), replace(HEAVY, score="decay"), replace(HEAVY, score="peak")]
)
def test_h2o_with_room_for_the_text_equals_full_attention(options):
    ids = tiny.token_ids(64)
    expected = tiny.engine(policy="full").log_probs(ids)
    torch.testing.assert_close(tiny.engine(policy=H2O(options)).log_probs(ids), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["h2o", "bounded"])
def test_no_step_exceeds_what_is_allowed(name, monkeypatch):
    made = engine(name)
    most, held, append = made.shape.compaction.most_slots, [], RegionMemory.append

    def watched(memory, layer, keys, values):
        append(memory, layer, keys, values)
        held.append((max(memory.filled), memory.size_bytes))

    monkeypatch.setattr(RegionMemory, "append", watched)
    memory = made.read(tiny.token_ids(700))
    cache = made.open_chat([memory])
    list(made.generate(cache, tiny.token_ids(90, seed=1)[1:], replace(GREEDY, max_new_tokens=60)))
    alone = made.open_chat()
    list(made.generate(alone, tiny.token_ids(300, seed=1), replace(GREEDY, max_new_tokens=100)))
    assert max(slots for slots, _ in held) <= most
    assert len(held) > 2 * 100
    if name == "h2o":
        assert most == made.budget_tokens
    else:
        assert max(size for _, size in held) <= CAP_BYTES


@pytest.mark.parametrize(("name", "score"), [*(("h2o", score) for score in SCORES), ("bounded", "mean")])
def test_what_is_kept_does_not_depend_on_later_tokens(name, score):
    options = replace(HEAVY, score=score)
    made = tiny.engine(policy=H2O(options) if name == "h2o" else Small(CAP_BYTES, options))
    ids, other = tiny.token_ids(600), [*tiny.token_ids(600)[:480], *tiny.token_ids(120, seed=9)]
    short = made.read(ids[:480])
    assert short.dropped > 0
    one, two = made.log_probs(ids), made.log_probs(other)
    assert torch.equal(one[:479], two[:479])
    kept = []
    for text in (ids, other):
        memory = RegionMemory(made.shape)
        cache = made.open_chat(tail=memory)
        for _ in made.segments(cache, text[:480], None):
            pass
        kept.append(state(memory))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", ["h2o", "bounded"])
def test_the_size_of_segments_changes_nothing(name):
    small, large = engine(name), engine(name)
    small.segment_tokens = small.most_segment_tokens = 16
    large.segment_tokens = large.most_segment_tokens = 512
    ids = tiny.token_ids(500)
    assert state(small.read(ids)) == state(large.read(ids))


@pytest.mark.parametrize("name", ["h2o", "bounded"])
def test_a_memory_that_was_stored_is_the_same(name):
    made = engine(name)
    memory = made.read(tiny.token_ids(700))
    groups = [memory.export_group(group) for group in range(memory.groups)]
    twin = RegionMemory(made.shape)
    twin.import_slots(memory.token_ids, memory.export_state(), groups)
    twin.freeze()
    assert state(twin) == state(memory) and twin.counts() == memory.counts() and twin.levels == memory.levels
    question = tiny.token_ids(25, seed=2)[1:]
    answers = [list(made.generate(made.open_chat([m]), question, GREEDY)) for m in (memory, twin)]
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match="expected 699"):
        RegionMemory(made.shape).import_slots(memory.token_ids[1:], memory.export_state(), groups)


@pytest.mark.parametrize("name", ["h2o", "bounded"])
def test_slots_know_where_they_come_from(name):
    """The first layer's keys depend on the token alone: each slot's key is that of the token it says it is."""
    made = engine(name)
    ids = tiny.token_ids(700)
    memory, whole = made.read(ids), tiny.engine().read(ids)
    origins = memory.origins[0][:, : memory.slots].long()
    assert (origins.diff(dim=1) > 0).all() and origins[:, :2].tolist() == [[0, 1]] * 2
    assert origins[:, -8:].tolist() == [list(range(692, 700))] * 2
    keys = whole.pages.rows(0, 0, 700)[0]
    expected = torch.stack([keys[head, origins[head]] for head in range(2)])
    torch.testing.assert_close(memory.pages.rows(0, 0, memory.slots)[0], expected)


def test_bounded_merges_again_and_again():
    made = engine("bounded")
    memory = made.read(tiny.token_ids(3000))
    counts = memory.counts()
    assert max(memory.levels) >= 3 and memory.size_bytes <= CAP_BYTES
    assert counts["tokens_compressed"] > 0 and counts["tokens_evicted"] == 3000 - memory.slots
    assert len(memory.token_ids) == 3000
    before = state(memory)
    for layer in range(memory.shape.layers):
        memory.index.update(layer, 0, memory.pages.rows(layer, 0, memory.slots)[0])
    assert state(memory.freeze()) == before


def test_which_regions_are_merged():
    assert pairs_to_merge([0, 0, 0, 0, 0], 9) == [0, 2]
    assert pairs_to_merge([2, 1, 0, 0, 1, 0, 0], 9) == [2, 5]
    assert pairs_to_merge([2, 1, 0, 0, 1, 0, 0], 1) == [2]
    assert pairs_to_merge([1, 0, 1, 1], 9) == [0, 2]
    assert merged_levels([2, 1, 0, 0, 1, 0, 0], [2, 5]) == [2, 1, 1, 1, 1]


def test_peaks_are_the_most_that_queries_gave():
    """The sampled queries of each group count together; those of a decode step by themselves."""
    made = engine(H2O(replace(HEAVY, score="peak")))
    exact = engine(H2O(HEAVY))  # sums of the same
    cache, twin = made.open_chat(), exact.open_chat()
    expected = torch.zeros(2, 36)
    for size in (16, 16, 1, 1, 1):
        before = twin.tail.mass[0][:, :48].clone() if twin.tail.capacity else torch.zeros(2, 48)
        made.forward(cache, [7] * size)
        exact.forward(twin, [7] * size)
        end, steps = twin.tail.slots, 8 if size == 16 else 1
        given = (twin.tail.mass[0][:, :end] - torch.nn.functional.pad(before, (0, 64))[:, :end]) / steps
        expected[:, :end] = torch.maximum(expected[:, :end], peaks(given.clamp(min=0), end))
    torch.testing.assert_close(cache.tail.mass[0][:, :35], expected[:, :35], atol=1e-3, rtol=0)


def test_mass_is_summed_over_the_heads_that_share_keys():
    """Every query row gives 1 in all: 2 heads per KV head, the last 8 rows of each group of 16."""
    made = engine("h2o")
    memory = made.read(tiny.token_ids(48))
    torch.testing.assert_close(memory.mass[0][:, :48].sum(-1), torch.tensor([48.0, 48.0]), atol=1e-3, rtol=0)
    assert memory.exposure[0][0, :48:16].tolist() == [48, 32, 16] and memory.exposure[0][0, 47] == 2
    exact = tiny.engine(policy=H2O(replace(HEAVY, rows="all"))).read(tiny.token_ids(48))
    torch.testing.assert_close(exact.mass[0][:, :48].sum(-1), torch.tensor([96.0, 96.0]), atol=1e-3, rtol=0)
    assert exact.exposure[1][1, :48].tolist() == [2.0 * (48 - i) for i in range(48)]


def test_going_back_before_something_was_dropped_forgets_all():
    made = engine("h2o")
    cache = made.open_chat()
    for _ in made.segments(cache, tiny.token_ids(100), None):
        pass
    assert cache.tail.whole_from == 96
    cache.tail.truncate(98)
    assert cache.tail.tokens == 98 and len(cache.tail.token_ids) == 98
    cache.tail.truncate(90)
    assert cache.tail.tokens == 0 and cache.tail.token_ids == [] and cache.counts()["tokens_evicted"] == 0
    list(made.generate(cache, tiny.token_ids(100), GREEDY))


def test_more_tokens_at_once_than_a_stretch_are_refused():
    made = engine("h2o")
    with pytest.raises(ValueError, match="100 tokens at once"):
        made.forward(made.open_chat(), tiny.token_ids(100))


def test_bad_configurations_are_refused_by_name():
    with pytest.raises(ConfigError, match="policy 'magic': not known; choose one of keep-all, bounded"):
        tiny.engine(policy="magic")
    with pytest.raises(ConfigError, match="budget_tokens = 64: policy h2o needs at least 84: 4 sinks"):
        tiny.engine(policy=H2O(PRESETS["mean"]))
    with pytest.raises(ConfigError, match="positions = original: policy h2o numbers what it keeps"):
        tiny.engine(replace(tiny.SMALL, positions="original"), policy=H2O(HEAVY))
    with pytest.raises(ConfigError, match="--h2o best: not known"):
        policies.named("h2o", h2o="best")
    with pytest.raises(ConfigError, match="--memory-cap 0"):
        Settings(memory_cap_mb=0)
    with pytest.raises(ConfigError, match="--memory-cap 1: too few MB for a budget of 4096 tokens; give at least 3"):
        tiny.engine(replace(tiny.SMALL, budget_tokens=4096, region_tokens=64), policy=Bounded(1))
    assert policies.of(Settings(policy="bounded", h2o="decay", memory_cap_mb=7)) == Bounded(7, PRESETS["decay"])


def test_memories_of_other_engines_are_refused():
    made = tiny.engine()
    with pytest.raises(ModelError, match="was made by recipe"):
        made.open_chat([engine("streaming").read(tiny.token_ids(20))])
    foreign = made.read(tiny.token_ids(20))
    foreign.shape = replace(foreign.shape, head_dim=4)
    with pytest.raises(ModelError, match="has head_dim = 4, where this model has 8"):
        made.open_chat([foreign])


def test_infllm_finds_regions_by_the_keys_that_local_attention_favours():
    """The path with a cache equals the oracle, and blocks are not found by their plain means."""
    made = tiny.engine(policy="infllm")
    a = made.spec.attention
    assert (a.region_tokens, a.group_tokens, a.budget_tokens, a.local_regions) == (8, 32, 64, 2)
    ids = tiny.token_ids(320)
    oracle = made.model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(made.forward(made.open_chat(), ids), oracle, atol=1e-5, rtol=1e-5)
    memory = made.read(ids)
    plain = memory.pages.rows(0, 0, 320)[0].unflatten(1, (-1, 8)).mean(2)
    assert not torch.allclose(memory.index.means["fine"][0][:, :40], plain, atol=1e-3)


def test_infllm_has_the_sizes_of_the_original_where_there_is_room():
    wide = policies.InfLLM().attention(replace(tiny.SMALL, budget_tokens=8192, region_tokens=64))
    assert (wide.region_tokens, wide.group_tokens, wide.sink_regions * wide.region_tokens) == (128, 512, 128)
    assert (wide.positions, wide.heads, wide.combine) == ("one_distance", "shared", "raw_sum")
    assert wide.score_angle == wide.local_regions * 128 - 1 < wide.budget_tokens // 2


def test_one_model_under_several_policies():
    """They take turns, each with memories of its own, as if it were alone."""
    made, question = tiny.engine(), tiny.token_ids(20, seed=1)[1:]
    engines = [made, *(made.under(policies.named(name)) for name in ("streaming", "infllm")), made.under(H2O(HEAVY))]
    caches = [one.open_chat([one.read(tiny.token_ids(300))]) for one in engines]
    answers = [list(one.generate(cache, question, GREEDY)) for one, cache in zip(engines, caches, strict=True)]
    for name, one, answer in zip(("keep-all", "streaming", "infllm", "h2o"), engines, answers, strict=True):
        alone = engine(name)
        assert one.recipe == alone.recipe and one.policy == name and one.floor is made.floor
        assert list(alone.generate(alone.open_chat([alone.read(tiny.token_ids(300))]), question, GREEDY)) == answer
    with pytest.raises(ModelError, match="was made by recipe"):
        engines[1].open_chat(caches[0].memories)


@pytest.mark.parametrize("score", ["mean", "decay", "peak"])
def test_groups_are_counted_together_as_one_after_the_other(score):
    """Three query groups that choose the same regions now and then; a decaying sum counts the last one most."""
    generator = torch.Generator().manual_seed(0)
    made = engine(H2O(replace(HEAVY, score=score)))
    regions = torch.randint(4, (3, made.shape.kv_heads, 5), generator=generator)
    mass = torch.rand(*regions.shape, made.shape.attention.region_tokens, generator=generator)
    tails = []
    for parts in ((slice(0, 1), slice(1, 2), slice(2, 3)), (slice(0, 3),)):
        cache = made.open_chat()
        cache.tail.reserve(64)
        cache.tail.filled, cache.tail.mass[0][:] = [32] * made.shape.layers, 1.0
        for part in parts:
            cache.tail.filled[0] = part.stop * 16  # each group ends where it ends
            cache.observe(0, regions[part], mass[part], rows=8, steps=4)
        tails.append(cache.tail)
    torch.testing.assert_close(tails[0].mass[0], tails[1].mass[0])
    assert torch.equal(tails[0].exposure[0], tails[1].exposure[0]) and tails[0].exposure[0].any()
