"""Which build of torch to install, and what it costs. pip's own configuration decides where it comes from."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.setup import SetupError
from app.system import size_text

Flavour = Literal["cpu", "cuda", "unknown"]
TORCH_RANGE = ((2, 11), (2, 14))  # torch found here is used as it is

# Bytes to download and bytes on disk, measured on Linux x86-64 with Python 3.11; CUDA is estimated.
TORCH_COST: dict[Flavour, tuple[float, float]] = {
    "cpu": (200e6, 900e6),
    "cuda": (2.7e9, 6.5e9),
    "unknown": (2.7e9, 6.5e9),
}
PACKAGES_COST = (120e6, 600e6)
TEST_COST = (320e6, 1.25e9)


@dataclass(frozen=True)
class Build:
    """What to ask pip for."""

    requirement: str
    flavour: Flavour


def nvidia_seen() -> bool:
    """Whether this computer has an NVIDIA GPU with a driver."""
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists():
        return True
    return shutil.which("nvidia-smi") is not None


def usable(version: str | None) -> bool:
    """Whether a torch of this version can be used without installing another."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return match is not None and TORCH_RANGE[0] <= (int(match[1]), int(match[2])) < TORCH_RANGE[1]


def flavour_of(version: str) -> Flavour:
    """What a build of torch is made for, told by its version and the system it is for."""
    local = version.partition("+")[2]
    if local.startswith("cpu"):
        return "cpu"
    if local.startswith("cu"):
        return "cuda"
    if local:
        return "unknown"
    return "cuda" if sys.platform == "linux" else "cpu"


def visible(python: Path, pin: str, environment: dict[str, str]) -> list[str]:
    """Builds of torch `pin` that pip can see for this Python, the one it prefers first; empty when it cannot say."""
    command = [str(python), "-m", "pip", "index", "versions", "torch"]
    try:
        answer = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = re.search(r"^Available versions: (.*)$", answer.stdout, re.MULTILINE)
    versions = found[1].split(", ") if found else []
    return [version for version in versions if version.partition("+")[0] == pin]


def choose(builds: list[str], pin: str, wanted: str | None) -> Build:
    """The build to install.

    Args:
        builds: as from `visible`.
        wanted: "cpu" or "cuda", or None for the one that pip prefers.

    Raises:
        SetupError: pip sees builds, but none of the wanted kind.
    """
    if wanted is None:
        flavour = flavour_of(builds[0]) if builds else flavour_of(pin)
        return Build(f"torch=={pin}", flavour)
    for version in builds:
        if flavour_of(version) == wanted:
            return Build(f"torch==={version}", flavour_of(version))  # === tells 2.13.0 from 2.13.0+cpu
    seen = ", ".join(builds) or "none"
    raise SetupError(
        f"--torch {wanted}: pip offers no such build of torch {pin} for this Python and system (it offers: {seen}).\n"
        'Next: find the index for it under "Get started" at pytorch.org and add it to pip\'s configuration\n'
        "(pip config set global.extra-index-url ADDRESS), or set TORCH_COMMAND to the full command shown there."
    )


def cost(flavour: Flavour | None, test: bool) -> tuple[float, float]:
    """Bytes to download and bytes on disk of a whole set-up; None for a torch that is there already."""
    parts = [PACKAGES_COST, *([TORCH_COST[flavour]] if flavour else []), *([TEST_COST] if test else [])]
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def cost_text(flavour: Flavour | None, test: bool) -> str:
    download, disk = cost(flavour, test)
    return f"{size_text(download)} to download, {size_text(disk)} on disk, all packages together"


def announcement(build: Build, test: bool) -> str:
    """What the user should know before pip starts."""
    text = cost_text(build.flavour, test)
    if build.flavour == "cpu":
        text = f"{build.requirement}, the CPU build: about {text}"
        if nvidia_seen():
            text += "\nNOTE: this computer has an NVIDIA GPU, and a CPU torch cannot use it."
            text += "\n      For the GPU: stop with Ctrl-C and run `python launch.py setup --torch cuda`."
        return text
    if build.flavour == "unknown":
        return f"{build.requirement}: up to {text}"
    text = f"*** {build.requirement}: pip will fetch the CUDA build: about {text}. ***"
    if not nvidia_seen():
        text += f"\n    No NVIDIA GPU is seen here. For the CPU build, {cost_text('cpu', test)},"
        text += "\n    stop with Ctrl-C and run `python launch.py setup --torch cpu`,"
        text += "\n    which says what to add to pip's configuration where that build is not offered yet."
    return text


def command_from_environment(python: Path) -> list[str] | None:
    """TORCH_COMMAND as a list, its pip or python replaced by the environment's own; None when not set."""
    import shlex

    words = shlex.split(os.environ.get("TORCH_COMMAND", ""), posix=os.name != "nt")
    if not words:
        return None
    if words[0] in ("pip", "pip3"):
        return [str(python), "-m", "pip", *words[1:]]
    if words[0] in ("python", "python3"):
        return [str(python), *words[1:]]
    return words
