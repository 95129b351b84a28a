"""Load a checkpoint, with every reason to refuse it checked before anything is allocated."""

import hashlib
import json
import math
from collections.abc import MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from app.errors import ConfigError, ModelError
from app.runtime.config import AttentionConfig
from app.settings import Settings

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
RECIPE_KEYS = {"format", "demonstration", "trained_tokens", "attention", "rope", "training", "system_prompt"}
DEFAULT_BUDGET = 4096
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint wants to be read: `lectern.json`, or what its config implies."""

    attention: AttentionConfig
    trained_tokens: int
    demonstration: bool = False
    system_prompt: str = ""


def find_folder(model: str, *, download: bool) -> Path:
    """The folder of `model`, fetched from the hub only when asked for.

    Raises:
        ModelError: no such folder, or a hub id without leave to download, or the hub refuses.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.exists():
        raise ModelError(f"--model {model}: is a file; give the folder that holds config.json")
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


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a supported, complete checkpoint folder.

    Raises:
        ModelError: what is missing or not supported.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder}: no config.json; this is not a checkpoint folder")
    config = _read_json(path)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object; copy or download it again")
    return value


def weight_files(folder: Path) -> list[Path]:
    """All weight files of a checkpoint, shards included; empty when there are none."""
    for name in WEIGHT_FILES:
        path = folder / name
        if path.exists():
            if name.endswith(".json"):
                return [folder / shard for shard in sorted(set(_read_json(path).get("weight_map", {}).values()))]
            return [path]
    return []


def stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone.

    Raises:
        ModelError: the file is damaged or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as data:
            return {name: tuple(data.get_slice(name).get_shape()) for name in data.keys()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: is damaged or cut short ({error}); copy or download it again") from error


def _weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights of a checkpoint; empty when they are not safetensors."""
    files = [file for file in weight_files(folder) if file.suffix == ".safetensors"]
    return {name: shape for file in files for name, shape in stored_shapes(file).items()}


def read_recipe(folder: Path, config: dict[str, Any], settings: Settings) -> Recipe:
    """The reading recipe of a checkpoint, with the user's budget put in.

    Raises:
        ModelError: `lectern.json` has keys that this version does not know.
        ConfigError: the budget does not fit.
    """
    path = folder / "lectern.json"
    recipe = _read_json(path) if path.exists() else {}
    attention = recipe.get("attention", {})
    if not isinstance(attention, dict):
        raise ModelError(f"{path}: attention is not a table; copy or download it again")
    known = {f.name for f in fields(AttentionConfig)}
    unknown = sorted((set(recipe) - RECIPE_KEYS) | (set(attention) - known))
    if unknown or recipe.get("format", 1) != 1:
        raise ModelError(f"{path}: {', '.join(unknown) or 'format'} is not known to this version; update Lectern")
    trained = recipe.get("trained_tokens", config.get("max_position_embeddings", 2048))
    kinds = {f.name: type(f.default) for f in fields(AttentionConfig)}
    for name, value in {"trained_tokens": trained, **attention}.items():
        if type(value) is not kinds.get(name, int):
            kind = "a word" if kinds.get(name) is str else "a whole number"
            raise ModelError(f"{path if path.exists() else folder}: {name} = {value!r}: must be {kind}")
    limit = min(trained, _window(config) or trained)
    group = AttentionConfig().group_tokens
    budget = settings.budget_tokens or attention.get("budget_tokens") or min(DEFAULT_BUDGET, limit // group * group)
    if budget > limit:
        raise ConfigError(f"budget_tokens = {budget}: the model was trained to attend to {limit}; choose at most that")
    return Recipe(
        attention=AttentionConfig(**{**attention, "budget_tokens": budget}),
        trained_tokens=trained,
        demonstration=bool(recipe.get("demonstration", False)),
        system_prompt=str(recipe.get("system_prompt", "")),
    )


def _window(config: dict[str, Any]) -> int | None:
    """Tokens that a model with a sliding window was trained to look back; None without one."""
    used = config.get("use_sliding_window", config["model_type"] == "mistral")
    return config.get("sliding_window") if used else None


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this PyTorch sees no CUDA device; use --device cpu, or see `doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32."""
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = (getattr(torch.cpu, name, lambda: False)() for name in instructions)
    return torch.bfloat16 if device.type == "cuda" or any(native) else torch.float32


def check_memory(folder: Path, device: torch.device, dtype: torch.dtype, *, merging: bool = False) -> None:
    """Refuse a model whose weights cannot fit. Merging an adapter takes float32 in the computer's memory first.

    Raises:
        ModelError: with the bytes needed and the bytes free.
    """
    import psutil

    shapes = _weight_shapes(folder)
    size = sum(map(math.prod, shapes.values())) * dtype.itemsize if shapes else _file_bytes(folder)
    needs = {device.type: size}
    if merging:
        needs["cpu"] = size // dtype.itemsize * torch.float32.itemsize
    for place, need in needs.items():
        free = torch.cuda.mem_get_info()[0] if place == "cuda" else psutil.virtual_memory().available
        if need * 1.1 > free:
            raise ModelError(
                f"{folder.name}: needs about {need / 2**30:.1f} GiB for its weights, {free / 2**30:.1f} GiB are free "
                f"on {place}; close other programs or choose a smaller model"
            )


def _file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))


