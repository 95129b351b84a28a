"""What a tuning run takes in memory, before anything is loaded, and the refusal of what cannot fit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from app.errors import TrainError
from app.models.folder import stored_weights
from app.train.loss import CHUNK_ROWS
from app.train.tune.output import Base
from app.train.tune.lora import EMBEDDINGS, NORMS
from app.train.tune.recipe import LoraRecipe, TuningRecipe

TRAINED_BYTES = 16  # of each weight that learns: float32 itself, its gradient, two moments of AdamW
PROGRAM_BYTES = {"cuda": 1.0e9, "cpu": 0.4e9}  # kernels and workspaces
# Numbers of the model's width and of its feed-forward width that a layer keeps of each token for backward, in the
# arithmetic's data type; counted with saved-tensor hooks on Llama layers, rounded up.
LORA_KEEPS, FULL_KEEPS = (14, 4), (16, 6)


@dataclass(frozen=True)
class Estimate:
    """Bytes on each process's device, by what takes them.

    Attributes:
        base: weights that do not learn; where all learn, their copies in the arithmetic's data type.
        learning: weights that do, with gradients and moments.
        kept: what layers keep for backward, and one layer computed again with checkpointing.
        loss: final hidden states and a chunk of logits.
    """

    base: float
    learning: float
    kept: float
    loss: float
    program: float

    @property
    def total(self) -> float:
        return self.base + self.learning + self.kept + self.loss + self.program


def learning_weights(lora: LoraRecipe, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers learn, from the shapes of a checkpoint's weights by name."""
    if lora.full:
        return sum(map(math.prod, shapes.values()))
    total = 0
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in lora.modules:
            total += lora.rank * sum(shape)
        elif lora.norms and module.endswith(NORMS) or lora.embeddings and module.endswith(EMBEDDINGS):
            total += math.prod(shape)
        elif module.endswith(EMBEDDINGS):
            total += len(lora.token_rows) * shape[1]
    return total


def estimate(
    recipe: TuningRecipe, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], itemsize: int, device: str
) -> Estimate:
    """Memory of one process that keeps the whole model (DDP too; FSDP and ZeRO share it out).

    Args:
        config: config.json; `shapes` of the weights by name.
        itemsize: bytes of a number in the arithmetic's data type.
    """
    tune, lora = recipe.tune, recipe.lora
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    tokens = tune.tokens * tune.batch
    of_width, of_inner = FULL_KEEPS if lora.full else LORA_KEEPS
    layer = tokens * (of_width * width + of_inner * config["intermediate_size"]) * itemsize
    weights = sum(map(math.prod, shapes.values()))
    return Estimate(
        base=0 if lora.full and itemsize == 4 else weights * itemsize,
        learning=learning_weights(lora, shapes) * TRAINED_BYTES,
        kept=layers * tokens * width * itemsize + layer if tune.checkpointing else layers * layer,
        loss=2 * tokens * width * itemsize + min(tokens, CHUNK_ROWS) * config["vocab_size"] * 12,
        program=PROGRAM_BYTES[device],
    )


def free_bytes(device: torch.device) -> int:
    """Memory that is free where a run would take it."""
    import psutil

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def check_room(
    recipe: TuningRecipe, base: Base, device: torch.device, dtype: torch.dtype, processes: int = 1
) -> Estimate:
    """Refuse a run that cannot fit, with what to change.

    Args:
        processes: that share this device: all of them on a CPU, one on a GPU.

    Raises:
        TrainError: with the estimate and the memory that is free.
    """
    shapes = {name: stored.shape for name, stored in stored_weights(base.folder).items()}
    found = estimate(recipe, base.config, shapes, dtype.itemsize, device.type)
    free = free_bytes(device)
    if found.total * processes <= free:
        return found
    parts = ", ".join(
        f"{what} {value / 1e9:.1f}"
        for what, value in (
            ("the base", found.base),
            ("what learns", found.learning),
            ("kept for backward", found.kept),
            ("the loss", found.loss),
        )
    )
    among = f" for {processes} processes" if processes > 1 else ""
    raise TrainError(
        f"needs about {found.total * processes / 1e9:.1f} GB ({parts}), {free / 1e9:.1f} GB are free on {device.type}"
        f"{among}: {'; '.join(_advice(recipe, found, free / processes))}"
    )


def _advice(recipe: TuningRecipe, found: Estimate, free: float) -> list[str]:
    """What would make a run smaller, the most useful first."""
    tune, lora = recipe.tune, recipe.lora
    advice = []
    if not tune.checkpointing:
        advice.append("set checkpointing = true")
    if tune.batch > 1:
        advice.append(f"make batch smaller (now {tune.batch}) and accumulation larger")
    room, taken = free - found.base - found.learning - found.program, found.kept + found.loss
    if room > 0:
        fits = int(tune.tokens * room / taken)
        advice.append(f"make tokens smaller (now {tune.tokens}; about {fits // 64 * 64} fit)")
    elif lora.full:
        advice.append("set [lora] full = false")
    elif lora.embeddings:
        advice.append("train [lora] token_rows in place of embeddings, or share the model out with FSDP")
    else:
        advice.append("choose a smaller base, or share the model out with FSDP or DeepSpeed")
    return advice
