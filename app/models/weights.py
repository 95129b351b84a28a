"""In what a CPU keeps the weights of linear layers, found by timing where the user does not say.

Reading the weights is what a token of an answer waits for. Models in float32 (no AVX-512, no AMX) may take float16 that
is multiplied in float32 (FBGEMM): half the bytes, and a smaller change than rounding keys and values to bfloat16 is.
Models in bfloat16 may take a second copy in int8 for the single rows of an answer; texts are read in bfloat16.
"""

import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.errors import ConfigError

LEAST_BYTES = 64_000_000  # float32 weights that fit into a CPU's caches stay as they are
MANY_ROWS = 128
STREAMED_BYTES = 96_000_000  # of weights that are timed, one after the other
TRIES = 3
GAIN = 0.95  # another kind has to take less than this part of float32's time
MOST_ERROR = {"float16": 2e-3, "int8": 3e-2}  # of a product, relative to the largest of its elements
FEW_ROWS = 4  # int8 is multiplied row by row: more rows are faster in bfloat16


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


class ByteLinear(nn.Module):
    """One or more linear layers over the same input: bfloat16 as it was loaded, and int8 for single rows beside it.

    Each row of the weight has a scale of its own, so that its largest element is 127.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        weights, biases = [layer.weight.detach() for layer in layers], [layer.bias for layer in layers]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = torch.cat([b.detach() for b in biases]) if all(b is not None for b in biases) else None
        self.out_features, self.in_features = self.weight.shape
        most = self.weight.abs().amax(1).float()
        if not torch.isfinite(most).all():
            raise ValueError("a weight is not a number")
        self.scales = (most / 127).clamp(min=1e-30).to(torch.bfloat16)
        self.codes = torch.empty(self.weight.shape, dtype=torch.int8)
        for rows in torch.arange(self.out_features).split(PACKED_ROWS):
            exact = self.weight[rows].float() / self.scales[rows].float()[:, None]
            self.codes[rows] = exact.round_().clamp_(-127, 127).to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def few(self, x: Tensor) -> Tensor:
        """The product of a few rows [B, in] of any type, in int8 where that is faster; bfloat16 [B, out]."""
        x = x.to(self.weight.dtype)
        if len(x) > FEW_ROWS:
            return self(x)
        product = torch._weight_int8pack_mm(x, self.codes, self.scales)
        return product if self.bias is None else product + self.bias


class _Shared:
    """A product that several modules take their columns of, one after the other."""

    def __init__(self, linear: nn.Module, parts: int) -> None:
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


KINDS = {"float16": HalfLinear, "int8": ByteLinear}  # what may be taken instead of what was loaded
FROM = {"float16": torch.float32, "int8": torch.bfloat16}
PACKED_ROWS = 4096  # of a weight that are made int8 at a time
TOLD = {"int8": "bfloat16, int8 for answers"}
JOINED = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


def joined(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The products of several layers over the same few rows, of any type, side by side; one where they are kept so."""
    if (whole := _whole(layers)) is not None:
        return few(whole)
    parts = [few(layer) for layer in layers]
    return lambda x: torch.cat([part(x) for part in parts], dim=-1)


