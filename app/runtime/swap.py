"""What an exchange of the loaded model needs: memory given back, and a first try of the new one."""

import atexit
import gc
import time

import torch

from app.errors import ModelError
from app.runtime.engine import Engine

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
