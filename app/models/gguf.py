"""A GGUF file as a checkpoint: its config, its weights under the names of transformers, its tokenizer.

The container and the quantizations are read by the package gguf; what llama.cpp changed is changed back: the order of
rows in queries and keys of Llama, names, and a rope scaling that it keeps as a tensor. Weights are read when asked for.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InputError, ModelError
from app.models import gguf_tokenizer
from app.models.files import GGUF_LIST, Stored, expected_shapes, whole_folder
from app.models.gguf_header import SPLIT_NAME, Header, parts_of, read_header

# llama.cpp's names of architectures -> model types of transformers. Mistral's files say "llama".
ARCHITECTURES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3"}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
FORMAT = 1  # raise it when descriptions must be written anew
QUANTIZATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
TURNED = ("attn_q", "attn_k")  # rows that llama.cpp keeps in pairs, for Llama and Mistral
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Gguf:
    """A model in GGUF, looked at; see `open_gguf`.

    Attributes:
        files: all parts, the one with the metadata first.
        metadata: values by key.
    """

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def architecture(self) -> str:
        return self.metadata.get("general.architecture", "")

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the same model.

        Raises:
            ModelError: it has what the architecture in transformers has not.
        """
        return _config(self)

    @cached_property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape, quantization) of every weight by its name in transformers."""
        return {name: (_shape(tensor), tensor.tensor_type.name) for name, tensor in self._named()}

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, values) of every weight; float16 stays so, all else comes as float32.

        Raises:
            ModelError: a tensor cannot be read.
        """
        import gguf

        config = self.config
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        for name, tensor in self._named():
            try:
                half = tensor.tensor_type.name == "F16"
                values = tensor.data if half else gguf.dequantize(tensor.data, tensor.tensor_type)
                values = values.reshape(_shape(tensor))
            except (ValueError, OSError) as error:
                raise ModelError(f"{self.files[0]}: {tensor.name} cannot be read ({error}); copy it again") from error
            kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
            if kind in TURNED and config["model_type"] in ("llama", "mistral"):
                values = _halves_apart(values, heads[kind])
            yield name, np.array(values)  # a copy: what the file maps may not be written

    def _named(self) -> Iterator[tuple[str, Any]]:
        for place, tensor in self.tensors.items():
            name = weight_name(place)
            if name:
                yield name, tensor


def joined(headers: Sequence[Header]) -> Header:
    """The header of a model in several parts, of which the first has the metadata."""
    return Header(headers[0].metadata, {name: tensor for header in headers for name, tensor in header.tensors.items()})


def refusal(header: Header) -> str:
    """Why a model cannot be run, in words; "" where nothing in its header says so."""
    arch = header.metadata.get("general.architecture", "")
    if arch not in ARCHITECTURES:
        return f"architecture {arch!r} is not supported; Lectern runs {', '.join(ARCHITECTURES)}"
    if header.metadata.get(f"{arch}.expert_count"):
        return "is a mixture of experts, which is not supported; take a dense model"
    unknown = {kind for _, kind in header.tensors.values()} - set(QUANTIZATIONS)
    if unknown:
        return (
            f"quantization {', '.join(sorted(unknown))} is not supported; take the same model in one of "
            f"{', '.join(QUANTIZATIONS)}"
        )
    return ""


def open_gguf(path: str | Path) -> Gguf:
    """Look at a GGUF file: everything is checked, no weight is read.

    Args:
        path: the file, or any part of one that was split.

    Raises:
        ModelError: it is damaged, incomplete, or holds what Lectern does not run; with its name.
    """
    parts = parts_of(Path(path).expanduser().absolute())
    metadata: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    headers = [read_header(part) for part in parts]
    if reason := refusal(joined(headers)):
        raise ModelError(f"{parts[0]}: {reason}")
    for part in parts:
        reader = _reader(part)
        metadata = metadata or {key: _value(part, key, field) for key, field in reader.fields.items()}
        tensors |= {tensor.name: tensor for tensor in reader.tensors}
    stated = metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors) or metadata.get("split.count", 0) > len(parts):
        raise ModelError(f"{path}: is part of a model of {stated:,} tensors, {len(tensors):,} are there; "
                         "give all parts the names that they were published under")  # fmt: skip
    model = Gguf(parts, metadata, tensors)
    _check(model)
    return model


