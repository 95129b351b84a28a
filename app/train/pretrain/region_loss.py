"""A loss that makes region summaries find what attention wants.

Hard selection has no gradient. So the region scores of MSA-1 are trained beside the language model: for queries that
must look back, cross entropy from the attention mass that each far region received, computed densely, to the softmax
of the region scores. Regions of earlier texts stand in as further candidates, so that a score learned among 32 regions
also holds among thousands. No parameter is added and the checkpoint stays plain.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.kernels.regions import sub_means

if TYPE_CHECKING:
    from app.train.reading_attention import ReadingAttention

LEAST_REGIONS = 4  # of a reading's text: with fewer everything is near


@dataclass
class RegionProbe:
    """What the attention layers of a model in training share.

    Attributes:
        region_tokens, key_sub: as in AttentionConfig.
        bank_regions: regions of earlier texts that each layer keeps as further candidates.
        weight: of the loss beside that of the language model, where a tuning run takes it from readings.
        rows: [B, P] places of the probed queries in the current step; None when nothing is probed.
        losses: a scalar of each layer, filled by the forward pass.
    """

    region_tokens: int = 64
    key_sub: int = 4
    bank_regions: int = 1024
    kept_per_text: int = 16
    weight: float = 0.0
    rows: Tensor | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)
    bank: dict[int, Tensor] = field(default_factory=dict)
    _seen: dict[int, Tensor] = field(default_factory=dict)

    def start(self, rows: Tensor | None) -> None:
        """Begin a step that probes the queries at `rows`, with the regions of the last step among the candidates."""
        self.rows = rows
        self.losses.clear()
        for layer, fine in self._seen.items():
            self._remember(layer, fine)
        self._seen.clear()

    def observe(self, layer: int, query: Tensor, key: Tensor, q: Tensor, k: Tensor, scale: float) -> None:
        """Take the loss of one layer, once a step: gradient checkpointing calls again and changes nothing.

        Args:
            query, key: [B, H, T, D] raw, T a multiple of `region_tokens`; q, k the same, rotated.
        """
        rows = self.rows[:, None, :, None]
        at = rows.expand(-1, q.shape[1], -1, q.shape[3])
        with torch.no_grad():
            mass = region_mass(q.gather(2, at), k, self.rows, self.region_tokens, scale)
        fine = sub_means(key, self.key_sub).unflatten(2, (-1, self.region_tokens // self.key_sub))
        loss = region_loss(query.gather(2, at) * scale, fine, mass, self.bank.get(layer))
        self.losses.setdefault(layer, loss)
        self._seen.setdefault(layer, fine.detach())

    def observe_readings(
        self, layer: int, readings: "ReadingAttention", query: Tensor, key: Tensor, q: Tensor, k: Tensor, scale: float
    ) -> None:
        """The same for a row of readings: the queries that predict the beginnings of answers, and their texts.

        Args:
            query, key: [1, H, T, D] raw; q, k the same, rotated.
        """
        if not self.weight:
            return
        losses, seen = [], []
        for reading, asking in zip(readings.readings, readings.asking, strict=True):
            start, stop = reading.parts[0][0], reading.parts[-1][1]
            whole = (stop - start) // self.region_tokens * self.region_tokens
            if whole < LEAST_REGIONS * self.region_tokens or not len(asking):
                continue
            with torch.no_grad():
                mass = _context_mass(q[:, :, asking], k[:, :, start:stop], whole, self.region_tokens, scale)
            text = key[:, :, start : start + whole]
            fine = sub_means(text, self.key_sub).unflatten(2, (-1, self.region_tokens // self.key_sub))
            losses.append(region_loss(query[:, :, asking] * scale, fine, mass, self.bank.get(layer)))
            seen.append(fine.detach())
        if losses:
            self.losses.setdefault(layer, torch.stack(losses).mean())
            self._seen.setdefault(layer, torch.cat(seen, dim=2))

    def _remember(self, layer: int, fine: Tensor) -> None:
        """Keep some regions of these texts as candidates for the next steps. fine: [B, Hkv, R, F, D]."""
        chosen = torch.randperm(fine.shape[2], device=fine.device)[: self.kept_per_text]
        new = fine[:, :, chosen].transpose(0, 1).flatten(1, 2).to(torch.bfloat16)  # [Hkv, N, F, D]
        old = self.bank.get(layer)
        self.bank[layer] = new if old is None else torch.cat([new, old], dim=1)[:, : self.bank_regions]


def _context_mass(queries: Tensor, keys: Tensor, whole: int, region_tokens: int, scale: float) -> Tensor:
    """`region_mass` of queries that see all of a text and stand after it; what is always attended is zero.

    Args:
        queries: [1, Hq, P, D] rotated. keys: [1, Hkv, C, D] rotated, of which `whole` are in whole regions.

    Returns:
        [1, Hq, P, whole / region_tokens].
    """
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    mass = ((queries @ keys.transpose(-1, -2)).float() * scale).softmax(-1)[..., :whole]
    mass = mass.unflatten(-1, (-1, region_tokens)).sum(-1)
    mass[..., 0] = 0
    return mass


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
