"""In what a CPU keeps the weights of linear layers: float32, or float16 that is multiplied in float32 (FBGEMM).

Where neither AVX-512 nor AMX is there, reading the weights is what a token of an answer waits for. Half as many bytes
take half as long, and rounding them to float16 changes less than rounding keys and values to bfloat16 does.
"""

import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import ConfigError

LEAST_BYTES = 64_000_000  # float32 weights that fit into a CPU's caches stay as they are
MANY_ROWS = 128
STREAMED_BYTES = 96_000_000  # of weights that are timed, one after the other
TRIES = 3
GAIN = 0.95  # another kind has to take less than this part of float32's time
MOST_ERROR = 2e-3  # of a product, against float32, relative to the largest of its elements


class HalfLinear(nn.Module):
    """One or more linear layers over the same input, with weights in float16 and everything else in float32.

    Rows of a weight are numbered from the first layer's on. A value beyond float16's range makes it a `ValueError`.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat([layer.weight.detach().float() for layer in layers])
        _check_range(weight)
        biases = [layer.bias for layer in layers]
        bias = torch.cat([b.detach().float() for b in biases]) if all(b is not None for b in biases) else None
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        with warnings.catch_warnings():  # that it may be renamed: `offered` finds out
            warnings.simplefilter("ignore")
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.ops.quantized.linear_dynamic_fp16(x.reshape(-1, self.in_features), self._packed)
        return rows.view(*x.shape[:-1], self.out_features)


class _Shared:
    """A product that several modules take their columns of, one after the other."""

    def __init__(self, linear: HalfLinear, parts: int) -> None:
        self.linear, self._parts = linear, parts
        self._asked: Tensor | None = None
        self._product: Tensor | None = None
        self._left = 0

    def product(self, x: Tensor) -> Tensor:
        """The whole product of x; made once for all who ask with the same tensor."""
        if self._product is None or self._asked is not x:
            self._asked, self._product, self._left = x, self.linear(x), self._parts
        found, self._left = self._product, self._left - 1
        if not self._left:
            self._asked = self._product = None
        return found


class _Part(nn.Module):
    """One of several linear layers over the same input, which are multiplied together."""

    def __init__(self, shared: _Shared, columns: slice, layer: nn.Linear) -> None:
        super().__init__()
        self.shared, self._columns = shared, columns
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.shared.product(x)[..., self._columns]


KINDS = ("float32", "float16")
JOINED = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


def joined(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The products of several layers over the same input side by side; one product where they are kept so."""
    first = layers[0]
    if isinstance(first, _Part) and all(isinstance(x, _Part) and x.shared is first.shared for x in layers):
        return first.shared.linear
    return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)


def offered() -> bool:
    """Whether this PyTorch multiplies float16 weights with float32 rows on this CPU."""
    try:
        made = HalfLinear([nn.Linear(8, 8)])(torch.ones(1, 8))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool(torch.isfinite(made).all())


def convert(model: Any) -> None:
    """Give a Llama-like model's linear layers float16 weights; those over the same input are multiplied together.

    One block after the other, so that it never takes much more memory than the model did.

    Raises:
        ValueError: a weight is beyond float16's range; the model is as it was.
    """
    for layer in model.modules():
        if type(layer) is nn.Linear:
            _check_range(layer.weight)
    for block in model.model.layers:
        _convert_block(block)
    model.lm_head = HalfLinear([model.lm_head])


def _check_range(weight: Tensor) -> None:
    if not weight.detach().abs().amax() < torch.finfo(torch.float16).max:
        raise ValueError("a weight is beyond float16's range")


def _convert_block(block: nn.Module) -> None:
    for holder, names in JOINED:
        owner = getattr(block, holder)
        layers = [getattr(owner, name, None) for name in names]
        if all(type(layer) is nn.Linear for layer in layers) and _alike(layers):
            for name, part in zip(names, _joined(layers), strict=True):
                setattr(owner, name, part)
    for owner in list(block.modules()):
        for name, layer in list(owner.named_children()):
            if type(layer) is nn.Linear:
                setattr(owner, name, HalfLinear([layer]))


