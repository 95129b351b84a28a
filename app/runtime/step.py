"""One token each of several answers through the layers of a Llama-like model, without what transformers does around.

A token of an answer takes some thirty small operations a layer; half of them, and most of the calls between, are not
needed where there is no mask, and windows that know their places. The weights are read once for all rows.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.weights import joined, many

LAYERS = {f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Qwen2", "Qwen3")}


class Attends(Protocol):
    """What takes the place of attention: `Windows`, or a cache that each token chooses from."""

    cache: Any

    def append(self, number: int, keys: Tensor, values: Tensor) -> None: ...

    def attend(self, number: int, q: Tensor, scale: float) -> Tensor: ...


class Rows:
    """Runs one token of each answer through a model.

    Attributes:
        known: whether the model's layers are; only then may what takes the place of attention be no cache's `held`.
    """

    def __init__(self, model: Any) -> None:
        self.model, layers = model, model.model.layers
        plain = all(type(layer).__name__ in LAYERS and isinstance(layer.mlp.act_fn, _silu()) for layer in layers)
        self.known = plain and model.dtype in (torch.float32, torch.bfloat16) and model.device.type == "cpu"
        if self.known:
            self._blocks, self._norm = [_Block(layer) for layer in layers], _Norm(model.model.norm)
            self._head = joined([model.lm_head])

    def __call__(self, tokens: Sequence[int], attends: Sequence[Attends]) -> Tensor:
        """Hidden states [B, H]; in float32 where the layers are known, whatever the weights are kept in."""
        if not self.known:
            return torch.cat(list(map(self._alone, tokens, attends)))
        x = self.model.model.embed_tokens(torch.tensor(tokens)).float()  # [B, H]
        for number, block in enumerate(self._blocks):
            x = block(x, number, attends)
        return self._norm(x)

    def segment(self, tokens: Sequence[int], attends: Attends) -> Tensor:
        """Hidden states [T, H] of successive tokens of one text, as their layers multiply many rows."""
        x = self.model.model.embed_tokens(torch.tensor(tokens)).float()
        for number, block in enumerate(self._blocks):
            x = block.segment(x, number, attends)
        return self._norm(x).to(self.model.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states [B, H] that this made: [B, V]."""
        return self._head(hidden) if self.known else self.model.lm_head(hidden)

    def _alone(self, token: int, windows: Attends) -> Tensor:
        """The hidden state of one answer, by a model whose layers are not known."""
        ids = torch.tensor([[token]], device=self.model.device)
        return self.model.model(input_ids=ids, past_key_values=windows.cache, use_cache=True).last_hidden_state[0]


def _silu() -> tuple[type, ...]:
    from transformers.activations import ACT2FN

    return nn.SiLU, type(ACT2FN["silu"])


class _Norm:
    """RMSNorm of a few rows, in half as many operations as PyTorch's own makes of it."""

    def __init__(self, norm: Any) -> None:
        width = norm.weight.numel()
        self.weight, self.least = norm.weight.float() * width**0.5, torch.tensor((norm.variance_epsilon * width) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.least) * self.weight


class _Block:
    """One decoder layer; what it calls is looked up once."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.dim, self.scale = attention.head_dim, attention.scaling
        groups = [
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        ]
        self.qkv, self.out, self.gate_up, self.down = map(joined, groups)
        self.many_qkv, self.many_out, self.many_gate_up, self.many_down = map(many, groups)
        self.dtype = layer.input_layernorm.weight.dtype
        self.widths = [p.out_features for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.middle = mlp.gate_proj.out_features

    def __call__(self, x: Tensor, number: int, attends: Sequence[Attends]) -> Tensor:
        parts = self.qkv(self.before(x)).float().split(self.widths, dim=-1)
        q, k, v = (part.view(len(x), -1, 1, self.dim) for part in parts)  # [B, heads, 1, D]
        q, k = (part if norm is None else norm(part) for norm, part in zip(self.norms, (q, k), strict=True))
        found = []
        for row, windows in enumerate(attends):
            windows.append(number, k[row], v[row])
            found.append(windows.attend(number, q[row], self.scale).view(1, -1))
        x = x + self.out(found[0] if len(found) == 1 else torch.cat(found))
        gate, up = self.gate_up(self.between(x)).split(self.middle, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def segment(self, x: Tensor, number: int, attends: Attends) -> Tensor:
        """The layer of successive tokens of one text, [T, H] float32, which is changed."""
        parts = self.many_qkv(self.before(x).to(self.dtype)).split(self.widths, dim=-1)
        q, k, v = (part.unflatten(1, (-1, self.dim)).transpose(0, 1) for part in parts)  # [heads, T, D]
        q, k = (part if norm is None else norm(part) for norm, part in zip(self.norms, (q, k), strict=True))
        attends.append(number, k, v)
        x += self.many_out(attends.attend(number, q, self.scale).transpose(0, 1).flatten(1))
        gate, up = self.many_gate_up(self.between(x).to(self.dtype)).split(self.middle, dim=-1)
        x += self.many_down(F.silu(gate).mul_(up))
        return x
