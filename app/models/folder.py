"""What lies in a model's folder: config, recipe, weights by name and shape. Needs no torch, reads no weights."""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from app.errors import InputError, ModelError
from app.wellformed import parse_json

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
GGUF_LIST = "gguf.json"  # in the description of a GGUF file: where its parts lie
MOST_HEADER_BYTES = 100_000_000  # as safetensors itself allows


def find_folder(model: str, *, download: bool, room: Path | None = None) -> Path:
    """The folder of `model`, fetched from the hub only when asked for.

    Args:
        model: a folder, a hub id, or a GGUF file, which is described in `room`; its weights stay where they are.
        room: the data folder; None describes a GGUF file in a folder that goes with the process.

    Raises:
        ModelError: no such folder, or a hub id without leave to download, or the hub refuses.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if is_gguf(folder):
        return described(folder, room)
    if folder.exists():
        raise ModelError(f"--model {model}: is no GGUF file; give one, or the folder that holds config.json")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"--model {model}: no such folder; give a checkpoint folder or a hub id such as ORG/NAME")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES, local_files_only=not download))
    except LocalEntryNotFoundError as error:
        if download:
            raise ModelError(f"--model {model}: the hub cannot be reached; check the network and try again") from error
        raise ModelError(f"--model {model}: not on this machine; add --download to fetch it from the hub") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"--model {model}: the hub refused it: {first_line(error)}") from error


def is_gguf(path: Path) -> bool:
    """Whether a file says that it is GGUF; those of Ollama have no such name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def described(file: Path, room: Path | None) -> Path:
    """A folder with everything of a GGUF file's checkpoint but its weights, made unless it is there.

    Raises:
        ModelError: the file is damaged or not supported, or the folder cannot be written.
    """
    from app.models.gguf import describe

    return describe(file, room / "gguf" if room else _passing_folder())


@cache
def _passing_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lectern-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a supported, complete checkpoint folder.

    Raises:
        ModelError: what is missing or not supported.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder}: no config.json; this is not a checkpoint folder")
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(f"{folder}: model type {kind!r} is not supported; Lectern runs {', '.join(ARCHITECTURES)}")
    if config.get("quantization_config"):
        raise ModelError(f"{folder}: its weights are quantised, which is not supported; use the unquantised checkpoint")
    files = weight_files(folder)
    missing = [file.name for file in files if not file.exists()]
    if not files or missing:
        raise ModelError(
            f"{folder}: weights are missing ({', '.join(missing) or ' or '.join(WEIGHT_FILES[:2])}); "
            "the folder is incomplete, copy or download it again"
        )
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{folder}: no tokenizer.json; copy the tokenizer files of the model into the folder")
    return config


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


def weight_files(folder: Path) -> list[Path]:
    """All weight files of a checkpoint, shards included; empty when there are none."""
    if (folder / GGUF_LIST).exists():
        return [Path(file) for file in read_json(folder / GGUF_LIST).get("files", [])]
    for name in WEIGHT_FILES:
        path = folder / name
        if path.exists():
            if name.endswith(".json"):
                return [folder / shard for shard in sorted(set(read_json(path).get("weight_map", {}).values()))]
            return [path]
    return []


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of weights.

    Attributes:
        dtype: as safetensors names it, such as BF16.
    """

    shape: tuple[int, ...]
    dtype: str


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Names, shapes and data types in a file of weights, from its header alone.

    Raises:
        ModelError: the file is damaged or cut short.
    """
    if is_gguf(file):
        from app.models.gguf import stored_in

        return stored_in(file)
    return _safetensors_header(file) if file.suffix == ".safetensors" else _pickled_header(file)


def _safetensors_header(file: Path) -> dict[str, Stored]:
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


def _pickled_header(file: Path) -> dict[str, Stored]:
    """Only the pickle of names is read; the tensors stay in the file."""
    import pickle

    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    try:
        tensors = torch.load(file, map_location="meta", mmap=True, weights_only=True)
        return {name: Stored(tuple(t.shape), names.get(t.dtype, str(t.dtype))) for name, t in tensors.items()}
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file}: is damaged, or holds more than weights ({first_line(error)})") from error


def stored_weights(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint by name.

    Raises:
        ModelError: a file is damaged or cut short.
    """
    return {name: stored for file in weight_files(folder) for name, stored in stored_tensors(file).items()}


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


def fingerprint(paths: list[Path], known: MutableMapping[str, str]) -> str:
    """SHA-256 over files, in order.

    Args:
        known: digests by "path size mtime"; big checkpoints are not hashed again while these stand.
    """
    total = hashlib.sha256()
    for path in paths:
        key = digest_key(path)
        if key not in known:
            known[key] = _digest(path)
        total.update(known[key].encode())
    return total.hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file; of adapter_config.json of what it says: peft writes its lists in another order each time."""
    if path.name == "adapter_config.json":
        said = {name: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v
                for name, v in read_json(path).items()}  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_key(path: Path) -> str:
    """Under what a file's digest is kept: it changes when the file does."""
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide which token ids a text has."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
    return [folder / name for name in names if (folder / name).exists()]


def highest_id(tokenizer: Mapping[str, Any]) -> int:
    """The largest token id of a tokenizer.json."""
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max([*ids, *(token["id"] for token in tokenizer.get("added_tokens") or ())])


def model_files(folder: Path, adapter: str | None) -> list[Path]:
    """The files that make the model: config, weights, adapter."""
    described = [] if (folder / GGUF_LIST).exists() else [folder / "config.json"]  # a GGUF file holds its config
    files = [*described, *weight_files(folder)]
    return [*files, *adapter_files(adapter)]


def adapter_files(adapter: str | None) -> list[Path]:
    """The files that make an adapter; none without one."""
    parts = Path(adapter).expanduser().absolute().iterdir() if adapter else ()
    return sorted(part for part in parts if part.suffix in (".json", ".safetensors", ".bin"))


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