def many(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The same for many rows, of the layers' own type."""
    return _whole(layers) or (lambda x: torch.cat([layer(x) for layer in layers], dim=-1))


def _whole(layers: Sequence[nn.Module]) -> nn.Module | None:
    """What multiplies all of them at once; None where nothing does."""
    first = layers[0]
    if isinstance(first, _Part) and all(isinstance(x, _Part) and x.shared is first.shared for x in layers):
        return first.shared.linear
    return first if len(layers) == 1 else None


def few(layer: Any) -> Callable[[Tensor], Tensor]:
    """A layer's product of a few rows of any type."""
    if isinstance(layer, ByteLinear):
        return layer.few
    kind = layer.weight.dtype if type(layer) is nn.Linear else torch.float32
    return layer if kind == torch.float32 else lambda x: layer(x.to(kind))


def offered(kind: str = "float16") -> bool:
    """Whether this PyTorch multiplies such weights on this CPU."""
    try:
        layer = KINDS[kind]([nn.Linear(32, 32).to(FROM[kind])])
        made = layer.few(torch.ones(1, 32)) if isinstance(layer, ByteLinear) else layer(torch.ones(1, 32))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool(torch.isfinite(made).all())


def convert(model: Any, kind: str = "float16") -> None:
    """Give a Llama-like model's linear layers such weights; those over the same input are multiplied together.

    One block after the other, so that it never takes much more memory than the model did.

    Raises:
        ValueError: a weight is beyond the kind's range; the model is as it was.
    """
    for layer in model.modules():
        if type(layer) is nn.Linear:
            _check_range(layer.weight)
    for block in model.model.layers:
        _convert_block(block, KINDS[kind])
    model.lm_head = KINDS[kind]([model.lm_head])


def _check_range(weight: Tensor) -> None:
    if not weight.detach().abs().amax() < torch.finfo(torch.float16).max:
        raise ValueError("a weight is beyond float16's range")


def _convert_block(block: nn.Module, kind: type) -> None:
    for holder, names in JOINED:
        owner = getattr(block, holder)
        layers = [getattr(owner, name, None) for name in names]
        if all(type(layer) is nn.Linear for layer in layers) and _alike(layers):
            for name, part in zip(names, _joined(layers, kind), strict=True):
                setattr(owner, name, part)
    for owner in list(block.modules()):
        for name, layer in list(owner.named_children()):
            if type(layer) is nn.Linear:
                setattr(owner, name, kind([layer]))


def _alike(layers: Sequence[nn.Linear]) -> bool:
    return len({(layer.in_features, layer.bias is None) for layer in layers}) == 1


def _joined(layers: Sequence[nn.Linear], kind: type) -> Iterator[_Part]:
    shared, first = _Shared(kind(layers), len(layers)), 0
    for layer in layers:
        yield _Part(shared, slice(first, first + layer.out_features), layer)
        first += layer.out_features


def loaded_in(wanted: str, device: torch.device, usual: torch.dtype) -> torch.dtype:
    """The data type to load a model in whose weights are to be kept as `wanted`; `usual` where it is left open."""
    kind = FROM.get(wanted) or getattr(torch, wanted, None)
    return usual if device.type != "cpu" or kind is None else kind


def settle(model: Any, wanted: str, known: MutableMapping[str, str] | None = None, key: str = "") -> str:
    """Keep a freshly loaded model's weights as `wanted`: a name of KINDS, as they were loaded, or `auto`.

    Args:
        known, key: see `fastest`.

    Returns:
        what they are kept in now.

    Raises:
        ConfigError: what is wanted cannot be had.
    """
    loaded = str(model.dtype).removeprefix("torch.")
    kind = fastest(model, known, key) if wanted == "auto" else wanted
    if kind not in KINDS:
        return loaded
    if model.dtype != FROM[kind] or model.device.type != "cpu" or not offered(kind):
        where = f"this model runs in {loaded} on {model.device.type}"
        raise ConfigError(f"--weights {kind}: {where}, where it is of no use; leave it out")
    try:
        convert(model, kind)
    except ValueError as error:
        if wanted == "auto":
            return loaded
        raise ConfigError(f"--weights {kind}: {error}; take --weights float32") from error
    return kind


def fastest(model: Any, known: MutableMapping[str, str] | None = None, key: str = "") -> str:
    """A name of KINDS, or the type it was loaded in: what this CPU multiplies this model's weights fastest in.

    Timed for one row, and for many where these would be multiplied otherwise too. Half of what is measured is one row:
    an answer is made row by row, and a text is read once.

    Args:
        known: what was found before, by `key`; what is found is put there.
    """
    loaded = str(model.dtype).removeprefix("torch.")
    usable = {loaded, *(kind for kind, dtype in FROM.items() if dtype == model.dtype)}
    if known is not None and known.get(key) in usable:
        return known[key]
    found = _timed(model) or loaded
    if known is not None:
        known[key] = found
    return found


def _timed(model: Any) -> str | None:
    size = sum(p.numel() for p in model.parameters()) * torch.float32.itemsize
    layers = list(_streamed(model))
    kind = next((kind for kind, dtype in FROM.items() if dtype == model.dtype), None)
    if kind is None or model.device.type != "cpu" or size < LEAST_BYTES or not layers or not offered(kind):
        return None
    rows = (1,) if kind == "int8" else (1, MANY_ROWS)
    taken = [_compared(layers, many, kind) for many in rows]
    return kind if sum(taken) < GAIN * len(taken) else None


def _streamed(model: Any) -> Iterator[nn.Linear]:
    """The largest linear layer of each block, until they are more than a CPU's caches hold, as they never do in use."""
    taken = 0
    for block in model.model.layers:
        layers = [layer for layer in block.modules() if type(layer) is nn.Linear]
        if layers and taken < STREAMED_BYTES:
            largest = max(layers, key=lambda layer: layer.weight.numel())
            taken += largest.weight.numel() * largest.weight.itemsize
            yield largest


def _compared(layers: Sequence[nn.Linear], rows: int, kind: str = "float16") -> float:
    """Time of such weights as a share of the loaded ones', layer by layer; infinite where products differ."""
    generator = torch.Generator().manual_seed(0)
    made = [few(KINDS[kind]([layer])) for layer in layers]
    inputs = [torch.randn(rows, layer.in_features, generator=generator).to(layer.weight.dtype) for layer in layers]
    for new, layer, x in zip(made, layers, inputs, strict=True):
        exact = layer(x)
        if (new(x) - exact).abs().amax() > MOST_ERROR[kind] * exact.abs().amax():
            return float("inf")
    return _time_s(made, inputs) / _time_s(layers, inputs)


def _time_s(layers: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor]) -> float:
    """The fastest of a few rounds, in seconds of this process."""
    times = []
    for _ in range(TRIES):
        began = time.process_time()
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        times.append(time.process_time() - began)
    return max(min(times), 1e-7)
