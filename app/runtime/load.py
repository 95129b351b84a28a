"""From settings to an engine: everything is checked before anything big is allocated."""

import os
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from app.errors import ModelError
from app.memory.pools import Tiers
from app.models import checkpoint, shipped
from app.models.adapter import check_adapter, check_base, read_adapter
from app.models.checkpoint import Recipe
from app.models.folder import find_folder, fingerprint, first_line, model_files, read_config, tokenizer_files
from app.runtime import policies
from app.runtime.engine import Engine
from app.settings import Settings
from app.system import memory_bytes

HOST_SHARE = 4  # keys and values may fill a quarter of the computer's memory,
DEVICE_SHARE = 2  # and half of what the model leaves free on the GPU


def default_threads() -> int:
    """Half the cores: a second thread on a busy two-core machine costs more than it gives."""
    return max(1, (os.cpu_count() or 1) // 2)


def check(settings: Settings) -> tuple[Path, Recipe, Any]:
    """Look at everything that `settings` names before any weight is loaded.

    Returns:
        (folder, recipe, tokenizer).

    Raises:
        ModelError, ConfigError: what is wrong and what to do.
    """
    folder = find_folder(shipped.found(settings), download=settings.download, room=settings.folder)
    recipe = checkpoint.read_recipe(folder, read_config(folder), settings)
    if settings.adapter:
        check_adapter(settings.adapter, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exceptions for a damaged file
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: needs a tokenizer.json; convert the tokenizer to the fast format")
    return folder, recipe, tokenizer


def load_engine(
    settings: Settings, known: MutableMapping[str, str] | None = None, on_step: Callable[[str], None] | None = None
) -> Engine:
    """Check, load and join everything that `settings` names.

    Args:
        known: fingerprints already computed, see `folder.fingerprint`.
        on_step: told in words what begins.

    Raises:
        ModelError, ConfigError: what is wrong and what to do, before anything big is allocated.
    """
    say = on_step or (lambda step: None)
    device = checkpoint.pick_device(settings.device)
    dtype = checkpoint.pick_dtype(device)
    say("looking at its files")
    folder, recipe, tokenizer = check(settings)
    checkpoint.check_memory(folder, device, dtype, merging=settings.adapter is not None)
    torch.set_num_threads(settings.threads or default_threads())
    known = {} if known is None else known
    say("computing its fingerprint")
    if settings.adapter:
        check_base(read_adapter(settings.adapter), folder, known)
    weights = fingerprint(model_files(folder, settings.adapter), known)
    vocabulary = fingerprint(tokenizer_files(folder), known)
    say("loading its weights")
    model = checkpoint.load_model(folder, settings, device, dtype, recipe.rope)
    return Engine(
        model,
        tokenizer,
        recipe,
        policy=policies.of(settings),
        name=settings.model_name or folder.name,
        weights=weights,
        vocabulary=vocabulary,
        codec=settings.kv_codec,
        tiers=_tiers(settings, device),
    )


def _tiers(settings: Settings, device: torch.device) -> Tiers:
    """Room for keys and values, derived where the settings do not say: the model is loaded already."""
    host = memory_bytes() // HOST_SHARE if settings.host_budget_gb is None else int(settings.host_budget_gb * 1e9)
    if settings.device_budget_gb is not None:
        return Tiers(int(settings.device_budget_gb * 1e9), host)
    return Tiers(torch.cuda.mem_get_info(device)[0] // DEVICE_SHARE if device.type == "cuda" else None, host)
