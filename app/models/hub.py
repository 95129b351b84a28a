"""Fetching a model from the hub, when a user asks for it, in a child process that can be stopped."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from app.errors import CancelledError, ModelError
from app.settings import ROOT
from app.system import keep_private, size_text

LOOK_S = 0.3  # between two looks at how much came


class Fetched(NamedTuple):
    """How many bytes of a model are here, and of how many; 0 while that is not known."""

    done: int
    total: int


def no_network() -> str:
    """Why nothing can be fetched; "" where it may be tried. Asks nobody: it looks at this computer's connections."""
    import psutil

    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup}
    for name, addresses in psutil.net_if_addrs().items():
        own = [address.address for address in addresses if address.family.name in ("AF_INET", "AF_INET6")]
        if name in up and any(not address.startswith(("127.", "::1", "fe80", "169.254.")) for address in own):
            return ""
    return "This computer has no connection to a network."


def fetch(name: str, stopped: Callable[[], bool]) -> Iterator[Fetched]:
    """Fetch a model into the hub's cache; what came stays when it is stopped, and the next try goes on from there.

    Args:
        stopped: asked several times a second.

    Raises:
        CancelledError: `stopped` said so.
        ModelError: why it could not be had.
    """
    worker = _start(name)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: [lines.put(line) for line in [*worker.stdout, ""]], daemon=True).start()
    total = 0
    try:
        while True:
            if stopped():
                raise CancelledError(f"fetching {name} was stopped; what came is kept")
            try:
                event = json.loads(lines.get(timeout=LOOK_S) or '{"failed": "it ended by itself"}')
            except queue.Empty:
                yield Fetched(min(here(name), total), total)
                continue
            if "failed" in event:
                raise ModelError(f"{name} could not be fetched: {event['failed']}")
            if "folder" in event:
                yield Fetched(total, total)
                return
            total = event["total"]
            _check_room(name, total - here(name))
            yield Fetched(min(here(name), total), total)
    finally:
        worker.kill()
        worker.wait()


def here(name: str) -> int:
    """Bytes of a model that the hub's cache has, whole or in part."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0


def _check_room(name: str, needed: int) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(f"{name} needs {size_text(needed)} on the disk, {size_text(free)} are free; make room first")


def _start(name: str) -> subprocess.Popen:
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    keep_private(download=True, environment=environment)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.Popen(
        (sys.executable, "-m", "app.models.hub_worker", name),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
        encoding="utf-8",
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
