"""Positions of a training run: one table a step, plain, stretched, or drawn by CRD NTK (app/models/rope.py)."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.errors import ConfigError
from app.kernels.rope import rope_table
from app.models.rope import PositionConfig, stretched

SHORTEST_SHARE = 0.25  # of the training length, when it is cut


def frequencies(rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """inv_freq [D/2] of `rope_parameters` of type default or linear, float32, bit for bit as transformers has it."""
    inv_freq = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    return inv_freq / rope["factor"] if rope.get("rope_type") == "linear" else inv_freq


@dataclass(frozen=True)
class Draw:
    """The positions of one training step.

    Attributes:
        cos, sin: [tokens, D] float32, on the CPU.
        tokens: length to train at; at most what was asked for.
        factor: s of the step; `shift` the roll of the table.
        seam: with seam `mask`, the first token that must not look before itself; else None.
    """

    cos: Tensor
    sin: Tensor
    tokens: int
    factor: float = 1.0
    shift: int = 0
    seam: int | None = None


class PositionSampler:
    """Draws the positions of each training step. Equal on every process: a draw depends on (seed, step) alone."""

    def __init__(
        self,
        config: PositionConfig,
        base: Mapping[str, Any],
        head_dim: int,
        *,
        inv_freq: Tensor | None = None,
        scaling: float = 1.0,
    ) -> None:
        """
        Args:
            base: `rope_parameters` of the base's config.
            inv_freq, scaling: the base's own rotary frequencies [D/2] and attention scaling, used by method `none`;
                they are needed where `base` is not of type default.

        Raises:
            ConfigError: the base stretches its positions already, or its range is not known.
        """
        if config.method == "crd" and not config.pretrained_tokens:
            raise ConfigError("positions pretrained_tokens = 0: crd needs the range that the base was trained on")
        if inv_freq is None and config.method == "none" and base.get("rope_type", "default") != "default":
            raise ConfigError(f"positions: the base's own frequencies are needed for rope type {base['rope_type']}")
        self.config, self.base, self.head_dim = config, dict(base), head_dim
        self._own, self._scaling = inv_freq, scaling if config.method == "none" else 1.0
        self._kept: tuple[tuple[float, int], tuple[Tensor, Tensor]] | None = None
        if config.factors:
            stretched(config, self.base, head_dim, config.factors[0])

    @classmethod
    def of(cls, config: PositionConfig, model) -> "PositionSampler":
        """For a model as transformers makes it: before its rotary embedding is exchanged."""
        made, rotary = model.config, model.model.rotary_emb
        head_dim = getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads
        return cls(
            config.of_base(made.max_position_embeddings),
            made.rope_parameters,
            head_dim,
            inv_freq=rotary.inv_freq.detach().float().cpu().clone(),
            scaling=float(rotary.attention_scaling),
        )

    def draw(self, step: int, steps: int, tokens: int, seed: int) -> Draw:
        """Positions of step `step` of `steps`, for sequences of `tokens` tokens. Once per step, outside of layers.

        With `crd` the table has s * pretrained_tokens positions, and a stage trains on no longer sequences.
        """
        config, factor = self.config, self.config.factor_at(step, steps)
        if config.method != "crd":
            cos, sin = self._table(factor, tokens)
            return Draw(cos[:tokens], sin[:tokens], tokens, factor)
        positions = int(factor * config.pretrained_tokens)
        tokens = min(tokens, positions)
        rng = random.Random(f"positions-{seed}-{step}")  # strings are hashed the same in every process
        rolled, shift = rng.random() < config.p_cyclic, rng.randrange(positions)
        cut, least = rng.random() < config.p_truncated, max(1, int(tokens * SHORTEST_SHARE))
        shorter = rng.randint(least, tokens)
        tokens, shift = shorter if cut else tokens, shift if rolled else 0
        cos, sin = self._table(factor, positions)
        seam = positions - shift if 0 < positions - shift < tokens else None
        if config.seam == "mask":
            # On either side of the seam a shift cannot be seen, so the table stays as it is and the text is parted.
            return Draw(cos[:tokens], sin[:tokens], tokens, factor, shift, seam)
        places = (torch.arange(tokens) + shift) % positions
        return Draw(cos[places], sin[places], tokens, factor, shift)

    def _table(self, factor: float, positions: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) of at least `positions` positions, kept while the factor stays."""
        if self._kept is None or self._kept[0][0] != factor or self._kept[0][1] < positions:
            self._kept = (factor, positions), self._made(factor, positions)
        return self._kept[1]

    def _made(self, factor: float, positions: int) -> tuple[Tensor, Tensor]:
        inv_freq = self._own if self.config.method == "none" else None
        if inv_freq is None:
            inv_freq = frequencies(stretched(self.config, self.base, self.head_dim, factor), self.head_dim)
        return rope_table(inv_freq, positions, self._scaling, torch.float32)


def part_at(seam: int | None, documents: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """Documents of a batch, parted at a masked seam.

    Args:
        documents: [B, T] number of each token's document, -1 for padding; None for one document a row.

    Returns:
        [B, T] with other numbers on either side of the seam; what was given where there is no seam.
    """
    if seam is None:
        return documents
    later = (torch.arange(tokens) >= seam).long()
    if documents is None:
        return later.expand(batch, tokens).contiguous()
    later = later.to(documents.device)
    return torch.where(documents < 0, documents, 2 * documents + later)
