"""LoRA computed as one matrix product: W + s B A is put together once a pass, and no product of its own runs beside.

peft runs x A and (x A) B beside x W in every pass and adds them, and keeps all of it for the gradient. On a CPU that is
a fifth of a small model's time. Here forward is the plain product with the sum, backward gives x its gradient through
the sum, and A and B theirs by products of rank r alone: the same numbers, to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
