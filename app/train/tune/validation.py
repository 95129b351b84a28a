"""The loss of a tuned model on texts that were kept back, with the attention and positions it will be read with."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from peft import PeftModel
from torch import Tensor, nn

from app.kernels.rope import rope_table
from app.models.rope import rope_parameters
from app.train.attention import TrainingAttention, install, uninstall
from app.train.loss import target_weights
from app.train.tune.lora import causal_model
from app.train.tune.passes import TuningModel
from app.train.tune.positions import frequencies
from app.train.tune.recipe import Recipe

MOST_ROWS = 64

InOrder = Callable[[int], Iterator[dict[str, Tensor]]]


@dataclass(frozen=True)
class Validation:
    """Nats per token that is learnt.

    Attributes:
        base: the same of the base, with its own positions; None where every weight learnt.
        tokens: that were counted.
    """

    nats: float
    base: float | None
    tokens: int


@torch.no_grad()
def validate(model: nn.Module, recipe: Recipe, in_order: InOrder, dtype: torch.dtype) -> Validation:
    """Measure at most MOST_ROWS rows.

    Args:
        model: as `tune` leaves it, with its stock attention.
        in_order: batches of so many rows, as PackedRows.in_order gives them.
    """
    kind = "ms" if recipe.selection else "full"
    after, tokens = _nats(model, recipe, in_order, dtype, TrainingAttention(kind, selection=recipe.selection), True)
    base = None
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            attention = TrainingAttention(kind, selection=recipe.selection)
            base, _ = _nats(model, recipe, in_order, dtype, attention, False)
    return Validation(after, base, tokens)


def _nats(
    model: nn.Module, recipe: Recipe, in_order: InOrder, dtype: torch.dtype, attention: TrainingAttention, tuned: bool
) -> tuple[float, int]:
    causal, size = causal_model(model), recipe.tune.batch
    config = causal.config
    if tuned and recipe.positions.method != "none":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        positions = recipe.positions.of_base(config.max_position_embeddings)
        rope = rope_parameters(positions, config.rope_parameters, head_dim)
        attention.table = rope_table(frequencies(rope, head_dim), recipe.tune.tokens, 1.0, torch.float32)
    device, total, count = next(model.parameters()).device, 0.0, 0.0
    mixed = torch.autocast(device.type, dtype=dtype) if dtype == torch.bfloat16 else nullcontext()
    measured = TuningModel(model, attention, dtype).eval()
    install(causal, attention)
    try:
        for batch in islice(in_order(size), max(1, MOST_ROWS // size)):
            batch = {name: values.to(device) for name, values in batch.items()}
            with mixed:
                total += float(measured(**batch)["loss"])
            count += float(target_weights(batch["weights"], batch.get("documents")).sum())
    finally:
        uninstall(causal)
    return total / count, int(count)
