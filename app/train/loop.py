"""The training loop under pretraining and tuning: transformers' Trainer over rows that each process makes itself.

A run can be killed at any moment: started again it goes on from its last checkpoint and gives the same losses.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from app.errors import TrainError
from app.system import duration, peak_bytes
from app.train.attention import TrainingAttention, install, uninstall

log = logging.getLogger(__name__)
TELL_S = 10.0
TOLD_WEIGHT = 8000  # of what was learnt, before the loss by name is told


def last_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; what a kill left half written has no readable trainer_state.json."""
    found = []
    for path in run.glob("checkpoint-*"):
        try:
            found.append((int(json.loads((path / "trainer_state.json").read_text())["global_step"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def step_of(checkpoint: Path | None) -> int:
    """Steps that were done when a checkpoint was written; 0 for None."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def arguments(run: Path, steps: int, **options: Any) -> TrainingArguments:
    """What every run shares, with `options` of TrainingArguments."""
    return TrainingArguments(
        output_dir=str(run),
        max_steps=steps,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        **options,
    )


class TrainingLoop(Trainer):
    """Trainer that takes each process's rows as they are; a kind of training says what their loss is.

    Attributes:
        told: (nats, weight) by name of what was learnt, for the report.
        tokens: read since the last report, by all processes.
    """

    def __init__(self, *, rows: IterableDataset, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows, self.tokens, self.run = rows, 0, Path(self.args.output_dir)
        self.told: dict[str, tuple[float, float]] = {}
        self.remove_callback(PrinterCallback)
        self.add_callback(Report(self.told))

    def get_train_dataloader(self) -> DataLoader:
        """Not sharded by accelerate: each process makes its own rows."""
        # A generator of its own: else a resumed run draws one number more from the global one, and dropout differs.
        workers = self.args.dataloader_num_workers
        return DataLoader(self.rows, batch_size=None, num_workers=workers, generator=torch.Generator())

    def pass_loss(self, model: nn.Module, inputs: dict[str, Any], weight: Tensor | None) -> Tensor:
        """Loss of one pass of one process, as a share of the whole step's; `weight` is that of its targets."""
        raise NotImplementedError

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.pass_loss(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self.stop("loss", loss.item())
        return loss * self.accelerator.num_processes  # which average their gradients

    def tell(self, name: str, nats: float, weight: float) -> None:
        before = self.told.get(name, (0.0, 0.0))
        self.told[name] = (before[0] + nats, before[1] + weight)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # before anything is saved
            self.stop("gradient norm", logs["grad_norm"])
        super().log({**logs, "tokens": self.tokens}, *args, **kwargs)
        self.tokens = 0

    def stop(self, what: str, value: float) -> None:
        """Raises TrainError that tells the step, and where the last good checkpoint is."""
        step = self.state.global_step + (what == "loss")
        last = last_checkpoint(self.run)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved yet"
        raise TrainError(
            f"step {step}: the {what} is {value}; {kept}. Lower learning_rate (now {self.args.learning_rate:g}) "
            "or look at the data, and start again"
        )

    def train_under(self, causal: nn.Module, attention: TrainingAttention, last: Path | None) -> None:
        """Train, or go on from a checkpoint, with our attention in the place of the model's own.

        Raises:
            TrainError: the GPU's memory is full, or a checkpoint cannot be written or read.
        """
        install(causal, attention)
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it would name each frozen weight that a checkpoint does not hold
        try:
            self.train(resume_from_checkpoint=str(last) if last else None)
        except torch.OutOfMemoryError as error:
            raise TrainError(
                f"step {self.state.global_step + 1}: the GPU's memory is full, more than was estimated; make tokens "
                "or batch smaller, and choose another folder with --run"
            ) from error
        except OSError as error:
            raise TrainError(
                f"{self.run}: a checkpoint cannot be written or read ({error}); make room there"
            ) from error
        finally:
            transformers_logging.set_verbosity(verbosity)
            uninstall(causal)


class Report(TrainerCallback):
    """Tells now and then: step, loss, speed, time left, memory, and the loss by name."""

    def __init__(self, by_name: dict[str, tuple[float, float]]) -> None:
        self.first, self.began, self.told, self.tokens = 0, 0.0, 0.0, 0
        self.by_name = by_name

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
            f"{self.tokens / (now - self.began):,.0f}", duration(left), peak_bytes() / 1e9,
        )  # fmt: skip
        if sum(weight for _, weight in self.by_name.values()) > TOLD_WEIGHT:
            told = (f"{name} {nats / weight:.2f} ({weight:.0f})" for name, (nats, weight) in self.by_name.items())
            log.info("nats: %s", ", ".join(sorted(told)))
            self.by_name.clear()
