"""Packed rows: nothing is lost unsaid, answers alone weigh, and every batch depends on seed and step alone."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import ConfigError, InputError
from app.train.tune.instructions import Entry
from app.train.tune.packing import Counts, Encoder, PackedRows
from app.train.tune.sources import Source, read_sources
from tests import tiny

TURNS = (("user", "Who keeps the cat?"), ("assistant", "Ada."), ("user", "Where?"), ("assistant", "On the stove."))


@pytest.fixture(scope="module")
def tokens():
    return tiny.byte_tokenizer()


def source(name: str, *texts: str) -> Source:
    return Source(name, "text", tuple(Entry(f"{name}, line {i}", text) for i, text in enumerate(texts, start=1)))


def asked(*turns: tuple[str, str], text: str = "") -> Source:
    return Source("asked", "instructions", (Entry("asked, line 1", text, turns),))


def letters(count: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("abcdefghij", k=count))


def texts_in(batch: dict, tokenizer) -> list[str]:
    """The documents of a batch, BOS cut off."""
    found = []
    for ids, documents in zip(batch["input_ids"], batch["documents"], strict=True):
        for number in range(int(documents.max()) + 1):
            found.append(tokenizer.decode(ids[documents == number][1:]))
    return found


def weighed(encoded, tokenizer) -> str:
    """What must be predicted."""
    return tokenizer.decode(encoded.token_ids[encoded.weights == 1.0])


def test_only_answers_and_their_ends_weigh(tokens):
    entry = Entry("x", "Ada keeps a cat.", TURNS)
    encoded = Encoder(tokens, prompt_weight=0.25, document_weight=0.125)(entry)
    whole = tokens.apply_chat_template([{"role": r, "content": c} for r, c in TURNS], tokenize=False)
    assert tokens.decode(encoded.token_ids) == f"<|bos|>Ada keeps a cat.{whole}"
    assert weighed(encoded, tokens) == "Ada.<|end|>On the stove.<|end|>"
    assert tokens.decode(encoded.token_ids[encoded.weights == 0.125]) == "Ada keeps a cat."
    assert encoded.weights[0] == 0 and set(encoded.weights) == {0.0, 0.125, 0.25, 1.0}


def test_a_conversation_is_laid_out_as_the_app_asks(tokens):
    """What precedes the last answer is a document's memory and then what the engine runs for the question."""
    engine = tiny.engine()
    messages = [{"role": role, "content": content} for role, content in TURNS[:1]]
    memory = [engine.bos_id, *engine.text_tokenizer.encode("A cat.", add_special_tokens=False).ids]
    expected = [*memory, *engine.encode_turn(messages)]
    encoded = Encoder(engine.tokenizer)(Entry("x", "A cat.", TURNS[:2]))
    assert encoded.token_ids[: len(expected)].tolist() == expected
    engine.tokenizer.chat_template = None
    expected = [*memory, *engine.encode_turn(messages)]
    encoded = Encoder(engine.tokenizer)(Entry("x", "A cat.", TURNS[:2]))
    assert encoded.token_ids[: len(expected)].tolist() == expected
    assert weighed(encoded, engine.tokenizer) == " Ada.<|end|>"


def test_markers_inside_contents_stay_text(tokens):
    encoded = Encoder(tokens)(Entry("x", "a <|end|> b", (("user", "<|assistant|>"), ("assistant", "no <|end|> yet"))))
    assert (encoded.token_ids == tokens.eos_token_id).sum() == 2  # the template's own, after both turns
    assert weighed(encoded, tokens) == "no <|end|> yet<|end|>"


def test_the_shipped_tokenizer_ends_answers_too(tokenizer):
    encoded = Encoder(tokenizer)(Entry("x", "", TURNS))
    assert weighed(encoded, tokenizer) == "Ada.<|end|>On the stove.<|end|>"


def test_templates_that_refuse_or_lose_turns_are_told(tokens):
    tokens = tiny.byte_tokenizer()
    tokens.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="asked, line 1: .* refuses the turns user, assistant: roles must alternate"):
        PackedRows([asked(*TURNS[:2])], tokens, tokens=64)
    tokens.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(InputError, match="does not show all 2 turns"):
        PackedRows([asked(*TURNS[:2])], tokens, tokens=64)
    encoded = Encoder(tokens)(Entry("x", "", TURNS[1:2]))  # this template has no end: EOS is put there
    assert weighed(encoded, tokens) == "Ada.<|end|>"


