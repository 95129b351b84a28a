import pytest
import torch

from app.errors import CancelledError
from app.memory.config import AttentionConfig, GenerationConfig
from app.memory.memory import RegionMemory
from app.runtime.attention import AttentionSpec
from app.runtime.cache import RegionCache
from tests import tiny

LONG = 300


def hidden_states(engine, ids, sizes):
    """Hidden states of a text fed in pieces of the given sizes."""
    cache, parts, start = RegionCache(engine.shape), [], 0
    for size in sizes:
        parts.append(engine.forward(cache, ids[start : start + size]))
        start += size
    assert start == len(ids)
    return torch.cat(parts), cache


def contents(memory, layer):
    """Keys, values, fine means and H2O mass of one layer."""
    sub = memory.shape.attention.key_sub
    k, v = memory.pages.rows(layer, 0, memory.tokens)
    return k, v, memory.index.means["fine"][layer][:, : memory.tokens // sub], memory.mass[layer][:, : memory.tokens]


def stock_logits(ids):
    with torch.inference_mode():
        return tiny.model()(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("tokens", [1, 5, 16, 63, 64])
def test_equals_transformers_while_the_past_fits_the_budget(tokens):
    engine, ids = tiny.engine(), tiny.token_ids(tokens)
    hidden, _ = hidden_states(engine, ids, [tokens])
    torch.testing.assert_close(engine.logits(hidden), stock_logits(ids), atol=1e-5, rtol=1e-5)


def test_token_by_token_equals_transformers():
    engine, ids = tiny.engine(), tiny.token_ids(60)
    hidden, _ = hidden_states(engine, ids, [20] + [1] * 40)
    torch.testing.assert_close(engine.logits(hidden), stock_logits(ids), atol=1e-5, rtol=1e-5)


def test_full_policy_equals_transformers_beyond_the_budget():
    engine, ids = tiny.engine(policy="full"), tiny.token_ids(200)
    hidden, _ = hidden_states(engine, ids, [96, 64, 40])
    torch.testing.assert_close(engine.logits(hidden), stock_logits(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [65, 100, 127, LONG])
def test_fast_path_equals_the_oracle(tokens):
    """The same model without a cache runs MSA-1's reference."""
    engine, ids = tiny.engine(), tiny.token_ids(tokens)
    hidden, _ = hidden_states(engine, ids, [tokens])
    with torch.inference_mode():
        oracle = engine.model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(hidden, oracle, atol=1e-5, rtol=1e-5)


def test_segment_size_does_not_matter():
    engine, ids = tiny.engine(), tiny.token_ids(LONG)
    whole, one = hidden_states(engine, ids, [LONG])
    pieces, many = hidden_states(engine, ids, [16] * 18 + [12])
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=1e-5)
    for layer in range(engine.shape.layers):
        for a, b in zip(contents(one.tail, layer), contents(many.tail, layer), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_later_tokens_never_change_what_was_read():
    engine = tiny.engine()
    ids, other = tiny.token_ids(LONG), tiny.token_ids(LONG, seed=1)
    mixed = ids[:160] + other[160:]
    first, _ = hidden_states(engine, ids, [LONG])
    second, _ = hidden_states(engine, mixed, [LONG])
    torch.testing.assert_close(first[:160], second[:160], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16])
def test_exported_groups_bring_the_memory_back(kv_dtype):
    engine, ids = tiny.engine(kv_dtype=kv_dtype), tiny.token_ids(LONG)
    memory = engine.read(ids)
    twin = RegionMemory(engine.shape)
    for group in range(memory.groups):
        start, end = memory.group_range(group)
        twin.import_group(ids[start:end], *memory.export_group(group))
    twin.freeze().import_mass(memory.export_mass())
    config = GenerationConfig(max_new_tokens=8)
    turn = engine.encode_turn([{"role": "user", "content": "who?"}])
    answers = [list(engine.generate(engine.open_chat([m]), turn, config)) for m in (memory, twin)]
    assert answers[0] == answers[1]
    for layer in range(engine.shape.layers):
        assert all(torch.equal(a, b) for a, b in zip(contents(memory, layer), contents(twin, layer), strict=True))


def test_rows_stay_below_their_limit(monkeypatch):
    """A layer larger than a row is cut into pieces, and comes back whole."""
    from app.memory import pages as module

    monkeypatch.setattr(module, "MAX_ROW_BYTES", 1000)
    engine, ids = tiny.engine(), tiny.token_ids(16)
    memory, twin = engine.read(ids), RegionMemory(engine.shape)
    index, kv = memory.export_group(0)
    assert len(kv) > 2 and max(map(len, kv)) <= 1000
    twin.import_group(ids, index, kv)
    assert torch.equal(memory.pages.rows(1, 0, 16)[1], twin.pages.rows(1, 0, 16)[1])


def test_wrong_sized_bytes_are_refused():
    engine = tiny.engine()
    memory = engine.read(tiny.token_ids(32))
    index, kv = memory.export_group(0)
    with pytest.raises(ValueError, match="expected"):
        RegionMemory(engine.shape).import_group(memory.token_ids[:16], index, [kv[0][:-4], *kv[1:]])


def test_reading_goes_on_from_a_prefix():
    engine, ids = tiny.engine(), tiny.token_ids(LONG)
    whole, calls = engine.read(ids), []
    with pytest.raises(CancelledError):
        engine.read(ids, on_sealed=lambda g, m: calls.append((g, m.export_group(g))), cancelled=lambda: len(calls) >= 8)
    prefix = RegionMemory(engine.shape)
    for group, data in calls:
        prefix.import_group(ids[group * 16 : group * 16 + 16], *data)
    rest = engine.read(ids, resume=prefix)
    assert [g for g, _ in calls] == list(range(8))
    for layer in range(engine.shape.layers):
        torch.testing.assert_close(contents(whole, layer)[0], contents(rest, layer)[0], atol=1e-5, rtol=1e-5)


def test_a_long_segment_is_stopped_between_its_layers():
    engine, polls = tiny.engine(), []
    engine.segment_tokens = engine.most_segment_tokens = 512
    memory, ids = RegionMemory(engine.shape), tiny.token_ids(400)
    with pytest.raises(CancelledError, match="stopped after 0 of 400 tokens"):
        engine.read(ids, resume=memory, cancelled=lambda: polls.append(1) or len(polls) > 2)
    assert len(polls) == 3 and memory.tokens == 0  # one before the segment, one before each layer
    fresh = engine.read(ids)
    torch.testing.assert_close(engine.read(ids, resume=memory).pages.rows(1, 0, 400), fresh.pages.rows(1, 0, 400))


def test_segments_follow_the_time_that_they_take():
    engine = tiny.engine()
    engine.segment_tokens, engine.most_segment_tokens = 512, 1024
    sizes = []
    for seconds in (0.1, 1.0, 1.0, 1.0, 9.0, 9.0):
        engine._fit_segments(engine.segment_tokens, seconds)
        sizes.append(engine.segment_tokens)
    assert sizes == [1024, 512, 256, 256, 128, 64]


def test_attached_memories_and_chat_equal_one_text_while_they_fit():
    engine = tiny.engine()
    ids, turn = tiny.token_ids(30), tiny.token_ids(20, seed=3)[1:]
    cache = engine.open_chat([engine.read(ids)])
    hidden = engine.forward(cache, turn)
    more = engine.forward(cache, [9])
    expected = stock_logits([*ids, *turn, 9])
    torch.testing.assert_close(engine.logits(hidden), expected[30:49], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(engine.logits(more), expected[49:], atol=1e-5, rtol=1e-5)


class SelectAlways(AttentionSpec):
    """Never dense: every query goes through selection."""

    budget_tokens = property(lambda self: 0)


def test_selecting_every_region_equals_dense_with_short_regions_in_the_middle():
    wide = AttentionConfig(budget_tokens=256, region_tokens=8, merge=2, query_sub=2, key_sub=2, coarse_sub=4)
    engine = tiny.engine(wide)
    memories = [engine.read(tiny.token_ids(n, seed=n)) for n in (29, 13, 50)]
    turn = tiny.token_ids(45, seed=5)[1:]

    def answer():
        cache = engine.open_chat(memories)
        return torch.cat([engine.forward(cache, turn), engine.forward(cache, [9])])

    dense = answer()
    selecting = SelectAlways(wide, engine.spec.inv_freq, engine.spec.rope_scaling)
    for layer in engine.model.model.layers:
        layer.self_attn.lectern = selecting
    torch.testing.assert_close(answer(), dense, atol=1e-5, rtol=1e-5)


def test_generate_of_transformers_works_with_our_cache():
    engine, ids = tiny.engine(), tiny.token_ids(40)
    cache = engine.open_chat()
    out = engine.model.generate(
        torch.tensor([ids]), past_key_values=cache, max_new_tokens=10, do_sample=False, eos_token_id=None
    )
    stock = tiny.model().generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert torch.equal(out, stock)
    assert cache.get_seq_length() == 49


def test_batches_are_refused():
    engine = tiny.engine()
    with pytest.raises(ValueError, match="batch of 2"):
        engine.model(torch.ones(2, 4, dtype=torch.long), past_key_values=engine.open_chat())


@pytest.mark.parametrize("tokens", [40, LONG])
def test_muted_regions_are_never_seen(tokens):
    """Whatever stands in a muted region, the answer is the same: dense (40 tokens) and selecting."""
    engine = tiny.engine()
    memory = engine.read(tiny.token_ids(tokens))
    turn = tiny.token_ids(12, seed=4)[1:]
    answers = []
    for poison in (1e3, -1e3):
        for layer in range(engine.shape.layers):
            poisoned = torch.full((engine.shape.kv_heads, 16, engine.shape.head_dim), poison)
            memory.pages.append(layer, 16, poisoned, poisoned)
        cache = engine.open_chat([memory])
        cache.allow([region not in (2, 3) for region in range(memory.regions)])
        answers.append(torch.cat([engine.forward(cache, turn), engine.forward(cache, [7])]))
    assert torch.equal(*answers)


def test_focus_on_one_region_still_answers():
    engine = tiny.engine()
    memory = engine.read(tiny.token_ids(LONG))
    cache = engine.open_chat([memory])
    cache.allow([region == 17 for region in range(memory.regions)])
    tokens = list(engine.generate(cache, tiny.token_ids(12, seed=4)[1:], GenerationConfig(max_new_tokens=5)))
    seen = cache.evidence.density
    assert tokens and torch.isfinite(seen).all()
    assert seen.argmax() == 17 and seen[[0, 5, 30]].abs().max() < 1e-4


def test_no_more_than_the_budget_is_attended(monkeypatch):
    from app.runtime import attention

    engine, sizes = tiny.engine(), []
    gather = attention.gather
    monkeypatch.setattr(attention, "gather", lambda c, n, r: (sizes.append(r.shape[-1] * 8), gather(c, n, r))[1])
    cache = engine.open_chat([engine.read(tiny.token_ids(LONG))])
    list(engine.generate(cache, tiny.token_ids(40, seed=2)[1:], GenerationConfig(max_new_tokens=20)))
    assert max(sizes) == 64


def test_stop_tokens_are_run_but_not_yielded():
    engine = tiny.engine()
    cache = engine.open_chat()
    engine.stop_ids = frozenset(range(262))
    assert list(engine.generate(cache, [1, 10, 11], GenerationConfig(max_new_tokens=5))) == []
    assert cache.tail.tokens == 4


def ended(steps):
    """The tokens of an answer, and why it ended."""
    tokens = []
    while True:
        try:
            tokens.append(next(steps))
        except StopIteration as end:
            return tokens, end.value


def test_an_answer_tells_why_it_ended(monkeypatch):
    engine, prompt = tiny.engine(), [1, 10, 11]
    run = [engine.generate(engine.open_chat(), prompt, GenerationConfig(max_new_tokens=4)) for _ in range(2)]
    tokens, why = ended(run[0])
    assert len(tokens) == 4 and why == "length"
    stopped = engine.generate(engine.open_chat(), prompt, GenerationConfig(), cancelled=lambda: True)
    assert ended(stopped)[1] == ""
    engine.stop_ids = frozenset([tokens[2]])
    assert ended(run[1]) == (tokens[: tokens.index(tokens[2])], "stop")


def test_an_answer_that_repeats_itself_is_ended_and_no_other_one_changed(monkeypatch):
    engine, prompt, turns = tiny.engine(), [1, 10, 11], iter(range(10**6))
    engine.stop_ids = frozenset()
    monkeypatch.setattr("app.runtime.decode.Sampler.__call__", lambda self, logits: torch.tensor(20 + next(turns) % 3))
    cache, config = engine.open_chat(), GenerationConfig(max_new_tokens=60, repeat_tokens=24)
    tokens, why = ended(engine.generate(cache, prompt, config))
    assert why == "repetition" and tokens == [20 + i % 3 for i in range(27)]
    assert cache.tail.token_ids == prompt + tokens  # so that the chat can go on
    memory = engine.read([1, 9, *(20 + (i + 1) % 3 for i in range(90)), 9])  # a text that repeats itself as long
    turns = iter(range(10**6))
    assert len(ended(engine.generate(engine.open_chat([memory]), prompt, config))[0]) == 60
    turns = iter(range(10**6))
    assert ended(engine.generate(engine.open_chat(), prompt, GenerationConfig(max_new_tokens=60)))[1] == "length"


def test_log_probs_match_transformers():
    engine, ids = tiny.engine(), tiny.token_ids(50)
    expected = torch.log_softmax(stock_logits(ids)[:-1], -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(engine.log_probs(ids), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(engine.log_probs(ids, counted_from=33), expected[32:], atol=1e-5, rtol=1e-5)


def test_stream_text_holds_half_characters_and_stop_strings():
    engine = tiny.engine()
    ids = engine.tokenizer("Grüße, END of", add_special_tokens=False)["input_ids"]
    assert "".join(engine.stream_text(iter(ids))) == "Grüße, END of"
    assert "".join(engine.stream_text(iter(ids), stop=("END",))) == "Grüße, "
    assert all("\ufffd" not in piece for piece in engine.stream_text(iter(ids)))


def test_turns_follow_the_template():
    engine = tiny.engine()
    one = [{"role": "user", "content": "a"}]
    two = [*one, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert engine.tokenizer.decode(engine.encode_turn(one)) == "<|user|>a<|end|><|assistant|>"
    assert engine.tokenizer.decode(engine.encode_turn(two, last_token=2)) == "<|user|>c<|end|><|assistant|>"
    assert engine.tokenizer.decode(engine.encode_turn(two, last_token=9)) == "<|end|><|user|>c<|end|><|assistant|>"
