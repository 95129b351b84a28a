"""`doctor`: what Lectern finds on this computer. Works before the set-up and on a busy or damaged data folder."""

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.cli.log import unexpected
from app.errors import BusyError, ConfigError, LecternError
from app.models import shipped
from app.settings import ROOT, Settings
from app.setup import builds, state
from app.system import size_text

if TYPE_CHECKING:
    from app.cli.output import Output

LOW_DISK_BYTES = 2 << 30
QUICK_CHECK_BYTES = 1 << 30  # larger databases take minutes; `store verify` is for those
FULL_BYTES = 64 << 10  # SQLite needs as much beside a file that it opens
LIBRARY = "library.db"
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
AFTER_SETUP = "known after the set-up"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `note` is worth knowing; `problem` keeps something from working."""

    name: str
    state: Literal["ok", "note", "problem"]
    text: str


def run(settings: Settings, out: "Output") -> int:
    """Print the report; JSON is {"ok": bool, NAME: {"state", "text"}, ...}.

    Returns:
        0, or 1 when there is a problem.
    """
    findings = list(examine(settings))
    ok = all(finding.state != "problem" for finding in findings)
    values = {"ok": ok, **{f.name: {"state": f.state, "text": f.text} for f in findings}}
    width = max(len(finding.name) for finding in findings)
    lines = [f"{f.state:<7}  {f.name:<{width}}  {f.text}" for f in findings]
    lines.append("Everything needed is there." if ok else "See the lines marked `problem`.")
    out.result(values, "\n".join(lines))
    return 0 if ok else 1


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, each made even where another failed."""
    yield Finding("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    yield _setup()
    yield from _torch(settings.device)
    try:
        folder = settings.folder
    except ImportError:
        yield Finding("data folder", "note", AFTER_SETUP)
    else:
        yield _folder(folder)
        yield _disk(folder)
        for name in ("library.db", "kv.db"):
            yield _database(folder / name)
        yield from _log(folder)
        yield from _memories(folder, int(settings.disk_budget_gb * 1e9))
    yield _model(settings)


def _setup() -> Finding:
    target = state.Target(ROOT)
    if state.is_ready(target):
        return Finding("set-up", "ok", state.describe(target))
    if state.is_ready(state.Target(ROOT, no_venv=True)):
        return Finding("set-up", "ok", "done in this Python (--no-venv)")
    if Path(sys.prefix).resolve() == target.venv.resolve() and not target.unfinished.exists():
        return Finding("set-up", "note", state.describe(target))  # an older one, or one made by hand
    return Finding("set-up", "problem", state.describe(target))


def _torch(wanted: str) -> Iterator[Finding]:
    """torch, the GPU, and what the model would run on when `wanted` is the --device."""
    try:
        import torch
    except ImportError as error:
        installed = error.name != "torch"
        yield Finding("torch", "problem", f"cannot be imported: {error}" if installed else "not installed")
        yield Finding("cuda", "note", "NVIDIA GPU seen" if builds.nvidia_seen() else "no NVIDIA GPU seen")
        return
    usable = builds.usable(torch.__version__)
    text = torch.__version__ + ("" if usable else "; Lectern works with 2.11 to 2.13")
    yield Finding("torch", "ok" if usable else "problem", text)
    cuda = torch.cuda.is_available()
    if cuda:
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        text = ", ".join(f"{device.name} with {size_text(device.total_memory)}" for device in devices)
        yield Finding("cuda", "ok", text)
    elif not builds.nvidia_seen():
        yield Finding("cuda", "ok", "no NVIDIA GPU seen; the model runs on the CPU")
    elif torch.version.cuda is None:
        text = "CUDA device present but CPU torch: run `python launch.py setup --torch cuda` to use it"
        yield Finding("cuda", "note", text)
    else:
        text = f"NVIDIA GPU seen, but torch (CUDA {torch.version.cuda}) cannot use it: update the driver"
        yield Finding("cuda", "note", text)
    if wanted == "cuda" and not cuda:
        yield Finding("backend", "problem", "--device cuda, but torch sees no CUDA device")
        return
    device = "cuda" if cuda and wanted != "cpu" else "cpu"
    yield Finding("backend", "ok", "PyTorch on " + ("CUDA" if device == "cuda" else "the CPU"))
    yield _kernels(device)


def _kernels(device: str) -> Finding:
    from app.kernels.backend import backend, flash_varlen

    try:
        found = backend(device)
    except ConfigError as error:
        return Finding("kernels", "problem", str(error))
    slower = device == "cuda" and found.kind == "reference"
    flash = "; flash-attn for groups in training" if device == "cuda" and flash_varlen() else ""
    return Finding("kernels", "note" if slower else "ok", f"{found.name}: {found.why}{flash}")


def _folder(folder: Path) -> Finding:
    if not folder.exists():
        return Finding("data folder", "ok", f"{folder}, made at the first start")
    try:
        from app.store import home

        home.acquire(folder).release()
    except ImportError:
        return Finding("data folder", "note", f"{folder}; whether it is free is {AFTER_SETUP}")
    except BusyError as error:
        return Finding("data folder", "note", str(error))
    except LecternError as error:
        return Finding("data folder", "problem", str(error))
    return Finding("data folder", "ok", f"{folder}, free to use")


def _disk(folder: Path) -> Finding:
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    if free < LOW_DISK_BYTES:
        return Finding("disk", "problem", f"{size_text(free)} free at {nearest}: too little to keep what is read")
    return Finding("disk", "ok", f"{size_text(free)} free")


def _database(path: Path) -> Finding:
    """Look at a database of the store without changing it, whoever holds the folder."""
    if not path.exists() or not path.stat().st_size:
        return _absent(path)
    size = path.stat().st_size
    small = size <= QUICK_CHECK_BYTES
    query = "PRAGMA quick_check(1)" if small else "SELECT 'ok' FROM sqlite_schema"
    try:
        answer = _asked(path, "mode=ro", query)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF in DAMAGE:
            answer = str(error)
        else:
            return _unseen(path, error, query)
    if answer != "ok":
        way = (
            "`python launch.py store restore` puts its last copy in its place"
            if path.name == LIBRARY
            else ("run `python launch.py store verify`")
        )
        return Finding(path.name, "problem", f"{path} is damaged ({answer}): {way}")
    depth = "structure sound" if small else "opens; check it with `python launch.py store verify`"
    return Finding(path.name, "ok", f"{size_text(size)}, {depth}")


def _absent(path: Path) -> Finding:
    """No database, or an empty file: all right in a new folder, a loss where copies lie beside it."""
    copies = sorted(file.name for file in path.parent.glob("library.backup*.db") if path.name == LIBRARY)
    if not copies:
        return Finding(path.name, "ok", "not made yet")
    text = f"{path} is gone; `python launch.py store restore` puts its last copy in its place ({', '.join(copies)})"
    return Finding(path.name, "problem", text)


def _asked(path: Path, how: str, query: str) -> str:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=5)
    try:
        return str(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


def _unseen(path: Path, error: sqlite3.Error, query: str) -> Finding:
    """Why a database that may be sound could not be looked at as usual; looked at without its log where that works."""
    code, free = error.sqlite_errorcode & 0xFF, shutil.disk_usage(path.parent).free
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Finding(path.name, "note", f"{path} is held by another program; look again when that has ended")
    if not os.access(path, os.R_OK):
        return Finding(path.name, "problem", f"{path} may not be read by this account; check its permissions")
    if free < FULL_BYTES or code == sqlite3.SQLITE_FULL:
        why = "the disk is full"
    elif not os.access(path.parent, os.W_OK):
        why = f"{path.parent} is read-only"
    else:
        why = f"SQLite says: {error}"
    try:
        answer = _asked(path, "mode=ro&immutable=1", query)
    except sqlite3.Error as second:
        answer = str(second)
    log = Path(f"{path}-wal")
    beside = ", its log not looked at" if log.exists() and log.stat().st_size else ""
    sound = f"structure sound{beside}" if answer == "ok" else f"not looked at ({answer})"
    return Finding(path.name, "note" if answer == "ok" else "problem", f"{path}: {why}; {sound}")


def _log(folder: Path) -> Iterator[Finding]:
    """Errors that nobody foresaw."""
    try:
        found = unexpected(folder)
    except OSError:
        return
    if found:
        moment, cause = found[-1]
        text = f"{len(found)} errors that nobody foresaw in lectern.log, the last {moment}: {cause[:200]}"
        yield Finding("log", "note", text)


def _memories(folder: Path, budget_bytes: int) -> Iterator[Finding]:
    """What kv.db holds, every block checked where that takes seconds; and files that were set aside."""
    path = folder / "kv.db"
    aside = sorted(file.name for file in folder.glob("*.set-aside-*.db"))
    if aside:
        text = f"{', '.join(aside)} in {folder}: damaged before; delete what you do not need"
        yield Finding("set aside", "note", text)
    if not path.exists() or path.stat().st_size > QUICK_CHECK_BYTES:
        return
    try:
        from app.store.block_rows import look

        found = look(path)
    except (ImportError, sqlite3.Error):  # before the set-up; a broken file is a finding of its own
        return
    budget = f"{size_text(found.size_bytes)} of {size_text(budget_bytes)}"
    if found.damaged:
        text = f"{len(found.damaged)} of {found.blocks:,} blocks damaged: run `python launch.py store verify`"
        yield Finding("memories", "problem", text)
    elif found.blocks:
        rate = f", {found.size_bytes / found.tokens:,.0f} bytes per token" if found.tokens else ""
        codecs = ", ".join(found.codecs)
        yield Finding("memories", "ok", f"{found.tokens:,} tokens, {budget}{rate} ({codecs}); every block checked")
    else:
        yield Finding("memories", "ok", f"none yet, {budget}")


def _model(settings: Settings) -> Finding:
    folder = Path(settings.model).expanduser()
    try:
        package = shipped.read_package(folder)
    except LecternError as error:
        return Finding("model", "problem", str(error))
    if package is not None:
        return _package(package, settings)
    if folder.is_file():
        return Finding("model", "ok", f"{folder}, {size_text(folder.stat().st_size)}, GGUF")
    if not folder.is_dir():
        if folder.is_absolute() or settings.model.startswith((".", "~")):
            return Finding("model", "problem", f"{folder}: no such folder")
        return Finding("model", "note", f"{settings.model}: no folder here, so an id of the hub")
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    weights = sorted(folder.glob("*.safetensors"))
    if missing or not weights:
        lacks = ", ".join([*missing, *([] if weights else ["*.safetensors"])])
        return Finding("model", "problem", f"{folder} is incomplete: it lacks {lacks}")
    text = f"{folder}, weights {size_text(sum(path.stat().st_size for path in weights))}"
    try:
        trained = _trained_tokens(folder)
    except ConfigError as error:
        return Finding("model", "problem", str(error))
    return Finding("model", "ok", text + (f", trained on {trained:,} tokens" if trained else ""))


def _package(package: "shipped.Package", settings: Settings) -> Finding:
    """A model whose base is fetched: whether its checkpoint is made."""
    try:
        place = shipped.place_of(package, settings.folder)
        made = shipped.is_prepared(package, settings.folder)
    except ImportError:
        return Finding("model", "note", f"{package.name}: {package.told}; {AFTER_SETUP}")
    if not made:
        return Finding("model", "note", f"{package.name} is not made yet: {package.told}; `{shipped.AGAIN}` does it")
    untuned = "" if package.has_adapter else ", its base untuned"
    return Finding("model", "ok", f"{place}, made of {package.base['package']} {package.base['version']}{untuned}")


def _trained_tokens(folder: Path) -> int | None:
    """Trained length that the model states; None when it states none.

    Raises:
        ConfigError: config.json or lectern.json is not JSON.
    """
    config: dict[str, object] = {}
    for name in ("config.json", "lectern.json"):
        path = folder / name
        if path.exists():
            try:
                config.update(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    value = config.get("trained_tokens") or config.get("max_position_embeddings")
    return value if isinstance(value, int) else None
