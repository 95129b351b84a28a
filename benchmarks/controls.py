"""Ways to attend that only serve to be compared with: they are no policies of the product."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks import harness

if TYPE_CHECKING:
    from torch import Tensor

    from app.runtime.cache import RegionCache
    from app.runtime.engine import Engine
    from app.runtime.spec import AttentionSpec

RANDOM = "random"


def engine(args: argparse.Namespace, policy: str, **changes) -> "Engine":
    """The model under a policy of the product, or under a control.

    `random` attends to the sinks, to what is near, and to regions at random in the room that is left.
    """
    if policy != RANDOM:
        return harness.engine(args, policy, **changes)
    made = harness.engine(args, **changes)
    made.spec.policy = RANDOM
    _install()
    return made


def _install() -> None:
    """Put the control before the product's choice of regions; engines of other policies go on to that."""
    from app.runtime import attention

    if getattr(attention.select, "control", None) != RANDOM:
        attention.select = _before(attention.select)


def _before(select: Callable[..., "Tensor"]) -> Callable[..., "Tensor"]:
    import torch

    generator = torch.Generator().manual_seed(0)

    def chosen(
        spec: "AttentionSpec", cache: "RegionCache", layer: int, q: "Tensor", firsts: "Tensor", *rest
    ) -> "Tensor":
        if spec.policy != RANDOM:
            return select(spec, cache, layer, q, firsts, *rest)
        own, lengths = rest
        ends, a = firsts[:, None] + own, spec.attention
        index = torch.arange(int(ends[-1]), device=q.device)
        forced = (index < a.sink_regions) | (index >= spec.first_near(firsts)[:, None]) & (index < ends)  # [G, R]
        muted = (index >= ends) | (lengths[: len(index)] == 0) & ~forced
        luck = torch.rand(len(firsts), q.shape[1], len(index), generator=generator).to(q.device)
        luck = luck.masked_fill(forced[:, None], 2.0).masked_fill(muted[:, None], -1.0)
        return luck.topk(min(a.budget_regions, int(ends[0])), dim=-1).indices.sort(-1).values

    chosen.control = RANDOM
    return chosen
