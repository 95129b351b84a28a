"""Tune a checkpoint: transformers' Trainer over a module that returns the loss, so that DDP, FSDP and DeepSpeed fit in.

A run can be killed at any moment: started again with the same recipe and folder it goes on from its last checkpoint and
gives the same losses. The finished adapter appears in one piece, or not at all.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from app.errors import ConfigError, InputError, TrainError
from app.models import checkpoint
from app.system import peak_bytes
from app.train.attention import TrainingAttention, install, uninstall
from app.train.loss import target_weights
from app.train.pretrain.region_loss import RegionProbe
from app.train.tune.estimate import check_room
from app.train.tune.lora import add_adapter, causal_model, merged_lora, start_from, trained_parameters
from app.train.tune.output import Base, read_base, tuning_facts, write_output
from app.train.tune.passes import Batches, InOrder, Passes, TuningModel, Validation, validate
from app.train.tune.positions import PositionSampler
from app.train.tune.recipe import SCHEDULES, Recipe

log = logging.getLogger(__name__)
TELL_S = 10.0
SOURCE_TOKENS = 8000  # learnt, before the loss by source is told
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


class TuningTrainer(Trainer):
    """Trainer with our passes, positions drawn once a step, and a loss weighted over the whole step."""

    def __init__(
        self, *, recipe: Recipe, batches: Batches, first_step: int, positions: PositionSampler, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is already a share of the whole step's
        self.recipe, self.batches, self.first_step, self.positions = recipe, batches, first_step, positions
        self.run, self.step_tokens = Path(self.args.output_dir), 0
        self.attention = self.model.attention
        self.by_source: dict[int, tuple[float, int]] = {}
        self.remove_callback(PrinterCallback)
        self.add_callback(Report(self.by_source, getattr(batches, "sources", ())))

    def get_train_dataloader(self) -> DataLoader:
        """Not sharded by accelerate: each process makes its own rows."""
        processes = (self.args.process_index, self.args.world_size)
        passes = Passes(self.recipe.tune, self.batches, self.first_step, *processes)
        # A generator of its own: else a resumed run draws one number more from the global one, and dropout differs.
        return DataLoader(passes, batch_size=None, generator=torch.Generator())

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The passes of a step, cut to the step's length, and the weight of all that is predicted in it."""
        passes, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not passes:  # a finished run was started again
            return passes, None
        step, tune = self.state.global_step, self.recipe.tune
        draw = self.positions.draw(step, tune.steps, passes[0]["input_ids"].shape[1], tune.seed)
        self.attention.table = draw.cos.to(device), draw.sin.to(device)
        passes = [{name: values[:, : draw.tokens] for name, values in one.items()} for one in passes]
        self.step_tokens = len(passes) * passes[0]["input_ids"].numel() * self.args.world_size
        total = sum(target_weights(one["weights"], one.get("documents")).sum() for one in passes)
        total = self.accelerator.gather(total.to(device)).sum()
        if not total > 0:
            raise InputError(f"step {step + 1}: its texts hold nothing to learn; check the data")
        return [one | {"seam": draw.seam} for one in passes], total

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = model(**inputs)
        loss = found["loss"] / num_items_in_batch
        self._tell(found)
        if "regions" in found:
            loss = loss + self.recipe.tune.region_loss / self.args.gradient_accumulation_steps * found["regions"]
        if not torch.isfinite(loss):
            self.stop("loss", loss.item())
        return loss * self.accelerator.num_processes  # which average their gradients

    def _tell(self, found: dict[str, Tensor]) -> None:
        """Gather what readings say of each source, for the report."""
        for source, (nats, tokens) in self.accelerator.unwrap_model(self.model).told.items():
            before = self.by_source.get(source, (0.0, 0))
            self.by_source[source] = (before[0] + nats, before[1] + tokens)
        if "regions" in found:
            before = self.by_source.get(-1, (0.0, 0))
            self.by_source[-1] = (before[0] + float(found["regions"]), before[1] + 1)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # before anything is saved
            self.stop("gradient norm", logs["grad_norm"])
        super().log({**logs, "tokens": self.step_tokens}, *args, **kwargs)

    def stop(self, what: str, value: float) -> None:
        """Raises TrainError that tells the step, and where the last good checkpoint is."""
        step = self.state.global_step + (what == "loss")
        last = last_checkpoint(self.run)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
        raise TrainError(
            f"step {step}: the {what} is {value}; {kept}. Lower learning_rate (now {self.recipe.tune.learning_rate:g}) "
            "or look at the data, and start again"
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What learns alone, once; sharded runs save by their own means (Trainer calls them after this)."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            weights = {name: p.detach().cpu().contiguous() for name, p in trained_parameters(self.model).items()}
            save_file(weights, Path(output_dir) / "model.safetensors", metadata={"format": "pt"})


class Report(TrainerCallback):
    """Tells now and then: step, loss, speed, time left, memory."""

    def __init__(self, by_source: dict[int, tuple[float, int]], names: Sequence[str]) -> None:
        self.first, self.began, self.told, self.tokens = 0, 0.0, 0.0, 0
        self.by_source, self.names = by_source, names

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.first, self.began = state.global_step, time.monotonic()

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs) -> None:
        now, done = time.monotonic(), state.global_step - self.first
        if not (state.is_world_process_zero and logs and "loss" in logs and done):
            return
        self.tokens += logs["tokens"]
        if now - self.told < TELL_S and done > 1 and state.global_step < state.max_steps:
            return
        self.told = now
        left = (now - self.began) / done * (state.max_steps - state.global_step)
        log.info(
            "step %d of %d, loss %.4f, gradient %.3g, %s tokens/s, %s left, peak %.2f GB",
            state.global_step, state.max_steps, logs["loss"], logs["grad_norm"],
            f"{self.tokens / (now - self.began):,.0f}", _duration(left), peak_bytes() / 1e9,
        )  # fmt: skip
        if sum(tokens for _, tokens in self.by_source.values()) > SOURCE_TOKENS:
            log.info("nats by source: %s", ", ".join(self._sources()))
            self.by_source.clear()

    def _sources(self) -> Iterator[str]:
        for source, (nats, tokens) in sorted(self.by_source.items()):
            name = "regions" if source < 0 else self.names[source] if source < len(self.names) else str(source)
            yield f"{name} {nats / tokens:.2f} ({tokens})"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def last_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; what a kill left half written has no readable trainer_state.json."""
    found = []
    for path in run.glob("checkpoint-*"):
        try:
            found.append((int(json.loads((path / "trainer_state.json").read_text())["global_step"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def _arguments(recipe: Recipe, run: Path, device: torch.device, dtype: torch.dtype) -> TrainingArguments:
    tune = recipe.tune
    return TrainingArguments(
        output_dir=str(run),
        max_steps=tune.steps,
        per_device_train_batch_size=tune.batch,
        gradient_accumulation_steps=tune.accumulation,
        learning_rate=tune.learning_rate,
        warmup_steps=tune.warmup_steps,
        lr_scheduler_type=SCHEDULES[tune.schedule],
        weight_decay=tune.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=tune.save_steps,
        save_total_limit=tune.kept,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        ddp_find_unused_parameters=False,
        seed=tune.seed,
    )


def compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Of frozen weights and of arithmetic."""
    named = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    return named.get(recipe.tune.dtype) or checkpoint.pick_dtype(device)


