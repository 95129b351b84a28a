"""Recipes are told apart by name."""

from pathlib import Path

import pytest

from app.records import Document, Part
from app.store.recipes import NAMES, differences
from app.store.store import Store
from tests import tiny

PARTS = {
    "format": 1,
    "weights": "ab",
    "tokenizer": "cd",
    "attention": {"budget_tokens": 4096, "merge": 2},
    "policy": "keep-all",
    "rope": [1.0, 0.5],
    "dtype": ["torch.float32", "torch.bfloat16"],
    "codec": "raw",
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "x"}, "other weights"),
        ({"tokenizer": "x"}, "another tokenizer"),
        (
            {"attention": {"budget_tokens": 2048, "merge": 2}},
            "another attention recipe: budget_tokens 4096 (now 2048)",
        ),
        ({"policy": "streaming"}, "policy keep-all (now streaming)"),
        ({"rope": [1.0]}, "other positions"),
        ({"dtype": ["a", "b"]}, "data type torch.float32/torch.bfloat16 (now a/b)"),
        ({"codec": "int8"}, "codec raw (now int8)"),
        ({"format": 2}, "memory format 1 (now 2)"),
        ({"weights": "x", "codec": "int8"}, "other weights, codec raw (now int8)"),
        ({}, "the same recipe"),
    ],
)
def test_what_differs_is_named(change: dict, words: str) -> None:
    assert differences(PARTS, PARTS | change) == words


def test_the_same_tensors_are_the_same_weights() -> None:
    """An edited config.json changes the digest of a model's files, not its weights."""
    kept = PARTS | {"tensors": "t"}
    assert differences(kept, kept | {"weights": "x"}) == "another configuration"
    assert differences(kept, kept | {"weights": "x", "tensors": "u"}) == "other weights"
    assert differences(kept, PARTS) == "the same recipe"


def test_every_part_of_an_engine_has_a_name() -> None:
    engine = tiny.engine()
    assert set(engine.recipe_parts) == set(NAMES)
    assert engine.recipe_parts["policy"] == "keep-all"
    assert tiny.engine(policy="streaming").recipe != engine.recipe == tiny.engine().recipe


def test_digests_keep_their_meaning(tmp_path: Path) -> None:
    store = Store(tmp_path, disk_budget_bytes=1 << 30)
    store.keep_recipe("aa", PARTS)
    store.keep_recipe("aa", {})
    store.keep_recipe("bb", PARTS | {"policy": "full"})
    assert store.recipe_parts("aa") == PARTS and store.recipe_parts("cc") is None
    assert store.difference("aa", "bb") == "policy keep-all (now full)"
    assert store.difference("cc", "bb") == "another model or recipe"
    id = store.add_document(Document("Book", "text", "b" * 64, (Part(1, "1", "words"),)))
    assert store.other_recipe(id, "aa") is None
    store.set_state(id, "aa", "read")
    store.set_state(id, "bb", "reading")
    assert store.other_recipe(id, "bb") == "aa" and store.other_recipe(id, "aa") is None
    store.close()
