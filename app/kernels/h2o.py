"""Heavy hitters (H2O): the attention mass that each key received."""

import torch
from torch import Tensor


def attention_mass(queries: Tensor, keys: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Column sums of the attention of a few query rows.

    Args:
        queries: [..., Q, D], rotated.
        keys: [..., S, D], rotated.
        mask: broadcastable to [..., Q, S], True where a query sees a key; None when all are seen.

    Returns:
        [..., S], float32: mass received by each key, summed over the rows.
    """
    logits = (queries @ keys.transpose(-1, -2)).float() * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return torch.softmax(logits, dim=-1).sum(-2)
