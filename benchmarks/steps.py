"""One step of tuning as the product takes it, and what it costs: seconds, floating-point operations, bytes."""

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from app.memory.config import AttentionConfig
from app.models.rope import PositionConfig
from app.train.attention import TrainingAttention, install
from app.train.tune.lora import add_adapter, causal_model, trained_parameters
from app.train.tune.positions import PositionSampler
from app.train.tune.recipe import LoraRecipe
from app.train.tune.tuner import TuningModel

aten = torch.ops.aten
BACKWARD_SHARE = 2.5  # of the products of fused attention's backward pass to those of its forward pass


@dataclass(frozen=True)
class StepConfig:
    """What one step trains.

    Attributes:
        attention: a kind of app/train/attention.py.
        targets: LoRA targets such as `qkvo` or `ko`; embeddings and norms learn beside them.
        budget_tokens: with `ms`, tokens that one query may attend to.
    """

    attention: str
    tokens: int
    targets: str = "ko"
    budget_tokens: int = 512
    positions: PositionConfig = PositionConfig()
    learning_rate: float = 2e-5


class Stepper:
    """A model with its adapter, attention and optimizer, ready to take steps."""

    def __init__(self, model: nn.Module, config: StepConfig, selection: AttentionConfig | None = None) -> None:
        """
        Args:
            model: a causal model as transformers makes it, in the data type of its arithmetic. It is changed.
            selection: the recipe of `ms`; None means the defaults with the budget of `config`.
        """
        self.dtype, device = model.dtype, model.device
        sampler = PositionSampler.of(config.positions, model)
        adapted = add_adapter(model, LoraRecipe(targets=config.targets))
        causal = causal_model(adapted)
        chosen = (
            (selection or AttentionConfig(budget_tokens=config.budget_tokens)) if config.attention == "ms" else None
        )
        self.attention = TrainingAttention(config.attention, selection=chosen)
        install(causal, self.attention)
        causal.gradient_checkpointing_enable({"use_reentrant": False})
        draw = sampler.draw(0, 1, config.tokens, seed=0)
        self.attention.table = (draw.cos.to(device), draw.sin.to(device))
        self.adapted, self.model = adapted, TuningModel(adapted, self.attention, self.dtype).train()
        self.optimizer = torch.optim.AdamW(trained_parameters(adapted).values(), lr=config.learning_rate)

    def step(self, ids: Tensor) -> float:
        """One step on [B, T] token ids; returns the mean loss in nats."""
        loss = self.gradients(ids)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def gradients(self, ids: Tensor) -> Tensor:
        """The loss, and its gradients in the parameters that learn."""
        weights = torch.ones(ids.shape, device=ids.device)
        with torch.autocast(ids.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
            loss = self.model(ids, weights)["loss"] / (ids.numel() - ids.shape[0])
        loss.backward()
        return loss.detach()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that come to life inside it, and the most that lived at once. CPU, one thread.

    Scratch memory inside an operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        self._refs: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen and storage._cdata not in before:
                    self._track(storage)
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: object) -> None:
            self.now -= size
            self._seen.discard(key)
            self._refs.pop(key, None)

        self._refs[key] = weakref.ref(storage, freed)


def _fused(q: Tensor, k: Tensor, causal: bool) -> int:
    heads = (q.shape[0], q.shape[1], k.shape[2], k.shape[3])
    products = sdpa_flop_count(tuple(q.shape), heads, heads)
    return products // 2 if causal and q.shape[2] == k.shape[2] else products  # half of the square is never computed


def _forward(q, k, v, dropout_p=0.0, is_causal=False, *args, out_val=None, **kwargs) -> int:
    return _fused(q, k, is_causal)


def _backward(grad, q, k, v, out, logsumexp, dropout_p, is_causal, *args, out_val=None, **kwargs) -> int:
    return int(BACKWARD_SHARE * _fused(q, k, is_causal))


_forward._get_raw = _backward._get_raw = True
FUSED_ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def counted(run: Callable[[], Any]) -> dict[str, int]:
    """Floating-point operations of all matrix products and attention, and the peak of tensor bytes. CPU only."""
    live, operations = LiveBytes(), FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU)
    with operations, live:
        run()
    return {"flops": operations.get_total_flops(), "peak_bytes": live.peak}


def timed(run: Callable[[], Any], times: int) -> dict[str, float]:
    """Median seconds of a few runs, on the clock and of this processor."""
    clock, cpu = [], []
    for _ in range(times):
        before = time.perf_counter(), time.process_time()
        run()
        clock.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return {
        "seconds": round(statistics.median(clock), 4),
        "cpu_seconds": round(statistics.median(cpu), 4),
        "least_seconds": round(min(clock), 4),
        "most_seconds": round(max(clock), 4),
    }
