"""The checkpoints and adapters on this computer: where they lie, what they are, and which of them can be loaded."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InputError, ModelError, StoreError
from app.models.fits import Fit
from app.models.gguf_header import SPLIT_NAME
from app.settings import ROOT, Settings

if TYPE_CHECKING:
    from app.models.inspect import Inspection

log = logging.getLogger(__name__)

FILE = "models.json"
MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "lectern.json",
    "model.safetensors",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_model.bin",
    "trainable_params.bin",
)
DEPTH = 2  # a folder of runs holds folders of checkpoints
MOST_FOLDERS = 500
SHIPS, DATA_FOLDER, HUB, BEFORE = "in Lectern's folder", "in the data folder", "in the hub's cache", "loaded before"


def place_of(model: str) -> str:
    """A model as it is compared: its real folder, or a hub id."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.exists() else model


@dataclass(frozen=True)
class Choice:
    """Something that can be loaded: what --model and --adapter take."""

    model: str
    adapter: str | None = None

    @property
    def id(self) -> str:
        """A short name for it, as buttons carry it."""
        text = json.dumps([place_of(self.model), place_of(self.adapter) if self.adapter else None])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def base(self) -> str:
        """Name of the checkpoint."""
        return Path(self.model).name.removesuffix(".gguf")

    @property
    def weights_files(self) -> list[Path]:
        """The files that decide its fingerprint.

        Raises:
            ModelError: they are not there.
        """
        from app.models.files import is_gguf
        from app.models.folder import adapter_files, find_folder, model_files
        from app.models.gguf_header import parts_of

        path = Path(self.model).expanduser()
        if is_gguf(path):
            return [*parts_of(path), *adapter_files(self.adapter)]
        return model_files(find_folder(self.model, download=False), self.adapter)


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint or adapter on this computer.

    Attributes:
        path: its folder.
        place: where it was found, in words.
        kind: "checkpoint", "adapter", "longlora" or "unknown".
        facts: what `inspect` found, by name.
        reasons: why it cannot be used.
        size_bytes: of its weights.
        choices: the ways to load it: one for a checkpoint, one for each base that an adapter fits.
        loaded: one of its choices is loaded now.
        documents, chats: how many of them it read, and are kept.
        fit: whether it fits this computer; None where nothing is known of it, or where it is loaded.
    """

    name: str
    path: Path
    place: str
    kind: str
    facts: Mapping[str, str] = field(default_factory=dict)
    usable: bool = True
    reasons: tuple[str, ...] = ()
    size_bytes: int = 0
    choices: tuple[Choice, ...] = ()
    loaded: bool = False
    documents: int = 0
    chats: int = 0
    fit: Fit | None = None

    @property
    def parameters(self) -> int:
        """How many; 0 where it is not known."""
        text = self.facts.get("parameters", "").replace(",", "")
        return int(text) if text.isdecimal() else 0


class KnownModels:
    """`models.json` of a data folder: folders that the user added, and what is known of models that were loaded.

    Losing it costs no memory of a document: fingerprints are computed again.

    Attributes:
        folders: absolute, in the order in which they were added.
        digests: see `app.models.folder.fingerprint`.
        loaded: by fingerprint of the weights: model, adapter, name, tokens_per_s.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / FILE
        values = self._read()
        self.folders: list[str] = [str(folder) for folder in values.get("folders", [])]
        self.digests: dict[str, str] = dict(values.get("digests", {}))
        self.loaded: dict[str, dict[str, Any]] = dict(values.get("loaded", {}))

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            return values if isinstance(values, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s: %s", self._path, error)
            return {}

    def save(self) -> None:
        """Write the file, never half.

        Raises:
            StoreError: the data folder cannot be written.
        """
        latest = {key.rsplit(" ", 2)[0]: key for key in self.digests}  # of each file the last one
        values = {
            "folders": self.folders,
            "digests": {key: self.digests[key] for key in latest.values()},
            "loaded": self.loaded,
        }
        if values == self._read():
            return
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(values, indent=1), encoding="utf-8")
            os.replace(fresh, self._path)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be written ({error.strerror}); free some room or rights") from error

    def remember(self, settings: Settings, weights: str, tokens_per_s: float = 0.0) -> None:
        """Note which folder holds the weights that were loaded, and how fast they read."""
        before = self.loaded.get(weights, {})
        paths = [_absolute(path) if path else None for path in (settings.model, settings.adapter)]
        self.loaded[weights] = {
            "model": paths[0],
            "adapter": paths[1],
            "name": settings.model_name,
            "tokens_per_s": round(tokens_per_s, 1) or before.get("tokens_per_s", 0.0),
        }

    def choices(self) -> dict[str, Choice]:
        """Models that were loaded before and whose files are the same still, by fingerprint."""
        found = {weights: Choice(entry["model"], entry["adapter"]) for weights, entry in self.loaded.items()}
        return {weights: choice for weights, choice in found.items() if self._fingerprint(choice) == weights}

    def _fingerprint(self, choice: Choice) -> str | None:
        """Of files that were hashed before; None when one is new, changed or gone."""
        from app.models.folder import digest_key, fingerprint

        try:
            files = choice.weights_files
            known = all(digest_key(file) in self.digests for file in files)
        except (ModelError, OSError):
            return None
        return fingerprint(files, self.digests) if known else None


