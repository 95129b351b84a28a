"""Ways to attend that only serve to be compared with: they are no policies of the product."""

import argparse
from typing import TYPE_CHECKING

from benchmarks import harness

if TYPE_CHECKING:
    from app.runtime.engine import Engine

RANDOM = "random"


def engine(args: argparse.Namespace, policy: str, **changes) -> "Engine":
    """The model under a policy of the product, or under a control."""
    return harness.engine(args, policy, **changes)
