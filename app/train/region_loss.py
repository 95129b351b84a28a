"""A loss that makes region summaries find what attention wants.

Hard selection has no gradient. So the region scores of MSA-1 are trained beside the language model: for queries that
must look back, cross entropy from the attention mass that each far region received, computed densely, to the softmax
of the region scores. Regions of earlier texts stand in as further candidates, so that a score learned among 32 regions
also holds among thousands. No parameter is added and the checkpoint stays plain.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from app.kernels.regions import sub_means
from app.kernels.rope import rope_table, rotate
from app.runtime.engine import IdentityRotary

NAME = "lectern_region_loss"


@dataclass
class RegionProbe:
    """What the attention layers of a model in training share.

    Attributes:
        region_tokens, key_sub: as in AttentionConfig.
        bank_regions: regions of earlier texts that each layer keeps as further candidates.
        rows: [B, P] places of the probed queries in the current step; None when nothing is probed.
        losses: one scalar of each layer, filled by the forward pass.
    """

    inv_freq: Tensor
    region_tokens: int = 64
    key_sub: int = 4
    bank_regions: int = 1024
    kept_per_text: int = 16
    rows: Tensor | None = None
    losses: list[Tensor] = field(default_factory=list)
    bank: dict[int, Tensor] = field(default_factory=dict)
    table: tuple[Tensor, Tensor] | None = None


def install(model, probe: RegionProbe) -> None:
    """Put the probe into a model: its own attention function, rotary embedding applied inside it."""
    AttentionInterface.register(NAME, probed_attention)
    model.set_attn_implementation(NAME)
    model.model.rotary_emb = IdentityRotary()
    for layer in model.model.layers:
        layer.self_attn.region_probe = probe


def uninstall(model) -> None:
    """Take our attention out again: the model is as transformers makes it."""
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)
    model.set_attn_implementation("sdpa")
    for layer in model.model.layers:
        vars(layer.self_attn).pop("region_probe", None)
        vars(layer.self_attn).pop("lectern", None)


def probed_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Causal dense attention, [B, Hq, T, D] in and ([B, T, Hq, D], None) out, and the layer's region loss."""
    probe: RegionProbe = module.region_probe
    tokens = query.shape[2]
    if probe.table is None or len(probe.table[0]) < tokens or probe.table[0].dtype != query.dtype:
        probe.table = rope_table(probe.inv_freq.to(query.device), tokens, 1.0, query.dtype)
    cos, sin = (x[:tokens] for x in probe.table)
    q, k = rotate(query, cos, sin), rotate(key, cos, sin)
    out = F.scaled_dot_product_attention(q, k, value, is_causal=True, scale=scaling, enable_gqa=True)
    if probe.rows is not None:
        bank = probe.bank.get(module.layer_idx)
        with torch.no_grad():
            rows = probe.rows[:, None, :, None]
            picked = q.gather(2, rows.expand(-1, q.shape[1], -1, q.shape[3]))
            mass = region_mass(picked, k, probe.rows, probe.region_tokens, scaling)
        raw = query.gather(2, rows.expand(-1, q.shape[1], -1, q.shape[3]))
        fine = sub_means(key, probe.key_sub).unflatten(2, (-1, probe.region_tokens // probe.key_sub))
        probe.losses.append(region_loss(raw * scaling, fine, mass, bank))
        _remember(probe, module.layer_idx, fine.detach())
    return out.transpose(1, 2), None


def region_mass(queries: Tensor, keys: Tensor, rows: Tensor, region_tokens: int, scale: float) -> Tensor:
    """Share of its attention that each query gives to each far region: not the first, its own, or the one before.

    Args:
        queries: [B, Hq, P, D] rotated; `rows` [B, P] their places.
        keys: [B, Hkv, T, D] rotated, T a multiple of `region_tokens`.

    Returns:
        [B, Hq, P, R], float32; zero in the regions that are always attended.
    """
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    logits = (queries @ keys.transpose(-1, -2)).float() * scale
    places = torch.arange(keys.shape[2], device=keys.device)
    logits = logits.masked_fill(places > rows[:, None, :, None], float("-inf"))
    mass = logits.softmax(-1).unflatten(-1, (-1, region_tokens)).sum(-1)
    regions = torch.arange(mass.shape[-1], device=keys.device)
    far = (regions >= 1) & (regions < (rows // region_tokens - 1)[:, None, :, None])
    return mass * far


def region_loss(queries: Tensor, fine: Tensor, mass: Tensor, bank: Tensor | None) -> Tensor:
    """Cross entropy from attention mass to region scores, weighted by the mass that went far.

    Args:
        queries: [B, Hq, P, D] raw, scaled.
        fine: [B, Hkv, R, F, D] key means of the texts' regions.
        mass: [B, Hq, P, R] as `region_mass` gives it.
        bank: [Hkv, N, F, D] key means of other texts' regions, or None.

    Returns:
        Scalar: nats, mean over queries and heads; those that look nowhere far count as zero.
    """
    kv_heads, heads = fine.shape[1], queries.shape[1] // fine.shape[1]
    folded = queries.unflatten(1, (kv_heads, heads)).flatten(2, 3)  # [B, Hkv, heads * P, D]
    scores = (folded @ fine.flatten(2, 3).transpose(-1, -2)).unflatten(-1, fine.shape[2:4]).amax(-1).float()
    target = mass.unflatten(1, (kv_heads, heads)).flatten(2, 3)  # [B, Hkv, heads * P, R]
    total = target.sum(-1)
    parts = [scores]
    if bank is not None:
        others = folded @ bank.flatten(1, 2).transpose(-1, -2).to(folded.dtype)
        parts.append(others.unflatten(-1, bank.shape[1:3]).amax(-1).float())
    logs = torch.cat(parts, dim=-1).log_softmax(-1)[..., : scores.shape[-1]]
    return -(target * logs).sum() / total.numel()


def _remember(probe: RegionProbe, layer: int, fine: Tensor) -> None:
    """Keep some regions of these texts as candidates for the next steps. fine: [B, Hkv, R, F, D]."""
    chosen = torch.randperm(fine.shape[2], device=fine.device)[: probe.kept_per_text]
    new = fine[:, :, chosen].transpose(0, 1).flatten(1, 2).to(torch.bfloat16)  # [Hkv, N, F, D]
    old = probe.bank.get(layer)
    probe.bank[layer] = new if old is None else torch.cat([new, old], dim=1)[:, : probe.bank_regions]