def tune(
    recipe: Recipe,
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
    arguments = _arguments(recipe, run, place, dtype)
    _one_gpu(arguments)
    claim(run, recipe, arguments.world_size)
    if model is None:
        model = _load(base, recipe, place, dtype, arguments.world_size)
    positions = PositionSampler.of(recipe.positions, model)
    torch.manual_seed(recipe.tune.seed)
    adapted = add_adapter(model.to(dtype), recipe.lora, recipe.tune.base)
    if recipe.tune.start:
        start_from(adapted, Path(recipe.tune.start))
    weight = recipe.tune.region_loss
    probe = RegionProbe(bank_regions=BANK_REGIONS, weight=weight) if weight else None
    kind = recipe.tune.attention
    attention = TrainingAttention(kind, selection=recipe.selection, pattern=recipe.groups, probe=probe)
    last = last_checkpoint(run)
    trainer = TuningTrainer(
        model=TuningModel(adapted, attention, dtype),
        args=arguments,
        recipe=recipe,
        batches=batches,
        first_step=int(last.name.split("-")[1]) if last else 0,
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


def _one_gpu(arguments: TrainingArguments) -> None:
    """Refuse several GPUs for one process: Trainer would copy the model to all of them in every step."""
    if arguments.n_gpu > 1:
        raise TrainError(
            f"{arguments.n_gpu} GPUs are visible to one process; start one for each as docs/training.md says (Several "
            "GPUs), or show one with CUDA_VISIBLE_DEVICES=0"
        )


def _load(base: Base, recipe: Recipe, place: torch.device, dtype: torch.dtype, processes: int) -> nn.Module:
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
    install(causal, trainer.attention)
    _activation_checkpointing(causal, trainer.recipe.tune.checkpointing)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would name each frozen weight that a checkpoint does not hold
    try:
        with merged_lora(adapted) if trainer.args.world_size == 1 else nullcontext():
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise TrainError(
            f"step {trainer.state.global_step + 1}: the GPU's memory is full, more than was estimated; make tokens or "
            "batch smaller, and choose another folder with --run"
        ) from error
    except OSError as error:
        raise TrainError(f"{trainer.run}: a checkpoint cannot be written or read ({error}); make room there") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        _activation_checkpointing(causal, False)
        uninstall(causal)
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


def claim(run: Path, recipe: Recipe, processes: int = 1) -> None:
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
