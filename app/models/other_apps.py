"""Models that other programs keep on this computer: LM Studio, Ollama and the hub's client. Nothing is copied."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from app.models.gguf_header import SPLIT_NAME

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
