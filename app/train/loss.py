"""The loss of a long sequence without its logits: a few rows at a time, computed again for the gradient."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ROWS = 1024


def target_weights(weights: Tensor, documents: Tensor | None = None) -> Tensor:
    """What predicting each token counts.

    Args:
        weights: [B, T].
        documents: [B, T], equal numbers for one document, -1 for padding; None: one document to a row.

    Returns:
        [B, T] float32: `weights`, but 0 for the first token of each row and document and for padding.
    """
    counted = weights.float().clone()
    counted[:, 0] = 0
    if documents is not None:
        counted[:, 1:] *= documents[:, 1:] == documents[:, :-1]
        counted *= documents >= 0
    return counted


def chunked_loss(
    hidden: Tensor, head: Callable[[Tensor], Tensor], token_ids: Tensor, weights: Tensor, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """Weighted sum of next-token cross entropy; at most `chunk_rows` rows of logits exist at a time, in backward too.

    Args:
        hidden: [B, T, H] final hidden states.
        head: from [N, H] to logits [N, V]; a module, so that hooks of sharded training run.
        token_ids: [B, T].
        weights: [B, T] as `target_weights` gives them: of predicting each token from the one before.

    Returns:
        Scalar, float32, in nats; 0 with a gradient where every weight is 0.
    """
    rows = hidden.flatten(0, 1)
    targets, weight = token_ids.roll(-1, 1).flatten(), weights.float().roll(-1, 1).flatten()
    kept = weight > 0
    if not bool(kept.all()):
        rows, targets, weight = rows[kept], targets[kept], weight[kept]
    if len(rows) == 0:
        rows, targets, weight = hidden[0, :1], token_ids[0, :1], hidden.new_zeros(1, dtype=torch.float32)
    total = hidden.new_zeros((), dtype=torch.float32)
    parts = zip(rows.split(chunk_rows), targets.split(chunk_rows), weight.split(chunk_rows), strict=True)
    for part in parts:
        total = total + checkpoint(_chunk, head, *part, use_reentrant=False, preserve_rng_state=False)
    return total


def answer_losses(
    hidden: Tensor, head: Callable[[Tensor], Tensor], token_ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the tokens that weigh something, and their places; logits are made of these alone, and kept.

    Args:
        hidden: [T, H] final hidden states. token_ids, weights: [T].
    """
    kept = weights.nonzero()[:, 0]
    return F.cross_entropy(head(hidden[kept - 1]).float(), token_ids[kept], reduction="none"), kept


def _chunk(head: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    losses = F.cross_entropy(head(rows).float(), targets, reduction="none")  # [N] from [N, V]
    return (losses * weight).sum()
