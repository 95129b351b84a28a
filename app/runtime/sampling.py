"""Next token from logits, chosen where the logits are: nothing but the token's number has to travel."""

import torch
from torch import Tensor

from app.runtime.config import GenerationConfig


class Sampler:
    """Draws token after token.

    The uniform numbers come from a generator on the CPU, so that a seed means the same on every device; they are sent
    ahead, many at a time.
    """

    AHEAD = 256  # draws sent at a time

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self.config, self._device = config, device
        self._generator = torch.Generator().manual_seed(config.seed)
        self._draws: list[Tensor] = []

    def __call__(self, logits: Tensor) -> Tensor:
        """The chosen token of logits [V], a number on their device; temperature 0 takes the best."""
        if self.config.temperature == 0:
            return logits.argmax()
        if not self._draws:
            draws = torch.rand(self.AHEAD, generator=self._generator, dtype=torch.float64)
            self._draws = list(draws.to(self._device, non_blocking=True).unbind())
        return choose(logits, self._draws.pop(0), self.config.temperature, self.config.top_p)


def choose(logits: Tensor, draw: Tensor, temperature: float, top_p: float) -> Tensor:
    """The token in which a uniform number falls, where tokens take as much room as they are probable.

    Args:
        logits: [V]. draw: float64, at least 0 and below 1.
        top_p: likely tokens that together reach this much are drawn from, no others.

    Returns:
        int64 without axes. No step waits for the device, and all shapes are fixed.
    """
    probs, order = torch.softmax(logits.float() / temperature, dim=-1), None
    if top_p < 1:
        probs, order = probs.sort(descending=True, stable=True)
        probs = probs.masked_fill(probs.cumsum(0) - probs > top_p, 0)
    reach = probs.double().cumsum(0)
    place = torch.searchsorted(reach, draw * reach[-1], right=True).clamp(max=len(reach) - 1)
    return place if order is None else order[place]