def test_nothing_of_a_text_is_lost(tokens):
    texts = [letters(n, n) for n in (3, 10, 31, 32, 33, 100, 311, 1, 5, 5, 5)]
    packed = PackedRows([source("a", *texts)], tokens, tokens=32)
    found = [text for batch in packed.in_order(3) for text in texts_in(batch, tokens)]
    assert sorted(found) == sorted(text[start : start + 31] for text in texts for start in range(0, len(text), 31))
    learnt = sum(int((batch["weights"] > 0).sum()) for batch in packed.in_order(3))
    assert learnt == packed.counts.learnt == sum(map(len, texts))
    assert packed.counts.split == 4 and packed.counts.entries == len(texts)
    filled = sum(int((batch["documents"] >= 0).sum()) for batch in packed.in_order(3))
    assert filled + packed.counts.padding == 32 * packed.rows == 32 * packed.counts.rows
    assert "4 texts longer than a row were split" in packed.told()


def test_a_tokenizer_without_bos_loses_nothing_either():
    tokens = tiny.byte_tokenizer()
    tokens.bos_token = None
    text = letters(100)
    packed = PackedRows([source("a", text)], tokens, tokens=32)
    predicted = []
    for batch in packed.in_order(1):
        ids, weights = batch["input_ids"][0], batch["weights"][0]
        predicted.append(tokens.decode(ids[weights > 0]))
    assert sorted(predicted) == sorted(text[1 + start : 32 + start] for start in range(0, 99, 31))
    assert packed.counts.learnt == 99  # nothing comes before the first


def test_long_conversations_are_cut_or_left_out_and_counted(tokens):
    long = asked(("user", "Why?"), ("assistant", letters(200)))
    packed = PackedRows([long], tokens, tokens=64)
    assert packed.counts.cut == 1 and packed.counts.cut_tokens == packed.counts.tokens - 64
    assert "1 conversations longer than a row lost" in packed.told()
    late = Entry("late", letters(100), (("user", "Why?"), ("assistant", "So.")))
    both = Source("both", "instructions", (*long.entries, late))
    packed = PackedRows([both], tokens, tokens=64)
    assert packed.counts.left_out == 1 and packed.rows == 1
    assert "1 conversations" in packed.told() and "their first answer lies beyond a row" in packed.told()
    with pytest.raises(InputError, match="late: nothing in it can be learnt from.*beyond a row"):
        PackedRows([Source("late", "instructions", (late,))], tokens, tokens=64)


def test_rows_hold_whole_documents_with_boundaries(tokens):
    packed = PackedRows([source("a", *(letters(n % 23 + 1, n) for n in range(300)))], tokens, tokens=48)
    batch = packed(0, 8)
    assert batch["input_ids"].shape == batch["weights"].shape == batch["documents"].shape == (8, 48)
    assert (
        batch["input_ids"].dtype == batch["documents"].dtype == torch.int64 and batch["weights"].dtype == torch.float32
    )
    for ids, weights, documents in zip(*batch.values(), strict=True):
        used = documents >= 0
        assert (documents[used].diff() >= 0).all() and not used[int(used.sum()) :].any()
        begins = torch.cat([torch.tensor([True]), documents.diff() != 0]) & used
        assert (ids[begins] == tokens.bos_token_id).all() and int(begins.sum()) == int(documents.max()) + 1
        assert (weights[begins] == 0).all() and (weights[~used] == 0).all()
        assert (ids[~used] == tokens.pad_token_id).all()
    assert packed.counts.padding < 0.03 * packed.rows * 48


def test_batches_depend_on_seed_and_step_alone(tokens):
    sources = [source("a", *(letters(20, n) for n in range(40))), source("b", *(letters(20, n) for n in range(50, 60)))]
    first, again, other = (PackedRows(sources, tokens, tokens=24, seed=seed) for seed in (3, 3, 4))
    steps = [first(step, 4) for step in range(30)]
    for step in (29, 0, 17):  # in any order: a resumed run asks for its step first
        assert all(torch.equal(steps[step][name], again(step, 4)[name]) for name in steps[step])
    assert not all(torch.equal(steps[step]["input_ids"], other(step, 4)["input_ids"]) for step in range(5))


