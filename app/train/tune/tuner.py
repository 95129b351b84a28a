"""Tune a checkpoint: the training loop over a module that returns the loss, so that DDP, FSDP and DeepSpeed fit in.

The finished adapter appears in one piece, or not at all.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainingArguments

from app.errors import ConfigError, InputError, TrainError
from app.models import checkpoint
from app.system import peak_bytes
from app.train.attention import TrainingAttention
from app.train.loop import TrainingLoop, arguments, last_checkpoint, step_of
from app.train.loss import target_weights
from app.train.pretrain.region_loss import RegionProbe
from app.train.tune.estimate import check_room
from app.train.tune.lora import add_adapter, causal_model, merged_lora, start_from, trained_parameters
from app.train.tune.output import Base, read_base, tuning_facts, write_output
from app.train.tune.passes import Batches, InOrder, Passes, TuningModel, Validation, validate
from app.train.tune.positions import PositionSampler
from app.train.tune.recipe import SCHEDULES, TuningRecipe

log = logging.getLogger(__name__)
BANK_REGIONS = 128  # of earlier texts, candidates of the region loss


@dataclass(frozen=True)
class Tuned:
    """What a run leaves.

    Attributes:
        model: on the CPU or the GPU it was trained on, with its stock attention; a PeftModel unless all weights learnt.
        losses: of every step, those before a resume too.
        grad_norms: of every step, before clipping.
        tokens: read in all steps, padding too.
        validation: loss on texts that were kept back, where some were.
    """

    model: nn.Module
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    tokens: int
    seconds: float
    peak_bytes: int
    validation: Validation | None = None


class TuningTrainer(TrainingLoop):
    """Our passes, positions drawn once a step, and a loss weighted over the whole step."""

    def __init__(self, *, recipe: TuningRecipe, sources: Sequence[str], positions: PositionSampler, **kwargs) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is already a share of the whole step's
        self.recipe, self.sources, self.positions = recipe, sources, positions
        self.attention = self.model.attention

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The passes of a step, cut to the step's length, and the weight of all that is predicted in it."""
        passes, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not passes:  # a finished run was started again
            return passes, None
        step, tune = self.state.global_step, self.recipe.tune
        draw = self.positions.draw(step, tune.steps, passes[0]["input_ids"].shape[1], tune.seed)
        self.attention.table = draw.cos.to(device), draw.sin.to(device)
        passes = [{name: values[:, : draw.tokens] for name, values in one.items()} for one in passes]
        self.tokens += len(passes) * passes[0]["input_ids"].numel() * self.args.world_size
        total = sum(target_weights(one["weights"], one.get("documents")).sum() for one in passes)
        total = self.accelerator.gather(total.to(device)).sum()
        if not total > 0:
            raise InputError(f"step {step + 1}: its texts hold nothing to learn; check the data")
        return [one | {"seam": draw.seam} for one in passes], total

    def pass_loss(self, model: nn.Module, inputs: dict[str, Any], weight: Tensor) -> Tensor:
        found = model(**inputs)
        loss = found["loss"] / weight
        for source, (nats, tokens) in self.accelerator.unwrap_model(self.model).told.items():
            self.tell(self.sources[source] if source < len(self.sources) else str(source), nats, tokens)
        if "regions" in found:
            self.tell("regions", float(found["regions"]), 1)
            loss = loss + self.recipe.tune.region_loss / self.args.gradient_accumulation_steps * found["regions"]
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What learns alone, once; sharded runs save by their own means (Trainer calls them after this)."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            weights = {name: p.detach().cpu().contiguous() for name, p in trained_parameters(self.model).items()}
            save_file(weights, Path(output_dir) / "model.safetensors", metadata={"format": "pt"})


def _arguments(recipe: TuningRecipe, run: Path, device: torch.device, dtype: torch.dtype) -> TrainingArguments:
    tune = recipe.tune
    return arguments(
        run,
        tune.steps,
        per_device_train_batch_size=tune.batch,
        gradient_accumulation_steps=tune.accumulation,
        learning_rate=tune.learning_rate,
        warmup_steps=tune.warmup_steps,
        lr_scheduler_type=SCHEDULES[tune.schedule],
        weight_decay=tune.weight_decay,
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=tune.save_steps,
        save_total_limit=tune.kept,
        ddp_find_unused_parameters=False,
        seed=tune.seed,
    )


def compute_dtype(recipe: TuningRecipe, device: torch.device) -> torch.dtype:
    """Of frozen weights and of arithmetic."""
    named = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    return named.get(recipe.tune.dtype) or checkpoint.pick_dtype(device)


