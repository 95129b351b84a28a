"""Next token from logits, chosen where the logits are: nothing but the token's number has to travel; when to end."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from app.memory.config import GenerationConfig


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


class Repetition:
    """Notices that an answer does nothing any more but repeat itself. It changes no token.

    As vLLM's repetition detection does, it looks for runs that stand at the end again and again. What stands so in a
    text that was read is no sign of it: an answer may quote a refrain or a table of zeros, however long.
    """

    LONGEST = 32  # tokens of a run

    def __init__(self, repeat_tokens: int, texts: Sequence[Sequence[int]] = ()) -> None:
        """So many tokens have to equal those one run before them; 0 notices nothing. `texts`: what was read."""
        self._enough, self._texts = repeat_tokens, texts
        self._said: list[int] = []
        self._repeats = [0] * (self.LONGEST + 1)  # by length of the run: the last tokens that repeat one

    def __call__(self, token: int) -> bool:
        """Take the answer's next token; whether the answer repeats itself now."""
        said, repeats = self._said, self._repeats
        said.append(token)
        for run in range(1, min(self.LONGEST, len(said) - 1) + 1):
            repeats[run] = repeats[run] + 1 if said[-1 - run] == token else 0
        run = repeats.index(max(repeats))
        enough = 0 < self._enough <= repeats[run]
        return enough and not any(_holds(text, said[-repeats[run] - run :]) for text in self._texts)


def _holds(text: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether tokens stand in a text, in a row."""
    whole, wanted, place = array("q", text).tobytes(), array("q", tokens).tobytes(), -1
    while (place := whole.find(wanted, place + 1)) >= 0:
        if place % array("q").itemsize == 0:
            return True
    return False
