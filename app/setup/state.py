"""Where the environment lies and whether it is ready. Every start asks this, so it stays small."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCHEMA = 1  # raise it when a set-up made by an older launch.py must be done again
RUN_FILES = ("requirements.txt", "constraints.txt")
TEST_FILES = (*RUN_FILES, "requirements-test.txt")


@dataclass(frozen=True)
class Target:
    """Where the packages of one checkout go.

    Attributes:
        root: the checkout.
        no_venv: use the packages of the running Python instead of root/.venv.
    """

    root: Path
    no_venv: bool = False

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def work(self) -> Path:
        """Log, lock and mark of an unfinished set-up; git ignores it."""
        return self.root / ".setup"

    @property
    def log(self) -> Path:
        return self.work / "setup.log"

    @property
    def unfinished(self) -> Path:
        """Exists from the first change of a set-up until its end."""
        return self.work / "unfinished"

    @property
    def python(self) -> Path:
        if self.no_venv:
            return Path(sys.executable)
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        return self.work / "stamp.json" if self.no_venv else self.venv / "lectern-stamp.json"


def fingerprint(target: Target, *, test: bool = False) -> str:
    """Digest of everything that shapes the environment: the lists, the Python, the way of setting up."""
    parts = [f"{SCHEMA} {sys.version_info[0]}.{sys.version_info[1]} {sys.prefix if target.no_venv else ''}".encode()]
    parts += [(target.root / name).read_bytes() for name in (TEST_FILES if test else RUN_FILES)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp(target: Target) -> dict[str, str]:
    """What the last finished set-up left: keys "run", "test", "python"; empty when there is none."""
    try:
        values = json.loads(target.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def extras(target: Target) -> tuple[str, ...]:
    """What a set-up installed besides, such as "ocr"."""
    return tuple(filter(None, read_stamp(target).get("extras", "").split(",")))


def write_stamp(target: Target, *, test: bool, extras: Sequence[str] = ()) -> None:
    """Say that the set-up is done; the last thing a set-up does."""
    values = {"run": fingerprint(target), "python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    if extras:
        values["extras"] = ",".join(extras)
    if test:
        values["test"] = fingerprint(target, test=True)
    part = target.stamp.with_suffix(".part")
    part.write_text(json.dumps(values), encoding="utf-8")
    os.replace(part, target.stamp)


def is_ready(target: Target, *, test: bool = False, extras: Sequence[str] = ()) -> bool:
    """Whether the environment matches the lists in the checkout, so that nothing needs installing."""
    stamp = read_stamp(target)
    if not stamp or not target.python.exists():
        return False
    if not set(extras) <= set(stamp.get("extras", "").split(",")):
        return False
    key = "test" if test else "run"
    return stamp.get(key) == fingerprint(target, test=test)


def describe(target: Target) -> str:
    """The state of the set-up in a few words, for doctor."""
    if is_ready(target):
        return "done, with test packages" if is_ready(target, test=True) else "done"
    if target.unfinished.exists():
        return "unfinished; run `python launch.py setup` to continue"
    if read_stamp(target):
        return "out of date; the next start brings it up to date"
    return "not done; run `python launch.py`"
