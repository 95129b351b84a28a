"""The real base: its ids are those of its own tokenizer and llama.cpp's, and it opens as the default does."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from app.models.folder import stored_weights
from app.models.turns import Turns

IDS = json.loads((Path(__file__).parent / "smollm2_ids.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.slow


def test_ids_are_pinned(reader):
    """Pinned from llama.cpp: prose, code with runs of blanks and tabs, tables of digits, several newlines."""
    tokens = AutoTokenizer.from_pretrained(reader).backend_tokenizer
    for text, ids in IDS.items():
        assert tokens.encode(text, add_special_tokens=False).ids == ids, text


def test_documents_begin_with_the_marker_between_texts(reader):
    recipe = json.loads((reader / "lectern.json").read_text(encoding="utf-8"))
    turns = Turns(AutoTokenizer.from_pretrained(reader), recipe["system_prompt"], recipe["document_start"])
    assert (turns.start_id, turns.end_id) == (0, 2)
    assert Turns(turns.tokenizer).start_id == 0  # found without a recipe too: the BOS marks turns
    ids = turns.question([{"role": "user", "content": "Who saw the sea?"}])
    assert ids[:2] == [1, 9690] and ids[-6:] == [2, 198, 1, 520, 9531, 198]
    assert {entry.dtype for entry in stored_weights(reader).values()} == {"BF16"}
