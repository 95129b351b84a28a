"""The checkpoint that a tuning run starts from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.errors import ModelError
from app.models import checkpoint
from app.models.folder import find_folder, fingerprint, read_config, weight_files
from app.settings import Settings


@dataclass(frozen=True)
class Base:
    """A checkpoint folder, looked at but not loaded.

    Attributes:
        config: config.json.
        recipe: lectern.json; {} without one.
    """

    folder: Path
    config: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def trained_tokens(self) -> int:
        return self.recipe.get("trained_tokens") or self.config.get("max_position_embeddings", 2048)

    @property
    def told_before(self) -> dict[str, Any]:
        """What chats and documents begin with, as the app reads the base."""
        return checkpoint.told_before(self.recipe)

    def fingerprint(self) -> str:
        """SHA-256 over the files of weights: what an adapter belongs to."""
        return fingerprint(weight_files(self.folder), {})

    def load(self, dtype: torch.dtype) -> nn.Module:
        """The model on the CPU.

        Raises:
            ModelError: weights do not belong to the config.
        """
        return checkpoint.load_model(self.folder, Settings(model=str(self.folder)), torch.device("cpu"), dtype)


def read_base(base: str) -> Base:
    """Look at the checkpoint that a recipe names.

    Raises:
        ModelError: it is missing, incomplete or not supported.
    """
    try:
        folder = find_folder(base, download=False)
    except ModelError as error:
        raise ModelError(str(error).replace("--model", "[tune] base =", 1)) from error
    config, path = read_config(folder), folder / "lectern.json"
    return Base(folder, config, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
