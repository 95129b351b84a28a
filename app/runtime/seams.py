"""How region attention gets into a model: through the public seams of transformers; its own code stays as it is."""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from app.runtime import attention
from app.runtime.spec import AttentionSpec


class IdentityRotary(nn.Module):
    """Stands in for the model's rotary embedding and leaves queries and keys un-rotated."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones((*position_ids.shape, 1), dtype=x.dtype, device=x.device)
        return one, torch.zeros_like(one)


def install(model, spec: AttentionSpec) -> None:
    """Put region attention into a model through its public seams: attention and mask by name, and rotary module."""
    AttentionInterface.register(attention.NAME, attention.lectern_attention)
    AttentionMaskInterface.register(attention.NAME, attention.refuse_padding)
    model.set_attn_implementation(attention.NAME)
    model.model.rotary_emb = IdentityRotary()
    for layer in model.model.layers:
        layer.self_attn.lectern = spec
