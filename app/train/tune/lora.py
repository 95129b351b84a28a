"""Which weights learn: LoRA on chosen projections, embeddings, norms or token rows, through peft.

LoRA alone does not carry a model to long texts; LoRA with embeddings and norms nearly equals full tuning
(LongLoRA's table 2: perplexity 11.44, 8.12 and 8.08 at 32K).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from app.errors import ConfigError, InputError
from app.train.tune.recipe import LoraRecipe

# Ends of module names. `norm` alone would also take the norms of queries and keys of Qwen3.
NORMS = ("input_layernorm", "post_attention_layernorm", "model.norm")
EMBEDDINGS = "embed_tokens"
STAND_IN = "k_proj"
ADAPTER_FILES = ("adapter_model.safetensors", "model.safetensors")


def peft_config(recipe: LoraRecipe, *, tied: bool, layers: int = 0, base: str = "") -> LoraConfig:
    """The peft configuration of a recipe.

    Args:
        tied: output embeddings are the input embeddings; they stay so.
        layers: how many the model has; needed with `first_layer`.
        base: folder or id of the checkpoint, for `adapter_config.json`.
    """
    saved = [*([EMBEDDINGS] if recipe.embeddings else []), *(NORMS if recipe.norms else [])]
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=recipe.rank if recipe.modules else 1,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        layers_to_transform=list(range(recipe.first_layer, layers)) if recipe.first_layer else None,
        target_modules=list(recipe.modules) or [STAND_IN],  # peft takes no empty list; see `add_adapter`
        modules_to_save=saved or None,
        trainable_token_indices={EMBEDDINGS: list(recipe.token_rows)} if recipe.token_rows else None,
        ensure_weight_tying=tied and recipe.embeddings,
    )


def add_adapter(model: nn.Module, recipe: LoraRecipe, base: str = "") -> nn.Module:
    """Make a causal model learn what the recipe names. Everything that learns is float32.

    Returns:
        A PeftModel; the model itself, all of it learning, with `full`.

    Raises:
        ConfigError: a token row that the vocabulary does not have.
    """
    size = model.get_input_embeddings().weight.shape[0]
    wrong = [row for row in recipe.token_rows if not 0 <= row < size]
    if wrong:
        raise ConfigError(f"[lora] token_rows: {wrong[0]} is not among the {size} tokens of the vocabulary")
    if recipe.full:
        return model.float().requires_grad_(True)
    tied, layers = bool(model.config.tie_word_embeddings), model.config.num_hidden_layers
    if recipe.first_layer >= layers:
        raise ConfigError(f"[lora] first_layer = {recipe.first_layer}: the model has {layers} layers; make it smaller")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice about embeddings, which is followed already
        adapted = get_peft_model(model, peft_config(recipe, tied=tied, layers=layers, base=base))
    for name, parameter in adapted.named_parameters():
        if not recipe.modules and ".lora_" in name:
            parameter.requires_grad_(False)  # the stand-in: its product is zero and stays zero
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return adapted


def start_from(model: nn.Module, folder: Path) -> None:
    """Give what learns the values of an adapter, or of a checkpoint of the run that made it.

    Raises:
        ConfigError: it holds other weights than those that learn here.
        InputError: it cannot be read.
    """
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).exists()), folder / ADAPTER_FILES[0])
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as an adapter ({error}); check [tune] start") from error
    wanted = {_plain(name): parameter for name, parameter in trained_parameters(model).items()}
    found = {_plain(name): tensor for name, tensor in stored.items()}
    if {name: tensor.shape for name, tensor in found.items()} != {name: p.shape for name, p in wanted.items()}:
        raise ConfigError(
            f"[tune] start = {folder}: holds other weights than [lora] names; take the same targets and rank"
        )
    for name, parameter in wanted.items():
        parameter.data.copy_(found[name])


def _plain(name: str) -> str:
    """A weight's name as adapters and checkpoints of runs both have it."""
    return name.removeprefix("model.").removeprefix("base_model.model.").replace(".default.", ".")


def causal_model(model: nn.Module) -> nn.Module:
    """The model under an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns, by name; tied weights once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        merged = torch.addmm(weight, b, a, alpha=scale)
        ctx.save_for_backward(x, merged, a, b)
        ctx.scale = scale
        return F.linear(x, merged)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, merged, a, b = ctx.saved_tensors
        rows, grads = x.flatten(0, -2), grad.flatten(0, -2)
        through = (grads @ merged).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_b = ctx.scale * ((rows @ a.t()).t() @ grads).t()
        grad_a = ctx.scale * ((grads @ b).t() @ rows)
        return through, None, grad_a, grad_b, None


def _forward(layer: LoraLinear) -> Any:
    (name,) = layer.active_adapters

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        return _Merged.apply(x, layer.base_layer.weight, a, b, layer.scaling[name])

    return forward


def _mergeable(layer: nn.Module) -> bool:
    return (
        isinstance(layer, LoraLinear)
        and type(layer.base_layer) is nn.Linear
        and layer.base_layer.bias is None
        and len(layer.active_adapters) == 1
        and isinstance(layer.lora_dropout[layer.active_adapters[0]], nn.Identity)
        and layer.base_layer.weight.dtype == layer.lora_A[layer.active_adapters[0]].weight.dtype
    )


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[int]:
    """Let the LoRA layers of a model run as one product each; yields how many do. Those with dropout, biases or weights
    of another dtype stay as peft runs them."""
    layers = [layer for layer in model.modules() if _mergeable(layer)]
    for layer in layers:
        layer.forward = _forward(layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward
