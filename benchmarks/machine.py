"""What a result was measured on."""

import os
import platform
import subprocess
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from app.system import cpu_name

ROOT = Path(__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Hardware, versions of what is installed, commit and date."""
    values: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers"):
        with suppress(PackageNotFoundError):
            values[package] = version(package)
    if "torch" in values:
        import torch

        if torch.cuda.is_available():
            values["gpu"] = torch.cuda.get_device_name()
    return values


def _commit() -> str:
    """Short hash, with a mark when files were changed since."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"