def weight_name(place: str) -> str | None:
    """The name in transformers of a GGUF tensor; None for what is no weight there."""
    *layer, kind, part = place.split(".")
    if layer and layer[0] == "blk" and kind in LAYER and part in ("weight", "bias"):
        return f"model.layers.{layer[1]}.{LAYER[kind]}.{part}"
    return f"{GLOBAL[kind]}.{part}" if not layer and kind in GLOBAL and part == "weight" else None


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _reader(part: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(part)
    except (ValueError, IndexError, KeyError, OverflowError, OSError, MemoryError) as error:
        raise ModelError(f"{part}: is no GGUF, or damaged or cut short ({error}); copy or download it again") from error


def _value(part: Path, key: str, field: Any) -> Any:
    try:
        return field.contents()
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(f"{part}: {key} cannot be read ({error}); copy or download it again") from error


def _check(model: Gguf) -> None:
    """Refuse by name what cannot be run."""
    where, arch = model.files[0], model.architecture
    strange = [name for name in model.tensors if not weight_name(name) and name != ROPE_FACTORS]
    if strange:
        raise ModelError(f"{where}: tensor {strange[0]} (and {len(strange) - 1} more) has no place in a {arch}")
    shapes = model.shapes
    wrong = [name for name, shape in expected_shapes(model.config).items() if shapes.get(name, ((),))[0] != shape]
    if wrong:
        raise ModelError(
            f"{where}: {wrong[0]} (and {len(wrong) - 1} more) is missing or has another size; copy or download it again"
        )


def _config(model: Gguf) -> dict[str, Any]:
    arch, where, given = model.architecture, model.files[0], model.metadata

    def fact(key: str, default: Any = None) -> Any:
        value = given.get(f"{arch}.{key}", default)
        if value is None:
            raise ModelError(f"{where}: does not say its {key}; convert the model again")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelError(f"{where}: {key} differs from layer to layer, which is not supported")
            return value[0]
        return value

    if "token_embd.weight" not in model.tensors:
        raise ModelError(f"{where}: token_embd.weight is missing; it holds no whole model, or is one part of several")
    hidden, heads = fact("embedding_length"), fact("attention.head_count")
    size = fact("attention.key_length", fact("rope.dimension_count", hidden // heads))
    if fact("attention.value_length", size) != size or fact("rope.dimension_count", size) != size:
        raise ModelError(f"{where}: values or positions have another width than keys, which is not supported")
    kind = ARCHITECTURES[arch]
    config = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": int(model.tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        "head_dim": size,
        "hidden_act": "silu",
        "rms_norm_eps": float(f"{fact('attention.layer_norm_rms_epsilon'):.6g}"),
        "max_position_embeddings": fact("context_length"),
        "rope_parameters": _rope(model, size),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "dtype": "float32",
        **{f"{name}_token_id": id for name, id in gguf_tokenizer.marker_ids(given).items() if name != "unk"},
        **_biases(model, kind),
    }
    if kind == "mistral":
        config["sliding_window"] = given.get(f"{arch}.attention.sliding_window")
    return config


def _biases(model: Gguf, kind: str) -> dict[str, Any]:
    """Which projections have biases, as the config says it; Qwen2 always has those of queries, keys and values."""
    found = {name.split(".")[2] for name in model.tensors if name.endswith(".bias")}
    attention = {"attn_q", "attn_k", "attn_v"}
    allowed = {"llama": [set(), attention | {"attn_output"}], "qwen2": [attention], "mistral": [set()]}
    if found not in allowed.get(kind, [set(), attention | {"attn_output"}]):
        raise ModelError(f"{model.files[0]}: biases of {', '.join(sorted(found)) or 'nothing'} fit no {kind}")
    return {"attention_bias": bool(found)} if kind in ("llama", "qwen3") else {}


def _rope(model: Gguf, size: int) -> dict[str, Any]:
    """`rope_parameters` out of the metadata, or of the tensor in which llama.cpp keeps Llama 3's scaling."""
    arch, given, where = model.architecture, model.metadata, model.files[0]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(given.get(f"{arch}.rope.freq_base", 10_000.0))}
    scaling = f"{arch}.rope.scaling."
    kind = given.get(f"{scaling}type", "linear" if f"{arch}.rope.scale_linear" in given else "none")
    factor = float(given.get(f"{scaling}factor", given.get(f"{arch}.rope.scale_linear", 1.0)))
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(f"{where}: rope scaling {kind!r} is not supported; take a model with linear, yarn or llama3")
    if ROPE_FACTORS in model.tensors:
        return {**rope, **_llama3(model, rope["rope_theta"], size)}
    if kind == "linear" and factor != 1:
        return {**rope, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        yarn = {
            "beta_fast": given.get(f"{scaling}yarn_beta_fast"),
            "beta_slow": given.get(f"{scaling}yarn_beta_slow"),
            "original_max_position_embeddings": given.get(f"{scaling}original_context_length"),
        }
        return {**rope, "rope_type": "yarn", "factor": factor, **{k: v for k, v in yarn.items() if v is not None}}
    return rope


def _llama3(model: Gguf, theta: float, size: int) -> dict[str, Any]:
    """Llama 3's scaling, found again from the factors by which it divides each frequency."""
    import gguf

    tensor = model.tensors[ROPE_FACTORS]
    stored = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1).astype(np.float64)
    factor = round(float(stored.max()), 3)
    scaling = {"rope_type": "llama3", "factor": factor, **LLAMA3}
    frequencies = theta ** (-np.arange(0, size, 2) / size)
    low, high, length = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"], 8192
    waves = 2 * math.pi / frequencies
    smooth = ((length / waves - low) / (high - low)).clip(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if len(stored) != len(expected) or not np.allclose(stored, expected, rtol=1e-3):
        raise ModelError(f"{model.files[0]}: its rope factors are not those of Llama 3, which alone are supported")
    return scaling


def _halves_apart(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as transformers rotates them, half a head apart; llama.cpp has pairs side by side.

    Args:
        values: [heads * D, hidden] or [heads * D].
    """
    rows = len(values)
    return values.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def write_description(model: Gguf, folder: Path) -> None:
    """Everything of a checkpoint but its weights, into an empty folder."""
    _write(folder / "config.json", model.config)
    markers = gguf_tokenizer.marker_ids(model.metadata)
    ends = [id for name, id in markers.items() if name in ("eos", "eot")]
    stated = {f"{name}_token_id": id for name, id in markers.items() if name in ("bos", "pad")}
    _write(folder / "generation_config.json", {**stated, "eos_token_id": sorted(set(ends))})
    gguf_tokenizer.write(model.metadata, model.files[0], folder)


def describe(file: Path, room: Path) -> Path:
    """The description of a GGUF file in a folder of `room`, made unless it is there; its name is the file's.

    Raises:
        ModelError: the file is damaged or not supported, or `room` cannot be written.
    """
    parts = parts_of(file.expanduser().absolute())
    stated = [[str(part), part.stat().st_size, part.stat().st_mtime_ns] for part in parts]
    key = hashlib.sha256(json.dumps([FORMAT, stated]).encode()).hexdigest()[:12]
    folder = room / key / (SPLIT_NAME.sub(r"\1", parts[0].name).removesuffix(".gguf") or key)
    if (folder / GGUF_LIST).exists():
        return folder
    model = open_gguf(file)
    try:
        with whole_folder(folder, force=False) as new:
            write_description(model, new)
            _write(new / GGUF_LIST, {"files": [str(part) for part in parts]})
    except InputError as error:
        if not (folder / GGUF_LIST).exists():  # else another process was faster
            raise ModelError(f"{file}: cannot be opened, {error}") from error
    return folder


def stored_in(part: Path) -> dict[str, Stored]:
    """Names, shapes and quantizations of the weights in one GGUF file, by their names in transformers.

    Raises:
        ModelError: the file is damaged or cut short.
    """
    tensors = read_header(part).tensors
    return {name: Stored(*tensor) for place, tensor in tensors.items() if (name := weight_name(place))}


def write_checkpoint(model: Gguf, folder: Path, dtype: str = "float32") -> None:
    """A plain checkpoint in an empty folder: description and weights, all in `dtype`."""
    import torch
    from safetensors.torch import save_file

    write_description(model, folder)
    _write(folder / "config.json", {**model.config, "dtype": dtype})
    kind = getattr(torch, dtype)
    weights = {name: torch.from_numpy(values).to(kind) for name, values in model.weights()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
