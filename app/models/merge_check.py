"""Is a merged checkpoint the model that was trained? Its logits against those of the adapter, loaded by peft."""

import gc
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from app.errors import ModelError
from app.models.adapter import TRAINABLE_FILE, Adapter, base_name
from app.models.folder import stored_weights
from app.models.merging import load_stock, read_tensors
from app.system import size_text

PROMPTS, FEWEST_PROMPTS, PROMPT_TOKENS, KEPT_TOKENS = 32, 2, 64, 16
WORK = 2_000_000_000  # prompts times parameters: three passes take a minute or two on one core
AT_ONCE = 4
TOLERANCE = 1e-3  # of the largest logit
ROOM = 1.5  # of the weights in float32: what peft and a forward pass take beside them


@dataclass(frozen=True)
class Check:
    """A merged checkpoint beside its adapter, both computed in float32.

    Attributes:
        difference: largest difference of logits to peft's own merge cast to the same dtype, as a share of the largest
            logit.
        rounding: the same to the adapter before merging: what the dtype costs.
        same_tokens: share of places whose likeliest token the adapter before merging gives too.
    """

    prompts: int
    difference: float
    rounding: float
    same_tokens: float


def compare(
    adapter: Adapter, base: Path, merged: Path, rope: dict[str, Any] | None, dtype: torch.dtype
) -> tuple[Check | None, str]:
    """Compare logits on prompts of random tokens.

    Args:
        rope: `rope_parameters` of the merged model, where they are not the base's.
        dtype: of the merged weights.

    Returns:
        (check, ""), or (None, why) where memory does not suffice.

    Raises:
        ModelError: the merged model is another.
    """
    transformers_logging.disable_progress_bar()
    stored = stored_weights(merged)
    count = sum(math.prod(entry.shape) for entry in stored.values())
    need, free = int(ROOM * 4 * count), psutil.virtual_memory().available
    if need > free:
        return None, f"not compared with the adapter's model: that takes {size_text(need)}, {size_text(free)} are free"
    rows = stored["model.embed_tokens.weight"].shape[0]
    generator = torch.Generator().manual_seed(0)
    many = max(FEWEST_PROMPTS, min(PROMPTS, WORK // count))
    prompts = torch.randint(rows, (many, PROMPT_TOKENS), generator=generator)
    prompts[0, 0] = rows - 1  # where the vocabulary grew, what is new is seen
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice about tied weights
        trained = _adapter_model(adapter, base, rope, rows)
        before = _logits(trained, prompts)
        same = _cast(trained.merge_and_unload(), dtype)
    expected = _logits(same, prompts)
    del trained, same
    gc.collect()
    found = _logits(load_stock(merged, torch.float32), prompts)
    scale = float(expected.abs().max())
    check = Check(
        prompts=len(prompts),
        difference=float((found - expected).abs().max()) / scale,
        rounding=float((found - before).abs().max()) / scale,
        same_tokens=float((found.argmax(-1) == before.argmax(-1)).float().mean()),
    )
    if not check.difference <= TOLERANCE:  # nan too
        raise ModelError(
            f"{adapter.folder}: the merged model's logits differ from the adapter's by {check.difference:.2%} of the "
            "largest, so nothing was written; the adapter holds something that peft applies and `merge` does not know"
        )
    return check, ""


def _adapter_model(adapter: Adapter, base: Path, rope: dict[str, Any] | None, rows: int) -> PeftModel:
    """Base and adapter side by side, as peft puts them together, in float32."""
    changes = {"rope_parameters": rope} if rope else {}
    model = load_stock(base, torch.float32, **changes)
    before = model.get_input_embeddings().weight.shape[0]
    if rows > before:
        model.resize_token_embeddings(rows, mean_resizing=False)
        head = model.get_output_embeddings().weight.data
        head[before:] = head[:before].mean(0)
    if adapter.is_longlora:
        tensors = dict(read_tensors(adapter.folder / TRAINABLE_FILE))
        named = {name: tensor for stored, tensor in tensors.items() if (name := base_name(stored))}
        model.load_state_dict(named, strict=False)
    return PeftModel.from_pretrained(model, adapter.folder).eval()


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights rounded to a dtype, held in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model


@torch.inference_mode()
def _logits(model: nn.Module, prompts: Tensor) -> Tensor:
    """[prompts, KEPT_TOKENS, V] of the last tokens, float32."""
    model.eval()
    return torch.cat([model(part, logits_to_keep=KEPT_TOKENS).logits.float() for part in prompts.split(AT_ONCE)])
