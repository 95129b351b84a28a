"""Next token from logits."""

import torch
from torch import Tensor

from app.runtime.config import GenerationConfig


def sample(logits: Tensor, config: GenerationConfig, generator: torch.Generator) -> int:
    """Draw one token; temperature 0 takes the best.

    Args:
        logits: [V].
        generator: on the CPU; draws are made there, so that a seed means the same on every device.
    """
    if config.temperature == 0:
        return int(logits.argmax())
    probs = torch.softmax(logits.float().cpu() / config.temperature, dim=-1)
    if config.top_p < 1:
        ordered, order = probs.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered > config.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probs, 1, generator=generator))
