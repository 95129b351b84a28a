"""The engine where it meets transformers: generate, beams, chat templates."""

import pytest
import torch

from app.memory.config import GenerationConfig
from tests import tiny

GREEDY = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}


def test_generate_of_transformers_goes_on_in_a_second_turn():
    """The cache is handed back with more text; only what is new is run."""
    engine, stock = tiny.engine(), tiny.model()
    first, more = torch.tensor([tiny.token_ids(20)]), torch.tensor([tiny.token_ids(9, seed=1)[1:]])
    cache, runs = engine.open_chat(), []
    engine.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: runs.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    one = engine.model.generate(first, past_key_values=cache, **GREEDY)
    two = engine.model.generate(torch.cat([one, more], dim=1), past_key_values=cache, **GREEDY)
    assert runs == [20, *[1] * 9, 9, *[1] * 9]
    expected = stock.generate(first, **GREEDY)
    expected = stock.generate(torch.cat([expected, more], dim=1), **GREEDY)
    assert torch.equal(two, expected)
    assert cache.get_seq_length() == two.shape[1] - 1


def test_our_decode_loop_equals_generate_of_transformers():
    engine, ids = tiny.engine(), tiny.token_ids(30)
    engine.stop_ids = frozenset()
    ours = list(engine.generate(engine.open_chat(), ids, GenerationConfig(max_new_tokens=10)))
    assert ours == tiny.model().generate(torch.tensor([ids]), **GREEDY)[0, 30:].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_cache", [True, False])
def test_padding_is_refused(side, with_cache):
    engine, ids, mask = tiny.engine(), torch.tensor([tiny.token_ids(20)]), torch.ones(1, 20, dtype=torch.long)
    mask[0, 0 if side == "left" else -1] = 0
    cache = engine.open_chat() if with_cache else None
    with pytest.raises(ValueError, match="padding is not supported: attention_mask leaves out 1 of 20 tokens"):
        engine.model(ids, attention_mask=mask, past_key_values=cache, use_cache=with_cache)
    with pytest.raises(ValueError, match="padding is not supported"):
        engine.model.generate(ids, attention_mask=mask, past_key_values=cache, use_cache=with_cache, **GREEDY)


def test_a_mask_of_ones_and_no_mask_are_one():
    engine, ids = tiny.engine(), torch.tensor([tiny.token_ids(100)])
    runs = [
        engine.model(ids, attention_mask=mask, past_key_values=engine.open_chat()).logits
        for mask in (None, torch.ones_like(ids))
    ]
    assert torch.equal(*runs)


def test_a_mask_of_ones_own_is_refused():
    """In four dimensions it would reach the attention function as it is."""
    engine, mask = tiny.engine(), torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="not supported: region attention masks by position"):
        engine.model(torch.tensor([tiny.token_ids(20)]), attention_mask=mask, past_key_values=engine.open_chat())


@pytest.mark.parametrize("tokens", [10, 100])
def test_beam_search_is_refused(tokens):
    engine = tiny.engine()
    with pytest.raises(ValueError, match="batch of 2: a memory holds one text; .* num_beams=1"):
        engine.model.generate(
            torch.tensor([tiny.token_ids(tokens)]), past_key_values=engine.open_chat(), num_beams=2, **GREEDY
        )
    with pytest.raises(ValueError, match="beam search is not supported"):
        engine.open_chat().reorder_cache(torch.tensor([0]))


def test_a_failed_run_leaves_the_memory_as_it_was(monkeypatch):
    """Out of memory half way: the first layer held tokens that the second never got."""
    engine, other = tiny.engine(), tiny.engine()
    cache, twin = engine.open_chat(), other.open_chat()
    for run, place in ((engine, cache), (other, twin)):
        run.forward(place, tiny.token_ids(83))

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="out of memory"):
        broken.setattr(engine.model.model.layers[1], "forward", fail)
        engine.forward(cache, [5, 6, 7])
    assert cache.tail.filled == [83, 83] and len(cache.tail.token_ids) == 83
    torch.testing.assert_close(engine.forward(cache, [8, 9]), other.forward(twin, [8, 9]))


@pytest.mark.parametrize("before", [0, 5, 16])
def test_a_long_turn_does_not_depend_on_the_segment_size(before):
    answers = []
    for segment in (16, 64, 512):
        engine = tiny.engine()
        engine.segment_tokens = segment
        cache = engine.open_chat([engine.read(tiny.token_ids(100))])
        if before:
            engine.forward(cache, tiny.token_ids(before, seed=1))
        turn = tiny.token_ids(120, seed=2)[1:]
        list(engine.generate(cache, turn, GenerationConfig(max_new_tokens=1)))
        answers.append(cache.tail.pages.rows(1, 0, before + len(turn))[0])
    torch.testing.assert_close(answers[0], answers[1])
    torch.testing.assert_close(answers[0], answers[2])


@pytest.mark.parametrize("answer", ["b", "c", "", "user", "a long answer", "  spaces  "])
def test_an_answer_whose_words_stand_in_the_question(answer):
    engine = tiny.engine()
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "about c, a long answer"},
    ]
    new = "<|user|>about c, a long answer<|end|><|assistant|>"
    assert engine.tokenizer.decode(engine.encode_turn(messages, last_token=2)) == new
    assert engine.tokenizer.decode(engine.encode_turn(messages, last_token=9)) == "<|end|>" + new
    assert messages[1]["content"] == answer


def test_a_template_that_rewrites_old_answers():
    """As those of thinking models: what was said stays in the memory, the turn follows it."""
    engine = tiny.engine()
    engine.tokenizer.chat_template = tiny.TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]|trim")
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "hm</think> b "},
        {"role": "user", "content": "c"},
    ]
    assert engine.tokenizer.decode(engine.encode_turn(messages, last_token=2)) == "<|user|>c<|end|><|assistant|>"


def test_without_a_template_turns_are_plain_lines():
    engine = tiny.engine()
    engine.tokenizer.chat_template = None
    one = [{"role": "user", "content": "a"}]
    two = [*one, {"role": "assistant", "content": "b"}, {"role": "user", "content": "b?"}]
    assert engine.tokenizer.decode(engine.encode_turn(one)) == "\nQuestion: a\nAnswer:"
    assert engine.tokenizer.decode(engine.encode_turn(two, last_token=2)) == "\nQuestion: b?\nAnswer:"
    assert engine.tokenizer.decode(engine.encode_turn(two, last_token=9)) == "<|end|>\nQuestion: b?\nAnswer:"
