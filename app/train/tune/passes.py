"""One pass of a tuning run: which rows it has, and the module whose forward pass is its loss."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from app.kernels.rope import rope_table
from app.models.rope import rope_parameters
from app.train.attention import TrainingAttention, install, uninstall
from app.train.loss import answer_losses, chunked_loss, target_weights
from app.train.reading_attention import ReadingAttention
from app.train.tune.lora import causal_model
from app.train.tune.positions import frequencies, part_at
from app.train.tune.recipe import TuningRecipe, TuneConfig

# (step, rows) -> {"input_ids": [rows, T] int64, "weights": [rows, T], optionally "documents": [rows, T]}, the same for
# the same step, whoever asks. Rows of one step are shared out among passes and processes.
Batches = Callable[[int, int], dict[str, Tensor]]


class TuningModel(nn.Module):
    """A causal model whose forward pass is its loss."""

    _keys_to_ignore_on_save = None  # the Trainer asks for it

    def __init__(self, model: nn.Module, attention: TrainingAttention, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.attention, self.dtype_of_stream = model, attention, dtype
        self.told: dict[int, tuple[float, int]] = {}  # of the last pass of readings: nats and tokens by source
        self._no_split_modules = causal_model(model)._no_split_modules  # what FSDP wraps

    def forward(
        self,
        input_ids: Tensor,
        weights: Tensor,
        documents: Tensor | None = None,
        seam: int | None = None,
        **columns: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted sum of the cross entropy of a pass, in nats.

        Args:
            input_ids, weights, documents: [B, T] as `Batches` has them.
            seam: first token that attends to nothing before it; predicted like any other.
            columns: the others of a row of readings (app/train/reading_layout.py).

        Returns:
            `loss`; of readings also `regions`, the loss on region scores where it is taken.
        """
        causal = causal_model(self.model)
        if columns:
            return self._readings(
                causal, {"input_ids": input_ids, "weights": weights, "documents": documents, **columns}
            )
        self.attention.documents = part_at(seam, documents, *input_ids.shape)
        # Trained embeddings are float32; what runs through the layers, and is kept for backward, need not be.
        embedded = causal.get_input_embeddings()(input_ids).to(self.dtype_of_stream)
        hidden = causal.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return {"loss": chunked_loss(hidden, causal.lm_head, input_ids, target_weights(weights, documents))}

    def _readings(self, causal: nn.Module, row: dict[str, Tensor]) -> dict[str, Tensor]:
        config, probe = causal.config, self.attention.probe
        self.attention.readings = ReadingAttention(row, config.num_attention_heads // config.num_key_value_heads)
        if probe:
            probe.start(None)
        try:
            embedded = causal.get_input_embeddings()(row["input_ids"]).to(self.dtype_of_stream)
            hidden = causal.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        finally:
            self.attention.readings = None
        weights = target_weights(row["weights"], row["documents"])
        losses, kept = answer_losses(hidden[0], causal.lm_head, row["input_ids"][0], weights[0])
        self.told = _by_source(losses.detach(), row["sources"][0, kept])
        found = {"loss": (losses * weights[0, kept]).sum()}
        if probe and probe.losses:
            found["regions"] = torch.stack(list(probe.losses.values())).mean()
        return found


def _by_source(losses: Tensor, sources: Tensor) -> dict[int, tuple[float, int]]:
    """Nats and tokens of each source."""
    return {int(s): (float(losses[sources == s].sum()), int((sources == s).sum())) for s in sources.unique()}


class Passes(IterableDataset):
    """The passes of one process: its rows of each step, `accumulation` times."""

    def __init__(self, tune: TuneConfig, batches: Batches, first_step: int, process: int, processes: int) -> None:
        self.tune, self.batches, self.first_step = tune, batches, first_step
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        size, count = self.tune.batch, self.tune.accumulation * self.processes
        for step in range(self.first_step, self.tune.steps):
            rows = self.batches(step, size * count)
            for i in range(self.process, count, self.processes):
                yield {name: values[i * size : (i + 1) * size] for name, values in rows.items()}


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
def validate(model: nn.Module, recipe: TuningRecipe, in_order: InOrder, dtype: torch.dtype) -> Validation:
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
    model: nn.Module,
    recipe: TuningRecipe,
    in_order: InOrder,
    dtype: torch.dtype,
    attention: TrainingAttention,
    tuned: bool,
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
