"""What lies in a model's folder: config, recipe, weights by name and shape. Needs no torch, reads no weights."""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from functools import cache
from pathlib import Path
from typing import Any

from app.errors import ModelError
from app.models.files import GGUF_LIST, Stored, first_line, is_gguf, pickled_header, read_json, safetensors_header

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


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


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Names, shapes and data types in a file of weights, from its header alone.

    Raises:
        ModelError: the file is damaged or cut short.
    """
    if is_gguf(file):
        from app.models.gguf import stored_in

        return stored_in(file)
    return safetensors_header(file) if file.suffix == ".safetensors" else pickled_header(file)


def stored_weights(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint by name.

    Raises:
        ModelError: a file is damaged or cut short.
    """
    return {name: stored for file in weight_files(folder) for name, stored in stored_tensors(file).items()}


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


def cached() -> Iterator[tuple[str, Path]]:
    """(hub id, folder) of every model in the hub's cache, by the names of its folders alone."""
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        try:
            commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        except OSError:
            continue
        snapshot = folder / "snapshots" / commit
        if snapshot.is_dir():
            yield folder.name.removeprefix("models--").replace("--", "/", 1), snapshot
