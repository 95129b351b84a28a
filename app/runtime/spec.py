"""AttentionSpec: the attention recipe at work in one engine."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from app.kernels.options import SelectionOptions
from app.kernels.rope import rope_table
from app.memory.config import AttentionConfig
from app.runtime.policies import Policy

EVERYTHING = 1 << 62


@dataclass
class AttentionSpec:
    """What every attention layer of one engine shares.

    Attributes:
        inv_freq: [D/2] of the model's own rotary embedding; `rope_scaling` its attention scaling.
        policy: what later tokens attend to.
    """

    attention: AttentionConfig
    inv_freq: Tensor
    rope_scaling: float
    policy: Policy = field(default_factory=Policy)
    _table: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def budget_for(self, layer: int) -> int:
        """Tokens that a query of this layer may attend to."""
        dense = self.policy.sees_all or layer < self.attention.dense_layers
        return EVERYTHING if dense else self.attention.budget_tokens

    def options(self, layer: int) -> SelectionOptions:
        """What the oracle needs to know."""
        values = {f.name: getattr(self.attention, f.name) for f in fields(SelectionOptions)}
        score = "infllm" if self.policy.local_keys else values["score"]
        return SelectionOptions(**{**values, "budget_tokens": self.budget_for(layer), "score": score})

    def first_near(self, firsts: Any) -> Any:
        """First of the regions that are attended for being near, of groups whose own ones begin at `firsts`.

        `firsts` may be a number or a tensor of numbers.
        """
        a = self.attention
        return firsts - (a.local_regions if a.forced == "all" else 0)

    def rope(self, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of at least `positions` positions, [P, D], cached."""
        if self._table is None or len(self._table[0]) < positions or self._table[0].dtype != like.dtype:
            size = max(positions, 2048 if self._table is None else 2 * len(self._table[0]))
            self._table = rope_table(self.inv_freq.to(like.device), size, self.rope_scaling, like.dtype)
        return self._table
