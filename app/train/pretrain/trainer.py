"""Train a model from scratch in stages of growing length, over the training loop."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from app.errors import ConfigError
from app.memory.config import AttentionConfig
from app.train.attention import TrainingAttention
from app.train.loop import TrainingLoop, arguments, last_checkpoint, step_of
from app.train.pretrain.data import TASKS, SampleMaker
from app.train.pretrain.induction import lay_down_induction
from app.train.pretrain.region_loss import RegionProbe

LOSS_CHUNK = 4096
PROBED_ROWS = 48


def check_shares(shares: dict[str, float]) -> None:
    """Raises ConfigError for a task that does not exist or a share that is negative."""
    wrong = [f"{task} = {share}" for task, share in shares.items() if task not in TASKS or share < 0]
    if wrong:
        raise ConfigError(f"shares: {', '.join(wrong)}; tasks are {', '.join(TASKS)}, shares at least 0")


@dataclass(frozen=True)
class Stage:
    """Train at one sequence length until `steps` steps are done.

    Attributes:
        tokens: length of each sequence.
        batch: sequences in one step.
        shares: share of each task in the samples; empty means the recipe's.
        region_loss: weight of the loss on region scores (app/train/pretrain/region_loss.py); 0 leaves it out.
    """

    tokens: int
    batch: int
    steps: int
    shares: dict[str, float] = field(default_factory=dict)
    region_loss: float = 0.0

    def __post_init__(self) -> None:
        if min(self.tokens, self.batch, self.steps) < 1:
            raise ConfigError(f"stage {self}: tokens, batch and steps must be positive")
        check_shares(self.shares)


@dataclass(frozen=True)
class PretrainingRecipe:
    """What a recipe's [pretrain] table holds.

    Attributes:
        induction: start from weights that can already copy (app/train/pretrain/induction.py), not from noise.
        start: folder of a checkpoint to go on from instead; its architecture is taken over.
        attention: `dense`, or `ms` for MS-Attn: selection as at inference, gradients through attention alone.
        compile: compile the model before it is trained (torch.compile); takes a minute, and pays on a GPU.
        workers: processes that make samples beside the training; a GPU is faster than one can.
        probe_steps: steps between probes (app/train/pretrain/probes.py).
        quoted: answers of the question sets are learnt as quotations (pretrain/quoting.py), not in their own words.
        text_share: share of the tokens outside answers whose prediction is learnt, drawn anew each time and weighing
            the more: the logits of a large vocabulary cost a small model half of its time.
        budget_tokens: with `ms`, tokens that one query may attend to; less than a stage's length, or nothing is chosen.
    """

    hidden: int = 256
    intermediate: int = 704
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    rope_theta: float = 100_000.0
    induction: bool = True
    start: str = ""
    attention: str = "dense"
    budget_tokens: int = 1024
    compile: bool = False
    workers: int = 0
    probe_steps: int = 250
    quoted: bool = False
    text_share: float = 1.0
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    weight_decay: float = 0.05
    seed: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        check_shares(self.shares)
        if self.workers < 0 or self.probe_steps < 1:
            raise ConfigError(
                f"workers = {self.workers}, probe_steps = {self.probe_steps}: must be at least 0 and at least 1"
            )
        if not 0 < self.text_share <= 1:
            raise ConfigError(f"text_share = {self.text_share}: must lie above 0 and be at most 1")
        if self.attention not in ("dense", "ms"):
            raise ConfigError(f"attention = {self.attention}: not known; choose dense or ms")
        if self.attention == "ms" and any(stage.region_loss for stage in self.stages):
            raise ConfigError("attention = ms: the region loss needs dense attention; set region_loss = 0")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def tokens_after(self, steps: int) -> int:
        """Tokens that the first steps train on."""
        tokens = 0
        for stage in self.stages:
            tokens += stage.tokens * stage.batch * min(steps, stage.steps)
            steps = max(0, steps - stage.steps)
        return tokens

    @property
    def trained_tokens(self) -> int:
        return max(stage.tokens for stage in self.stages)


class StagedSamples(IterableDataset):
    """The rows of one process, step after step; each row is reproducible from (seed, step, row)."""

    def __init__(
        self, maker: SampleMaker, config: PretrainingRecipe, first_step: int, process: int = 0, processes: int = 1
    ) -> None:
        self.maker, self.config, self.first_step = maker, config, first_step
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Workers of a DataLoader take every n-th step each; it asks them in turn, so the order stays."""
        worker, step = get_worker_info(), 0
        turn, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for stage in self.config.stages:
            for _ in range(stage.steps):
                if step >= self.first_step and (step - self.first_step) % workers == turn:
                    yield self._batch(stage, step)
                step += 1

    def _batch(self, stage: Stage, step: int) -> dict[str, Any]:
        shares = stage.shares or self.config.shares
        samples = [
            self.maker.draw(random.Random(f"{self.config.seed}-{step}-{row}"), stage.tokens, shares)
            for row in range(self.process, stage.batch, self.processes)
        ]
        return {
            "input_ids": torch.stack([torch.from_numpy(s.token_ids) for s in samples]),
            "weights": torch.stack([torch.from_numpy(s.weights) for s in samples]),
            "tasks": [s.task for s in samples],
            "region_loss": stage.region_loss,
        }