def _absolute(model: str) -> str:
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.exists() else model


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds files of a model, complete or not."""
    return any(os.path.isfile(folder / name) for name in MODEL_FILES)  # unlike Path's, it never raises


def folders_in(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """A model's folder itself, else GGUF files in it and the models below it."""
    if is_model_folder(folder):
        yield folder
        return
    yield from gguf_files(folder)
    if depth == 0:
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        log.warning("%s: %s", folder, error)
        return
    for path in inner[:MOST_FOLDERS]:
        yield from folders_in(path, depth - 1)


def add_folder(home: Path, folder: str) -> list[str]:
    """Look for models in a folder from now on; returns the names of those that are there.

    Raises:
        InputError: there is no such folder, or no model in it.
        StoreError: the data folder cannot be written.
    """
    if not folder.strip():
        raise InputError("no folder given; type the path of a checkpoint, of an adapter, or of a folder with several")
    path = Path(folder.strip()).expanduser()
    if not os.path.isdir(path):
        raise InputError(f"{folder.strip()}: no such folder on this computer; give the full path")
    path = path.resolve()
    names = [found.name for found in folders_in(path)]
    if not names:
        raise InputError(
            f"{path}: holds no checkpoint, no adapter and no GGUF file (no config.json, no adapter_config.json)"
        )
    known = KnownModels(home)
    if str(path) not in known.folders:
        known.folders.append(str(path))
        known.save()
    return names


def remove_folder(home: Path, folder: str) -> None:
    """Look no more in a folder that was added; nothing in it is touched.

    Raises:
        InputError: it was not added.
    """
    known = KnownModels(home)
    matching = [kept for kept in known.folders if kept in (folder, place_of(folder))]
    if not matching:
        listed = ", ".join(known.folders) or "none"
        raise InputError(f"{folder}: is not among the added folders ({listed})")
    known.folders.remove(matching[0])
    known.save()


def local_models(settings: Settings, loaded: str = "") -> list[LocalModel]:
    """All checkpoints and adapters that are found: the loaded one first, then what can be used, then the others.

    Args:
        loaded: id of the choice that is loaded.
    """
    places: dict[Path, tuple[str, str, str]] = {}
    for path, model, place, *name in _places(settings, KnownModels(settings.folder)):
        if not _is_made(path, settings):
            places.setdefault(path, (model, place, *name, Path(model).name)[:3])
    models = [_package(path, settings) or _inspected(path, *place) for path, place in places.items()]
    bases = [model.choices[0].model for model in models if model.choices and model.kind == "checkpoint"]
    models = [_with_base(model, bases) if not model.choices else model for model in models]
    models = [replace(model, loaded=loaded in [choice.id for choice in model.choices]) for model in models]
    return sorted(models, key=lambda m: (not m.loaded, not m.usable, m.kind != "checkpoint", m.name.lower()))


def _places(settings: Settings, known: KnownModels) -> Iterator[tuple[str, ...]]:
    """(real folder, what --model or --adapter takes, where it was found, perhaps its name) of what may be a model."""
    rooms: list[tuple[Path, str]] = [(ROOT / "models", SHIPS), (settings.folder / "models", DATA_FOLDER)]
    rooms += [(Path(folder), f"in {folder}") for folder in known.folders]
    for room, place in rooms:
        if room.is_dir():
            yield from ((path.resolve(), str(path), place) for path in folders_in(room))
    pairs = [(settings.model, settings.adapter), *((e["model"], e["adapter"]) for e in known.loaded.values())]
    for name in dict.fromkeys(name for pair in pairs for name in pair if name):
        if Path(name).expanduser().exists():
            yield Path(place_of(name)), name, BEFORE
    from app.models.folder import cached

    for name, path in cached():
        if (path / "config.json").exists():
            yield path.resolve(), name, HUB, name
        yield from ((file.resolve(), str(file), HUB, f"{name}/{file.name}") for file in gguf_files(path))
    yield from ((path.resolve(), str(path), LM_STUDIO) for path in lm_studio())
    yield from ((path.resolve(), str(path), OLLAMA, name) for name, path in ollama())


