"""Files of a model one by one: JSON, tensors by name and shape, a folder that is written whole. Reads no weights."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InputError, ModelError
from app.wellformed import parse_json

GGUF_LIST = "gguf.json"  # in the description of a GGUF file: where its parts lie
MOST_HEADER_BYTES = 100_000_000  # as safetensors itself allows


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is GGUF; those of Ollama have no such name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object; copy or download it again")
    return value


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of weights.

    Attributes:
        dtype: as safetensors names it, such as BF16.
    """

    shape: tuple[int, ...]
    dtype: str


def safetensors_header(file: Path) -> dict[str, Stored]:
    """The header is its length in 8 bytes and JSON; the tensors fill the rest of the file."""
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(length)) if 0 < length < MOST_HEADER_BYTES else None
        if not isinstance(header, dict):
            raise ValueError("no header")
        header.pop("__metadata__", None)
        found = {name: Stored(tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        size = file.stat().st_size
        if size != 8 + length + end:
            raise ValueError(f"{size:,} bytes instead of {8 + length + end:,}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: is damaged or cut short ({error}); copy or download it again") from error
    return found


def pickled_header(file: Path) -> dict[str, Stored]:
    """Only the pickle of names is read; the tensors stay in the file."""
    import pickle

    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        tensors = torch.load(file, map_location="meta", mmap=True, weights_only=True)
        return {name: Stored(tuple(t.shape), names.get(t.dtype, str(t.dtype))) for name, t in tensors.items()}
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file}: is damaged, or holds more than weights ({first_line(error)})") from error


def heads_of(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(query heads, key/value heads, width of a head)."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    return heads, kv_heads, config.get("head_dim") or config["hidden_size"] // heads


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights; biases are left out, and the head where it is tied to the embeddings."""
    heads, kv_heads, size = heads_of(config)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (kv_heads * size, hidden),
        "self_attn.v_proj": (kv_heads * size, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (size,), "self_attn.k_norm": (size,)}
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def first_line(error: Exception) -> str:
    """What a library's error says, without its pages of advice."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def whole_folder(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write into that takes its name only when all is written.

    Args:
        force: a checkpoint or adapter that is there already gives way, when the new one is whole.

    Raises:
        InputError: `folder` is there already, or cannot be written.
    """
    if folder.exists() and not force:
        raise InputError(f"{folder}: is there already; delete it, or choose another folder with --out")
    if folder.exists() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise InputError(
            f"{folder}: is there already and holds no model, so it stays; choose another folder with --out"
        )
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}; choose another folder with --out") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