def thinned(weights: Tensor, share: float) -> Tensor:
    """Weights of which, outside answers, only a random share is left, with the same sum on average.

    Args:
        weights: [B, T] weight of predicting each token; answers weigh more than 1.
    """
    if share == 1:
        return weights
    kept = torch.rand_like(weights) < share
    return torch.where(weights > 1, weights, kept * weights / share)


def weighted_losses(hidden: Tensor, head: Tensor, token_ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted next-token cross entropy of each row, a few places at a time.

    Args:
        hidden: [B, T, H] final hidden states.
        head: [V, H].
        token_ids: [B, T].
        weights: [B, T] weight of predicting each token.

    Returns:
        [B], float32: weighted sums, in nats. Over the sum of `weights[:, 1:]` they are nats per token.
    """
    kept = weights[:, 1:] > 0
    row = kept.nonzero()[:, 0]
    states, targets, weight = hidden[:, :-1][kept], token_ids[:, 1:][kept], weights[:, 1:][kept]
    totals = hidden.new_zeros(len(hidden), dtype=torch.float32)
    for i in range(0, len(states), LOSS_CHUNK):
        logits = F.linear(states[i : i + LOSS_CHUNK], head)  # [chunk, V]
        losses = F.cross_entropy(logits.float(), targets[i : i + LOSS_CHUNK], reduction="none")
        totals = totals.index_add(0, row[i : i + LOSS_CHUNK], losses * weight[i : i + LOSS_CHUNK])
    return totals


class WeightedTrainer(TrainingLoop):
    """A loss that weighs tokens; the model's own head is asked for the last place alone."""

    def __init__(self, *, probe: RegionProbe | None, text_share: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.probe, self.text_share = probe, text_share

    def pass_loss(self, model: nn.Module, inputs: dict[str, Any], weight: Tensor | None = None) -> Tensor:
        ids, weights = inputs["input_ids"], thinned(inputs["weights"], self.text_share)
        share, processes = inputs["region_loss"] if self.probe else 0.0, self.accelerator.num_processes
        self.tokens += ids.numel() * processes
        if self.probe:
            self.probe.start(probed_rows(weights) if share else None)
        # Through the model's own forward pass, so that several processes share gradients.
        out = model(input_ids=ids, use_cache=False, logits_to_keep=1, output_hidden_states=True)
        head = self.accelerator.unwrap_model(model).lm_head.weight
        nats, counted = weighted_losses(out.hidden_states[-1], head, ids, weights), weights[:, 1:].sum(1)
        for task, n, w in zip(inputs["tasks"], nats.tolist(), counted.tolist(), strict=True):
            self.tell(task, n, w)
        loss = nats.sum() / self.accelerator.gather(counted.sum()).sum()
        if share:
            regions = torch.stack(list(self.probe.losses.values())).mean()
            self.tell("regions", regions.item(), 1.0)
            loss = loss + share / processes * regions
        return loss


def probed_rows(weights: Tensor) -> Tensor:
    """Places of the queries that the region loss looks at: those that predict what weighs most.

    Args:
        weights: [B, T] loss weight of predicting each token.

    Returns:
        [B, min(T - 1, PROBED_ROWS)].
    """
    noise = torch.rand_like(weights[:, 1:]) * 0.01  # else ties fall to the first tokens
    return (weights[:, 1:] + noise).topk(min(PROBED_ROWS, weights.shape[1] - 1), dim=1).indices


def new_model(config: PretrainingRecipe, tokenizer) -> LlamaForCausalLM:
    """A Llama with grouped heads and tied embeddings: fresh, or the one that the recipe starts from."""
    torch.manual_seed(config.seed)
    if config.start:
        return LlamaForCausalLM.from_pretrained(config.start, dtype=torch.float32)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.trained_tokens,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    if config.induction:
        lay_down_induction(model, torch.Generator().manual_seed(config.seed))
    return model


def attention_of(config: PretrainingRecipe) -> TrainingAttention:
    """The recipe's attention, with a probe when region scores are trained."""
    if config.attention == "ms":
        return TrainingAttention("ms", selection=AttentionConfig(budget_tokens=config.budget_tokens))
    probed = any(stage.region_loss for stage in config.stages)
    return TrainingAttention("full", probe=RegionProbe() if probed else None)


def pretrain(
    config: PretrainingRecipe, maker: SampleMaker, tokenizer, run: Path, callbacks: Sequence[TrainerCallback] = ()
) -> LlamaForCausalLM:
    """Train, or go on from the newest checkpoint in `run`. Several processes share the rows of each step.

    Returns:
        The trained model, float32, on the CPU.
    """
    checkpoint = last_checkpoint(run)
    first_step = step_of(checkpoint)
    if checkpoint and first_step >= config.steps:
        return LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = new_model(config, tokenizer)
    args = arguments(
        run,
        config.steps,
        per_device_train_batch_size=1,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": max(1, int(config.decay_share * config.steps)), "min_lr_ratio": 0.05},
        weight_decay=config.weight_decay,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        torch_compile=config.compile,
        dataloader_num_workers=config.workers,
        logging_steps=20,
        logging_strategy="steps",
        save_steps=100,
        save_total_limit=2,
        seed=config.seed,
    )
    attention = attention_of(config)
    trainer = WeightedTrainer(
        model=model,
        probe=attention.probe,
        text_share=config.text_share,
        args=args,
        rows=StagedSamples(maker, config, first_step, args.process_index, args.world_size),
        callbacks=list(callbacks),
    )
    trainer.train_under(model, attention, checkpoint)
    return trainer.model.to("cpu", torch.float32)
