"""The frozen tokenizer: stored memories and every later model depend on its ids."""

import hashlib
import json
import random

import pytest

from app.models.checkpoint import Recipe
from app.runtime.engine import Engine
from app.train.pretrain.tokenizer import MARKERS, SPLIT, save_tokenizer, train_tokenizer
from tests import tiny
from tests.train.conftest import FROZEN

SHA256 = "3df44314f9135ee3f08ccc0e1113febc3d39a3e425844c09c51dc5c7c1784b96"
ODD = [
    "naïve façade, Ærøskøbing",
    "你好，世界 — 日本語 한국어 العربية עברית",
    "🙂👩‍👩‍👧‍👦 ﬁ e\u0301 \u202e\u200b\ufeff",
    "tabs\tand\r\nlines\n\n\n   spaces   \x00\x7f",
    "  leading, trailing  ",
    "x = 3.14159e-10; y[2025]",
]


def test_the_file_is_frozen():
    assert hashlib.sha256((FROZEN / "tokenizer.json").read_bytes()).hexdigest() == SHA256


def test_it_holds_8192_ids_with_the_markers_first(tokenizer):
    assert len(tokenizer) == 8192
    assert tokenizer.convert_ids_to_tokens(range(len(MARKERS))) == list(MARKERS)
    assert sum(marker.startswith("<|spare_") for marker in MARKERS) == 64
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_the_split_rule_is_that_of_qwen2():
    """llama.cpp knows it by this text."""
    first, second = json.loads((FROZEN / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"][
        "pretokenizers"
    ]
    assert first["pattern"] == {"Regex": SPLIT} and first["behavior"] == "Isolated" and not first["invert"]
    assert second["type"] == "ByteLevel" and not second["add_prefix_space"] and not second["use_regex"]


@pytest.mark.parametrize("number", ["7", "48213", "1234567890", "3.14", "2025-11-20"])
def test_digits_are_split_one_by_one(tokenizer, number):
    pieces = tokenizer.tokenize(f"The key is {number}.")
    assert [p for p in pieces if any(c.isdigit() for c in p)] == [c for c in number if c.isdigit()]


@pytest.mark.parametrize("text", ODD)
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_random_characters_come_back(tokenizer):
    rng = random.Random(0)
    points = [c for c in range(0x20000) if not 0xD800 <= c < 0xE000]
    text = "".join(map(chr, rng.sample(points, 2000)))
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_nothing_is_added_to_a_text(tokenizer):
    assert tokenizer("Hello")["input_ids"] == tokenizer("Hello", add_special_tokens=False)["input_ids"]


def test_markers_in_a_document_stay_text(tokenizer):
    """A book that holds `<|end|>` cannot end an answer; only templates make markers."""
    engine = Engine(tiny.model(), tokenizer, Recipe(tiny.SMALL, trained_tokens=64))
    text = "He wrote <|end|> and <|user|>, even <|spare_3|><|bos|>."
    ids = engine.text_tokenizer.encode(text, add_special_tokens=False).ids
    assert min(ids) >= len(MARKERS)
    assert engine.text_tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.convert_tokens_to_ids("<|end|>") in tokenizer(text)["input_ids"]


def test_training_gives_bytes_markers_and_merges(tmp_path):
    made = train_tokenizer(["the cat and the hat, the bat 12"] * 20, vocab_size=340)
    assert 326 < len(made) <= 340
    assert made.decode(made("über the 12 cats")["input_ids"]) == "über the 12 cats"
    assert len(made.tokenize(" the")) < 4
    save_tokenizer(made, tmp_path)
    with pytest.raises(FileExistsError, match="frozen"):
        save_tokenizer(made, tmp_path)
