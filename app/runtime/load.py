"""From settings to an engine: everything is checked before anything big is allocated."""

import atexit
import gc
import logging
import os
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import torch

from app.models.stock import transformers
from app.errors import ModelError
from app.memory.pools import Tiers
from app.models import checkpoint, shipped
from app.models.adapter import check_adapter, check_base, read_adapter
from app.models.checkpoint import Recipe
from app.models.files import first_line
from app.models.folder import (
    adapter_files,
    find_folder,
    fingerprint,
    model_files,
    read_config,
    tokenizer_files,
    weight_files,
)
from app.models.weights import loaded_in
from app.models.weights import settle as keep_weights
from app.runtime import policies
from app.runtime.engine import Engine
from app.settings import Settings
from app.system import cpu_name, keep_freed_memory, memory_bytes

log = logging.getLogger(__name__)

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
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
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
    keep_freed_memory()
    device = checkpoint.pick_device(settings.device)
    dtype = loaded_in(settings.weights, device, checkpoint.pick_dtype(device))
    say("looking at its files")
    folder, recipe, tokenizer = check(settings)
    checkpoint.check_memory(folder, device, dtype, merging=settings.adapter is not None)
    torch.set_num_threads(settings.threads or default_threads())
    known = {} if known is None else known
    say("computing its fingerprint")
    if settings.adapter:
        from app.models import merge_check  # peft takes a second to import

        adapter = read_adapter(settings.adapter)
        check_base(adapter, folder, known)
        say("comparing the adapter with its merge")
        if note := merge_check.check_once(adapter, folder, recipe.rope, known):
            log.warning("%s: %s", adapter.folder, note)
    tensors = fingerprint(
        [*weight_files(folder), *(file for file in adapter_files(settings.adapter) if file.suffix != ".json")], known
    )
    weights = fingerprint(model_files(folder, settings.adapter), known)
    vocabulary = fingerprint(tokenizer_files(folder), known)
    say("loading its weights")
    model = checkpoint.load_model(folder, settings, device, dtype, recipe.rope)
    kept = keep_weights(model, settings.weights, known, f"weights-in:{weights[:16]}:{cpu_name().replace(' ', '-')} 0 0")
    return Engine(
        model,
        tokenizer,
        recipe,
        policy=policies.of(settings),
        name=settings.model_name or folder.name,
        weights=weights,
        weights_in=kept,
        tensors=tensors,
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


SHORT_TOKENS, LONG_TOKENS = 32, 256
SLOW_S = 1.0  # a model that takes so long for the short piece is measured by it
TEXT = "The lighthouse stood where the road ended, and nobody who came there by day had ever seen its lamp. "

atexit.register(gc.unfreeze)  # what is left at the end must be seen, or libraries complain of leaks


def settle() -> None:
    """Spare the model and all else that is there now the garbage collector's rounds: one takes a fifth of a second.

    Until `give_back`, what becomes garbage of it stays.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Free what nothing refers to any more, on the GPU too: a model is part of reference cycles."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def first_try(engine: Engine) -> None:
    """Let a freshly loaded model read a few lines: `engine.tokens_per_s` is known afterwards.

    Raises:
        ModelError: what it computes is not a number.
    """
    words = engine.text_tokenizer.encode(TEXT, add_special_tokens=False).ids
    bos = [engine.bos_id] if engine.bos_id is not None else []
    ids = (bos + words * -(-LONG_TOKENS // len(words)))[:LONG_TOKENS]
    for count in (SHORT_TOKENS, LONG_TOKENS):  # the first also takes what is slow only once
        began = time.monotonic()
        scores = engine.log_probs(ids[:count])
        elapsed_s = max(time.monotonic() - began, 1e-6)
        if not torch.isfinite(scores).all():
            raise ModelError(
                f"{engine.name}: computes values that are not numbers; its weights are damaged, copy or make it again"
            )
        engine.tokens_per_s = count / elapsed_s
        if elapsed_s > SLOW_S:
            return
