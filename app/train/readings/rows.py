"""The rows of a tuning run over readings: one of about `tokens` tokens for each step, of no two lengths alike."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from app.errors import ConfigError, InputError
from app.models.turns import Turns
from app.train.reading_layout import ChatPieces, as_row
from app.train.readings.material import Material, material
from app.train.readings.mixture import KINDS, Limits, Mixture
from app.train.tune.recipe import TuningRecipe

log = logging.getLogger(__name__)


class ReadingRows:
    """Batches of a tuning run (app/train/passes.py), each a row of readings."""

    def __init__(self, recipe: TuningRecipe, found: Material, chat: ChatPieces) -> None:
        config = recipe.readings
        self.recipe, self.late = recipe, config.late_shares or config.shares
        limits = Limits(absent=config.absent, unanswerable=config.unanswerable, context=config.context)
        self.early_mix = Mixture(found, chat, config.seed, limits)
        self.late_mix = Mixture(found, chat, config.seed, replace(limits, context=config.late_context))
        self.sources = self.early_mix.sources

    def __call__(self, step: int, rows: int) -> dict[str, Tensor]:
        tune, config = self.recipe.tune, self.recipe.readings
        late = step >= config.late_from * tune.steps
        mix, shares = (self.late_mix, self.late) if late else (self.early_mix, config.shares)
        return as_row(mix.row(step, rows * tune.tokens, shares))


def rows_of(recipe: TuningRecipe, tokenizer: Any, data: Path, told_before: Mapping[str, Any]) -> ReadingRows:
    """What a recipe's [readings] draws from a data folder.

    Args:
        told_before: how a document begins and the system line, see `checkpoint.told_before`.

    Raises:
        ConfigError: kinds that are not known; settings that rows of readings do not have.
        InputError: the data folder lacks something.
    """
    config, tune = recipe.readings, recipe.tune
    wrong = sorted({*config.shares, *config.late_shares} - set(KINDS))
    if wrong or not config.shares:
        raise ConfigError(f"[readings] shares: {', '.join(wrong) or 'none'}; give some of {', '.join(KINDS)}")
    if tune.attention != "full" or tune.batch * tune.accumulation != 1:
        raise ConfigError("[readings]: needs attention = 'full', batch = 1 and accumulation = 1; tokens is the row")
    if not (data / "books" / "index.tsv").exists():
        raise InputError(f"{data}: no books/index.tsv there; give the data folder with --data")
    chat = ChatPieces(Turns(tokenizer, **told_before))
    log.info("reading the question sets, books and code of %s", data.name)
    return ReadingRows(recipe, material(data), chat)
