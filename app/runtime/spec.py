"""AttentionSpec: the attention recipe at work in one engine."""

from dataclasses import dataclass, field

from torch import Tensor

from app.kernels.rope import rope_table
from app.runtime.config import AttentionConfig


@dataclass
class AttentionSpec:
    """What every attention layer of one engine shares.

    Attributes:
        inv_freq: [D/2] of the model's own rotary embedding; `rope_scaling` its attention scaling.
        policy: `keep-all` scores regions, `streaming` takes the latest, `full` sees everything.
    """

    attention: AttentionConfig
    inv_freq: Tensor
    rope_scaling: float
    policy: str = "keep-all"
    _table: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def budget_tokens(self) -> int:
        return (1 << 62) if self.policy == "full" else self.attention.budget_tokens

    def rope(self, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of at least `positions` positions, [P, D], cached."""
        if self._table is None or len(self._table[0]) < positions or self._table[0].dtype != like.dtype:
            size = max(positions, 2048 if self._table is None else 2 * len(self._table[0]))
            self._table = rope_table(self.inv_freq.to(like.device), size, self.rope_scaling, like.dtype)
        return self._table