def tune(
    recipe: TuningRecipe,
    batches: Batches,
    run: Path,
    *,
    model: nn.Module | None = None,
    out: Path | None = None,
    in_order: InOrder | None = None,
    device: str = "auto",
) -> Tuned:
    """Train what the recipe names, or go on from the newest checkpoint in `run`.

    Args:
        batches: where texts come from; see `Batches`.
        run: checkpoints and the log; made when missing.
        model: the base, a causal model of transformers on the CPU, which is changed; None loads the recipe's.
        out: folder for the adapter; None writes none.
        in_order: texts to measure the result on; see `validate`.

    Raises:
        ConfigError: `run` holds another recipe's run.
        TrainError: it cannot fit; one process sees several GPUs; loss or gradient is not finite, then the last good
            checkpoint stays.
        InputError: a step without anything to learn, or `out` cannot be written.
        ModelError: the base cannot be loaded.
    """
    place = checkpoint.pick_device(device)
    dtype = compute_dtype(recipe, place)
    base = read_base(recipe.tune.base) if model is None or out else None
    args = _arguments(recipe, run, place, dtype)
    _one_gpu(args)
    claim(run, recipe, args.world_size)
    if model is None:
        model = _load(base, recipe, place, dtype, args.world_size)
    positions = PositionSampler.of(recipe.positions, model)
    torch.manual_seed(recipe.tune.seed)
    adapted = add_adapter(model.to(dtype), recipe.lora, recipe.tune.base)
    if recipe.tune.start:
        start_from(adapted, Path(recipe.tune.start))
    last = last_checkpoint(run)
    trainer = TuningTrainer(
        model=TuningModel(adapted, _attention(recipe), dtype),
        args=args,
        rows=Passes(recipe.tune, batches, step_of(last), args.process_index, args.world_size),
        recipe=recipe,
        sources=getattr(batches, "sources", ()),
        positions=positions,
    )
    tuned = _train(trainer, adapted, last)
    gathered = _gathered(trainer)
    if trainer.is_world_process_zero():
        if in_order and gathered is None:  # weights that are shared out cannot be tried here
            tuned = replace(tuned, validation=validate(adapted, recipe, in_order, dtype))
        if out:
            write_output(out, adapted, recipe, base, _counts(tuned), gathered)
    trainer.accelerator.wait_for_everyone()
    return tuned


def _attention(recipe: TuningRecipe) -> TrainingAttention:
    weight = recipe.tune.region_loss
    probe = RegionProbe(bank_regions=BANK_REGIONS, weight=weight) if weight else None
    kind = recipe.tune.attention
    return TrainingAttention(kind, selection=recipe.selection, pattern=recipe.groups, probe=probe)


def _one_gpu(arguments: TrainingArguments) -> None:
    """Refuse several GPUs for one process: Trainer would copy the model to all of them in every step."""
    if arguments.n_gpu > 1:
        raise TrainError(
            f"{arguments.n_gpu} GPUs are visible to one process; start one for each as docs/training.md says (Several "
            "GPUs), or show one with CUDA_VISIBLE_DEVICES=0"
        )


def _load(base: Base, recipe: TuningRecipe, place: torch.device, dtype: torch.dtype, processes: int) -> nn.Module:
    """The base on the CPU, when the run fits."""
    told = check_room(recipe, base, place, dtype, processes if place.type == "cpu" else 1)
    log.info("about %.1f GB of memory in %s", told.total / 1e9, str(dtype).removeprefix("torch."))
    return base.load(dtype)


def _counts(tuned: Tuned) -> dict[str, Any]:
    """What `lectern.json` tells of a run."""
    counts = {"steps": len(tuned.losses), "tokens": tuned.tokens, "loss": round(tuned.losses[-1], 4)}
    return counts | ({"validation": asdict(tuned.validation)} if tuned.validation else {})


def _gathered(trainer: TuningTrainer) -> dict[str, Tensor] | None:
    """The model's weights by name, brought together from all processes; None where each process has them all."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def _train(trainer: TuningTrainer, adapted: nn.Module, last: Path | None) -> Tuned:
    """Run the Trainer with everything switched that training needs, and switch it back."""
    causal, started = causal_model(adapted), time.monotonic()
    _activation_checkpointing(causal, trainer.recipe.tune.checkpointing)
    try:
        with merged_lora(adapted) if trainer.args.world_size == 1 else nullcontext():
            trainer.train_under(causal, trainer.attention, last)
    finally:
        _activation_checkpointing(causal, False)
    told = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Tuned(
        model=adapted.eval(),
        losses=tuple(entry["loss"] for entry in told),
        grad_norms=tuple(entry["grad_norm"] for entry in told),
        tokens=sum(entry["tokens"] for entry in told),
        seconds=time.monotonic() - started,
        peak_bytes=peak_bytes(),
    )


def _activation_checkpointing(causal: nn.Module, wanted: bool) -> None:
    """transformers renames it in version 5.23."""
    new = hasattr(causal, "activation_checkpointing_enable")
    prefix = "activation_checkpointing" if new else "gradient_checkpointing"
    if wanted:
        getattr(causal, f"{prefix}_enable")({"use_reentrant": False})
    elif getattr(causal, f"is_{prefix}"):
        getattr(causal, f"{prefix}_disable")()


def claim(run: Path, recipe: TuningRecipe, processes: int = 1) -> None:
    """Make the run's folder, or see that it belongs to this recipe and so many processes, which share out its rows.

    Raises:
        ConfigError: it belongs to another one; says what differs.
        InputError: it cannot be written.
    """
    path, ours = run / "run.json", tuning_facts(recipe) | {"run": {"processes": processes}}
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            new = path.with_suffix(f".{os.getpid()}.new")
            new.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
            new.replace(path)
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be used ({error}); choose another folder with --run") from error
    different = [
        f"[{name}] {key} = {theirs.get(name, {}).get(key)!r}, now {ours.get(name, {}).get(key)!r}"
        for name in {**theirs, **ours}
        for key in {**theirs.get(name, {}), **ours.get(name, {})}
        if theirs.get(name, {}).get(key) != ours.get(name, {}).get(key) and key != "save_steps"
    ]
    if different:
        raise ConfigError(
            f"{run}: holds a run of another recipe ({'; '.join(different[:3])}); go on with that one, delete the "
            "folder, or choose another with --run"
        )
