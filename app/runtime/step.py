"""One token through the layers of a Llama-like model, without what transformers does around each of them.

A token of an answer takes some thirty small operations a layer; half of them, and most of the calls between, are not
needed where there is one row, no mask, and windows that know their places.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.weights import joined

LAYERS = {f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Qwen2", "Qwen3")}


class Attends(Protocol):
    """What takes the place of attention: `Windows`."""

    def append(self, number: int, keys: Tensor, values: Tensor) -> None: ...

    def attend(self, number: int, q: Tensor, scale: float) -> Tensor: ...


def one_row(model: Any) -> Callable[[int, Attends], Tensor] | None:
    """A function that runs one token and gives its hidden state [H]; None for models whose layers are not known."""
    layers = model.model.layers
    plain = all(type(layer).__name__ in LAYERS and isinstance(layer.mlp.act_fn, _silu()) for layer in layers)
    if not plain or model.dtype != torch.float32 or model.device.type != "cpu":
        return None
    blocks = [_Block(layer) for layer in layers]
    embed, norm = model.model.embed_tokens, _Norm(model.model.norm)

    def run(token: int, attends: Attends) -> Tensor:
        x = embed(torch.tensor([token]))  # [1, H]
        for number, block in enumerate(blocks):
            x = block(x, number, attends)
        return norm(x)[0]

    return run


def _silu() -> tuple[type, ...]:
    from transformers.activations import ACT2FN

    return nn.SiLU, type(ACT2FN["silu"])


class _Norm:
    """RMSNorm of one row, in half as many operations as PyTorch's own makes of it."""

    def __init__(self, norm: Any) -> None:
        width = norm.weight.numel()
        self.weight, self.least = norm.weight * width**0.5, torch.tensor((norm.variance_epsilon * width) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return x / torch.hypot(torch.linalg.vector_norm(x), self.least) * self.weight


class _Block:
    """One decoder layer; what it calls is looked up once."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.dim, self.scale = attention.head_dim, attention.scaling
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.widths = [p.out_features for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.out, self.gate_up, self.down = attention.o_proj, joined([mlp.gate_proj, mlp.up_proj]), mlp.down_proj
        self.middle = mlp.gate_proj.out_features

    def __call__(self, x: Tensor, number: int, attends: Attends) -> Tensor:
        q, k, v = (part.view(-1, 1, self.dim) for part in self.qkv(self.before(x)).split(self.widths, dim=-1))
        q, k = (part if norm is None else norm(part) for norm, part in zip(self.norms, (q, k), strict=True))
        attends.append(number, k, v)
        x = x + self.out(attends.attend(number, q, self.scale).view(1, -1))
        gate, up = self.gate_up(self.between(x)).split(self.middle, dim=-1)
        return x + self.down(F.silu(gate) * up)