def _is_made(path: Path, settings: Settings) -> bool:
    """Whether a folder is the package of a checkpoint that the data folder has: that one is listed."""
    from app.models import shipped

    package = shipped.read_package(path)
    return package is not None and shipped.is_prepared(package, settings.folder)


def _package(path: Path, settings: Settings) -> LocalModel | None:
    """A model whose base is fetched first; None for other folders."""
    from app.models import shipped

    package = shipped.read_package(path)
    if package is None:
        return None
    facts = {"base": f"{package.base['name']} ({package.base.get('license', '')})", "made of it": package.told}
    reason = f"its base is not here yet; `{shipped.AGAIN}` gets it: {package.told}"
    return LocalModel(package.name, path, SHIPS, "checkpoint", facts, False, (reason,), _weight_bytes(path))


def _inspected(path: Path, model: str, place: str, name: str) -> LocalModel:
    from app.models.inspect import inspect

    alone = not (path / "adapter_config.json").exists()  # what an adapter is depends on its base
    seen = _seen(path, _stamps(path)) if alone else inspect(path)
    choices: tuple[Choice, ...] = ()
    if seen.usable:
        choices = (Choice(str(seen.base), str(path)) if seen.base else Choice(model),)
    return LocalModel(name, path, place, seen.kind, seen.facts, seen.usable, seen.reasons, _weight_bytes(path), choices)


@lru_cache(maxsize=256)
def _seen(path: Path, _stamps: tuple[tuple[str, int, int], ...]) -> "Inspection":
    """What a checkpoint's folder or file is; looked at once, as long as its files stay."""
    from app.models.inspect import inspect

    return inspect(path)


def _stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.glob("*.gguf"))  # with its other parts
    found = ((file.name, file.stat()) for file in files if file.exists())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _with_base(model: LocalModel, bases: Sequence[str]) -> LocalModel:
    """An adapter whose base is not where it says, on the found checkpoints that it fits; others as they are."""
    from app.models.folder import find_folder
    from app.models.inspect import inspect

    if model.kind not in ("adapter", "longlora"):
        return model
    seen = {base: inspect(model.path, find_folder(base, download=False)) for base in bases}
    fitting = [base for base, its in seen.items() if its.usable]
    if not fitting:
        return model
    choices = tuple(Choice(base, str(model.path)) for base in fitting)
    return replace(model, facts=seen[fitting[0]].facts, usable=True, reasons=(), choices=choices)


def _weight_bytes(path: Path) -> int:
    """Size of the weights in a model's folder, whole or not; 0 where it cannot be looked into."""
    try:
        if path.is_file():
            from app.models.gguf_header import parts_of

            return sum(part.stat().st_size for part in parts_of(path))
        files = [file for file in path.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()]
        return sum(file.stat().st_size for file in files)
    except (OSError, ModelError):
        return 0


LM_STUDIO, OLLAMA = "in LM Studio's folder", "in Ollama's folder"
OLLAMA_MODEL = "application/vnd.ollama.image.model"
MOST_FILES = 500


def gguf_files(folder: Path) -> list[Path]:
    """GGUF files of a folder, of split ones the first part."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    except OSError:
        return []
    parts = ((path, SPLIT_NAME.fullmatch(path.name)) for path in found)
    return [path for path, part in parts if part is None or int(part[2]) == 1][:MOST_FILES]


def lm_studio() -> Iterator[Path]:
    """Every GGUF file that LM Studio keeps: publisher/model/file."""
    for room in (Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"):
        for folder in sorted(room.glob("*/*")):
            yield from gguf_files(folder)


def ollama() -> Iterator[tuple[str, Path]]:
    """(name:tag, file) of every model that Ollama keeps."""
    stated = os.environ.get("OLLAMA_MODELS")
    rooms = [Path(stated)] if stated else [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]
    for room in rooms:
        for manifest in sorted(room.glob("manifests/*/*/*/*"))[:MOST_FILES]:
            try:
                layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
                digest = next(layer["digest"] for layer in layers if layer["mediaType"] == OLLAMA_MODEL)
            except (OSError, ValueError, KeyError, TypeError, StopIteration):
                continue
            file = room / "blobs" / digest.replace(":", "-")
            if file.is_file():
                yield f"{manifest.parent.name}:{manifest.name}", file
