"""Ways to attend that only serve to be compared with: they are no policies of the product."""

import argparse
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.runtime.policies import Policy
from benchmarks import harness

if TYPE_CHECKING:
    from app.runtime.engine import Engine


class RandomRegions(Policy):
    """`random`: keeps every region; a query sees the sinks, what is near, and others at random."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def votes(self, eligible: Tensor, kv_heads: int) -> Tensor:
        luck = torch.rand(len(eligible), kv_heads, eligible.shape[-1], generator=self.generator).to(eligible.device)
        return luck.masked_fill(~eligible[:, None], float("-inf"))


def engine(args: argparse.Namespace, policy: str, settings: harness.Values | None = None) -> "Engine":
    """The model under a policy of the product, or under a control."""
    return harness.engine(args, RandomRegions(args.seed) if policy == RandomRegions.name else policy, settings)
