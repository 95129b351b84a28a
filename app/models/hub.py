"""What the hub's client keeps on this computer. Asks nobody."""

from collections.abc import Iterator
from pathlib import Path


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
