"""Tiny checkpoints on the disk, for tests that load one and exchange it for another."""

import json
from pathlib import Path

from tests import tiny


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    """The random model of tests/tiny.py as it would lie on a user's disk."""
    tiny.model(seed).save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    kept = ("budget_tokens", "region_tokens", "merge", "query_sub", "key_sub", "coarse_sub")
    attention = {name: getattr(tiny.SMALL, name) for name in kept}
    recipe = {"format": 1, "trained_tokens": tiny.SMALL.budget_tokens, "attention": attention}
    (folder / "lectern.json").write_text(json.dumps(recipe), encoding="utf-8")
    return folder
