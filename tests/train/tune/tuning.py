"""A tuning run of a moment: the tiny model, random bytes of which some repeat, a few steps."""

import torch
from torch import Tensor

from app.train.tune.recipe import LoraRecipe, TuningRecipe, TuneConfig


def batches(step: int, rows: int, tokens: int = 64) -> dict[str, Tensor]:
    """Rows of bytes, each the same whoever asks: two documents to a row, the second one a run again and again."""
    ids = []
    for row in range(rows):
        generator = torch.Generator().manual_seed(1000 * step + row)
        first = torch.randint(6, 262, (tokens // 4,), generator=generator)
        run = torch.randint(6, 262, (8,), generator=generator).repeat(tokens)[: tokens - len(first)]
        ids.append(torch.cat([first, run]))
    documents = (torch.arange(tokens) >= tokens // 4).long().expand(rows, -1)
    return {"input_ids": torch.stack(ids), "weights": torch.ones(rows, tokens), "documents": documents}


def recipe(lora: LoraRecipe | None = None, *, tables: dict | None = None, **tune) -> TuningRecipe:
    """A recipe for the tiny model: float32, learning fast."""
    values = {"base": "tiny", "tokens": 64, "steps": 4, "attention": "full", "batch": 2, "learning_rate": 1e-2}
    values |= {"warmup_steps": 1, "save_steps": 2, "dtype": "float32", "checkpointing": False}
    return TuningRecipe(TuneConfig(**{**values, **tune}), lora or LoraRecipe("ko", rank=4), **(tables or {}))