def _alike(layers: Sequence[nn.Linear]) -> bool:
    return len({(layer.in_features, layer.bias is None) for layer in layers}) == 1


def _joined(layers: Sequence[nn.Linear]) -> Iterator[_Part]:
    shared, first = _Shared(HalfLinear(layers), len(layers)), 0
    for layer in layers:
        yield _Part(shared, slice(first, first + layer.out_features), layer)
        first += layer.out_features


def settle(model: Any, wanted: str, known: MutableMapping[str, str] | None = None, key: str = "") -> str:
    """Keep a freshly loaded model's weights as `wanted`: `float32` (as they were loaded), `float16`, or `auto`.

    Args:
        known, key: see `fastest`.

    Returns:
        what they are kept in now.

    Raises:
        ConfigError: float16 is wanted and cannot be had.
    """
    loaded = str(model.dtype).removeprefix("torch.")
    kind = fastest(model, known, key) if wanted == "auto" else wanted
    if kind == "float32":
        return loaded
    if model.dtype != torch.float32 or model.device.type != "cpu" or not offered():
        where = f"this model runs in {loaded} on {model.device.type}"
        raise ConfigError(f"--weights float16: {where}, where it is of no use; leave it out")
    try:
        convert(model)
    except ValueError as error:
        if wanted == "auto":
            return loaded
        raise ConfigError(f"--weights float16: {error}; take --weights float32") from error
    return "float16"


def fastest(model: Any, known: MutableMapping[str, str] | None = None, key: str = "") -> str:
    """`float16` or `float32`: what this CPU multiplies this model's weights fastest in, timed for one row and for many.

    Half of what is measured is one row: an answer is made row by row, and a text is read once.

    Args:
        known: what was found before, by `key`; what is found is put there.
    """
    if known is not None and known.get(key) in KINDS:
        return known[key]
    found = _timed(model)
    if known is not None:
        known[key] = found
    return found


def _timed(model: Any) -> str:
    size = sum(p.numel() * p.itemsize for p in model.parameters())
    layers = list(_streamed(model))
    if model.dtype != torch.float32 or size < LEAST_BYTES or not layers or not offered():
        return "float32"
    taken = [_compared(layers, rows) for rows in (1, MANY_ROWS)]
    return "float16" if sum(taken) < GAIN * len(taken) else "float32"


def _streamed(model: Any) -> Iterator[nn.Linear]:
    """The largest linear layer of each block, until they are more than a CPU's caches hold, as they never do in use."""
    taken = 0
    for block in model.model.layers:
        layers = [layer for layer in block.modules() if type(layer) is nn.Linear]
        if layers and taken < STREAMED_BYTES:
            largest = max(layers, key=lambda layer: layer.weight.numel())
            taken += largest.weight.numel() * largest.weight.itemsize
            yield largest


def _compared(layers: Sequence[nn.Linear], rows: int) -> float:
    """Time of float16 weights as a share of float32's, one layer after the other; infinite where products differ."""
    generator = torch.Generator().manual_seed(0)
    halves = [HalfLinear([layer]) for layer in layers]
    inputs = [torch.randn(rows, layer.in_features, generator=generator) for layer in layers]
    for half, layer, x in zip(halves, layers, inputs, strict=True):
        exact = layer(x)
        if (half(x) - exact).abs().amax() > MOST_ERROR * exact.abs().amax():
            return float("inf")
    return _time_s(halves, inputs) / _time_s(layers, inputs)


def _time_s(layers: Sequence[nn.Module], inputs: Sequence[Tensor]) -> float:
    """The fastest of a few rounds, in seconds of this process."""
    times = []
    for _ in range(TRIES):
        began = time.process_time()
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        times.append(time.process_time() - began)
    return max(min(times), 1e-7)