def check_adapter(adapter: str, folder: Path) -> None:
    """Refuse what is not a LoRA adapter of this checkpoint.

    Raises:
        ModelError: what is missing or does not fit.
    """
    path = Path(adapter).expanduser()
    if not (path / "adapter_config.json").exists():
        raise ModelError(f"--adapter {adapter}: no adapter_config.json there; give the folder of a LoRA adapter")
    kind = _read_json(path / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise ModelError(f"--adapter {adapter}: is of type {kind}; only LoRA adapters can be merged")
    weights = path / "adapter_model.safetensors"
    if not weights.exists():
        raise ModelError(f"--adapter {adapter}: no adapter_model.safetensors there; the folder is incomplete")
    base = _weight_shapes(folder)
    for name, shape in stored_shapes(weights).items():
        target, found, side = name.removeprefix("base_model.model.").partition(".lora_")
        if not (base and found and ".layers." in target):
            continue
        rows, columns = base.get(f"{target}.weight", (0, 0))
        if (side.startswith("A.") and shape[1] != columns) or (side.startswith("B.") and shape[0] != rows):
            raise ModelError(
                f"--adapter {adapter}: was made for another model than {folder.name}: {name} has the shape {shape}; "
                "choose the model it was trained on"
            )


def load_model(folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype):
    """The model in evaluation mode, adapter merged.

    Raises:
        ModelError: weights or adapter do not fit together.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # the app shows its own state
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if settings.adapter else dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
        wrong = sorted([*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])])
        if wrong:
            raise ModelError(
                f"{folder}: weights do not belong to its config.json: {wrong[0]} (and {len(wrong) - 1} more) "
                "are missing or have another size; copy or download the folder again"
            )
        if settings.adapter:
            model = _merge_adapter(model, settings.adapter, dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    return model.eval().requires_grad_(False).to(device)


def _merge_adapter(model, adapter: str, dtype: torch.dtype):
    """Merge a LoRA adapter in float32. Only weights become `dtype`: rotary frequencies must stay exact."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, Path(adapter).expanduser()).merge_and_unload(safe_merge=True)
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype)
    return merged


def first_line(error: Exception) -> str:
    """What a library's error says, without its pages of advice."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def fingerprint(paths: list[Path], known: MutableMapping[str, str]) -> str:
    """SHA-256 over files, in order.

    Args:
        known: digests by "path size mtime"; big checkpoints are not hashed again while these stand.
    """
    total = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        key = f"{path} {stat.st_size} {stat.st_mtime_ns}"
        if key not in known:
            with path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(known[key].encode())
    return total.hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that decide which token ids a text has."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
    return [folder / name for name in names if (folder / name).exists()]


def model_files(folder: Path, adapter: str | None) -> list[Path]:
    """The files that make the model: config, weights, adapter."""
    files = [folder / "config.json", *weight_files(folder)]
    if adapter:
        parts = Path(adapter).expanduser().absolute().iterdir()
        files += sorted(part for part in parts if part.suffix in (".json", ".safetensors", ".bin"))
    return files
