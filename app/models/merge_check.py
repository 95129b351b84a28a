"""Is a merged checkpoint the model that was trained? Its logits against those of the adapter, run by peft unmerged.

peft's own merge is no measure: it adds what was trained on tied embeddings twice, and mixes rows of the two.
"""

import gc
import math
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn

from app.models.stock import transformers
from app.errors import ModelError
from app.models.adapter import TRAINABLE_FILE, Adapter, base_name
from app.models.folder import fingerprint, stored_weights, weight_files
from app.models.merging import load_stock, merge_into, read_tensors
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
        difference: largest difference of logits as a share of the largest one: of the merge in float32 to the adapter,
            or of what was written to that merge cast to its dtype, whichever is larger.
        rounding: of what was written to the adapter: what the dtype costs.
        same_tokens: share of places whose likeliest token the adapter gives too.
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
    transformers.utils.logging.disable_progress_bar()
    stored = stored_weights(merged)
    count = sum(math.prod(entry.shape) for entry in stored.values())
    need, free = int(ROOM * 4 * count), psutil.virtual_memory().available
    if need > free:
        return None, f"not compared with the adapter's model: that takes {size_text(need)}, {size_text(free)} are free"
    prompts = _prompts(stored["model.embed_tokens.weight"].shape[0], count)
    before = _trained_logits(adapter, base, rope, prompts)
    ours = _merged(adapter, base, rope)
    exact = _logits(ours, prompts)
    expected = _logits(_cast(ours, dtype), prompts)
    del ours
    gc.collect()
    found = _logits(load_stock(merged, torch.float32), prompts)
    check = Check(
        prompts=len(prompts),
        difference=max(_apart(exact, before), _apart(found, expected)),
        rounding=_apart(found, before),
        same_tokens=float((found.argmax(-1) == before.argmax(-1)).float().mean()),
    )
    if not check.difference <= TOLERANCE:  # nan too
        raise ModelError(
            f"{adapter.folder}: the merged model's logits differ from the adapter's by {check.difference:.2%} of the "
            "largest, so nothing was written; the adapter holds something that peft applies and `merge` does not know"
        )
    return check, ""


def check_once(adapter: Adapter, base: Path, rope: dict[str, Any] | None, known: MutableMapping[str, str]) -> str:
    """Compare an adapter with its merge before it is loaded, once for each adapter and base.

    Args:
        known: see `folder.fingerprint`; what was compared is noted there.

    Returns:
        why it was not compared, where memory does not suffice; else "".

    Raises:
        ModelError: merged here it is another model.
    """
    parts = [fingerprint(paths, known)[:16] for paths in (list(adapter.files), weight_files(base))]
    key = f"{'-'.join(parts)} merged 1"
    if known.get(key) == str(rope):
        return ""
    stored = stored_weights(base)
    count = sum(math.prod(entry.shape) for entry in stored.values())
    need, free = int(ROOM * 4 * count), psutil.virtual_memory().available
    if need > free:
        return f"not compared with its merge: that takes {size_text(need)}, {size_text(free)} are free"
    prompts = _prompts(adapter.rows or stored["model.embed_tokens.weight"].shape[0], count, most=FEWEST_PROMPTS)
    before = _trained_logits(adapter, base, rope, prompts)
    apart = _apart(_logits(_merged(adapter, base, rope), prompts), before)
    if not apart <= TOLERANCE:  # nan too
        raise ModelError(
            f"{adapter.folder}: merged here its logits differ from the adapter's by {apart:.2%} of the largest, so it "
            "is not loaded; it holds something that peft applies and Lectern does not know: merge it with peft"
        )
    known[key] = str(rope)
    return ""


def _prompts(rows: int, count: int, most: int = PROMPTS) -> Tensor:
    """[N, T] random tokens; fewer for larger models."""
    many = max(FEWEST_PROMPTS, min(most, WORK // count))
    prompts = torch.randint(rows, (many, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    prompts[0, 0] = rows - 1  # where the vocabulary grew, what is new is seen
    return prompts


def _trained_logits(adapter: Adapter, base: Path, rope: dict[str, Any] | None, prompts: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice about tied weights
        trained = _adapter_model(adapter, base, rope, int(prompts[0, 0]) + 1)
    before = _logits(trained, prompts)
    del trained
    gc.collect()
    return before


def _merged(adapter: Adapter, base: Path, rope: dict[str, Any] | None) -> nn.Module:
    """Base and adapter as Lectern merges them, in float32."""
    model = load_stock(base, torch.float32, **({"rope_parameters": rope} if rope else {}))
    merge_into(model, adapter, torch.float32)
    return model


def _apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest value wanted."""
    return float((found - wanted).abs().max()) / float(wanted.abs().max())


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