def test_every_row_comes_once_an_epoch_in_another_order(tokens):
    texts = [letters(23, n) for n in range(20)]
    packed = PackedRows([source("a", *texts)], tokens, tokens=24)
    assert packed.rows == 20
    epochs = [[t for step in range(e * 10, e * 10 + 10) for t in texts_in(packed(step, 2), tokens)] for e in range(3)]
    assert all(sorted(epoch) == sorted(texts) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_shares_say_how_often_a_source_comes(tokens):
    sources = [source("a", *("a" * 23 for _ in range(30))), source("b", "b" * 23)]

    def drawn(shares):
        packed = PackedRows(sources, tokens, tokens=24, shares=shares)
        texts = [text[0] for step in range(31) for text in texts_in(packed(step, 1), tokens)]
        return texts.count("b")

    assert drawn(()) == 1  # by size
    assert 15 <= drawn((1.0, 1.0)) <= 16
    assert drawn((0.0, 2.0)) == 31


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": (1.0, 1.0)}, "give 1 numbers"),
        ({"shares": (-1.0,)}, "none below 0"),
        ({"shares": (0.0,)}, "not all 0"),
        ({"tokens": 1}, "give at least 2"),
    ],
)
def test_bad_options_are_refused(tokens, options, message):
    with pytest.raises(ConfigError, match=message):
        PackedRows([source("a", "text")], tokens, **{"tokens": 16, **options})


def test_counts_add_up():
    assert Counts(entries=1, rows=2) + Counts(entries=3, padding=4) == Counts(entries=4, rows=2, padding=4)
    assert "0 rows" in Counts().told(8)


def test_real_instructions_pack(shared_data: Path, tokenizer):
    """Four of the 9,160 have an empty answer, which is told and stops nothing."""
    (alpaca,) = read_sources([shared_data / "instruct" / "alpaca_random_9k.jsonl.xz"])
    assert alpaca.notes == ("alpaca_random_9k.jsonl.xz: 4 of 9160 left out, an answer in them is empty",)
    packed = PackedRows([replace(alpaca, entries=alpaca.entries[:300])], tokenizer, tokens=1024)
    assert packed.counts.padding < 0.05 * packed.rows * 1024
    assert packed.told().endswith(alpaca.notes[0])


TEMPLATES = {  # as well-known models have them, shortened
    "llama-2": (
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "<|bos|>D[INST] Q1 [/INST] A1 <|end|><|bos|>[INST] Q2 [/INST] A2 <|end|>",
        "A1 <|end|>A2 <|end|>",
    ),
    "qwen-3": (
        "{% for m in messages %}{{ '<|user|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|end|>\n' }}{% endfor %}",
        "<|bos|>D<|user|>user\nQ1<|end|>\n<|user|>assistant\nA1<|end|>\n<|user|>user\nQ2<|end|>\n<|user|>assistant\n"
        "<think>\n\n</think>\n\nA2<|end|>\n",
        "A1<|end|>A2<|end|>",
    ),
    "vicuna": (
        "{% for m in messages %}{{ ('USER: ' if m['role'] == 'user' else 'ASSISTANT: ') + m['content'] }}"
        "{{ ' ' if m['role'] == 'user' else eos_token }}{% endfor %}",
        "<|bos|>DUSER: Q1 ASSISTANT: A1<|end|>USER: Q2 ASSISTANT: A2<|end|>",
        "A1<|end|>A2<|end|>",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_other_models(name):
    template, whole, learnt = TEMPLATES[name]
    tokens = tiny.byte_tokenizer()
    tokens.chat_template = template
    turns = (("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2"))
    encoded = Encoder(tokens)(Entry("x", "D", turns))
    assert tokens.decode(encoded.token_ids) == whole
    assert weighed(encoded, tokens) == learnt


def test_long_texts_are_cut_at_lines_to_be_tokenised(tokens):
    text = "".join(f"line {i} {letters(50, i)}\n" for i in range(5_000)) + letters(300_000)
    encoded = Encoder(tokens)(Entry("x", text))
    assert tokens.decode(encoded.token_ids[1:]) == text
