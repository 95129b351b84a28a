"""Many documents read over a Ray cluster with Ray Data: each becomes a bundle in a folder, and then a document here.

The list of what is left needs no state of its own: a file is done when its bundle is there and was made under the same
recipe. A run that was killed goes on with what is missing.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cluster.engine import export_document
from app.errors import InputError, LecternError, NotFoundError
from app.settings import Settings
from app.store.bundle import MANIFEST
from app.store.documents import ID_DIGITS

if TYPE_CHECKING:
    from app.chat import DocumentChat

BUNDLES, SCRATCH = "bundles", "reading-over-ray"
CHUNK_BYTES = 1 << 20
MOST_SENT = 1 << 30  # a row of Ray Data; larger bundles need a folder that all machines see


def files(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, hidden ones left out, by name.

    Raises:
        InputError: there are none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give one with documents")
    found = [
        path for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]  # fmt: skip
    if not found:
        raise InputError(f"{folder}: holds no files; give a folder with documents")
    return found


def bundle_name(path: Path) -> str:
    """The name of a file's bundle, which comes from its bytes: the same file is read once, wherever it lies."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"{digest.hexdigest()[:32]}.lectern"


def made_under(bundle: Path) -> str | None:
    """The recipe of a bundle; None where there is none, or no whole one."""
    try:
        with zipfile.ZipFile(bundle) as file:
            return str(json.loads(file.read(MANIFEST))["recipe"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def left(paths: Sequence[Path], bundles: Path, recipe: str) -> list[Path]:
    """Those whose bundle is not there yet under this recipe, each content once."""
    wanted = {bundle_name(path): path for path in reversed(paths)}
    missing = {path for name, path in wanted.items() if made_under(bundles / name) != recipe}
    return [path for path in paths if path in missing]


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        bundle: its path here.
        error: why it could not be read, "" where it was.
    """

    path: str
    bundle: str = ""
    tokens: int = 0
    seconds: float = 0.0
    worker: int = 0
    error: str = ""


class Worker:
    """Reads files in a library of its own that is thrown away; Ray starts one for each place of work."""

    def __init__(self, settings: Settings, bundles: Path) -> None:
        from app import system
        from app.chat import DocumentChat

        system.keep_private()
        self._scratch = settings.folder / SCRATCH / secrets.token_hex(8)
        self._scratch.mkdir(parents=True, mode=0o700)
        self.bundles = bundles if bundles.is_dir() else self._scratch  # another machine's folder cannot be written to
        self.chat: DocumentChat = DocumentChat.open(replace(settings, home=self._scratch / "home"))
        self.chat.model.engine()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Read one file; what it could not is told in `error`."""
        path, started = Path(str(row["path"])), time.monotonic()
        told: dict[str, Any] = {"path": str(path), "name": row["name"], "tokens": 0, "error": "", "sent": b""}
        try:
            told["tokens"] = self._read(path, self.bundles / str(row["name"]))
            if self.bundles == self._scratch:
                told["sent"] = _sendable(self.bundles / str(row["name"]))
        except LecternError as error:
            told["error"] = str(error)
        return told | {"seconds": time.monotonic() - started, "worker": os.getpid()}

    def _read(self, path: Path, bundle: Path) -> int:
        info = self.chat.library.add_document(path, name=path.name)
        try:
            for _ in self.chat.read(info.id):
                pass
            export_document(self.chat, info.id, bundle)
            return self.chat.library.document(info.id).tokens
        finally:
            self.chat.library.delete_document(info.id)

    def close(self) -> None:
        """Throw the library away."""
        self.chat.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __del__(self) -> None:  # when Ray ends a worker in good order
        if hasattr(self, "chat"):
            self.close()


def _sendable(bundle: Path) -> bytes:
    size = bundle.stat().st_size
    if size > MOST_SENT:
        raise InputError(f"{bundle.name}: {size >> 20} MiB are too much to send; give all machines one data folder")
    data = bundle.read_bytes()
    bundle.unlink()
    return data


@contextmanager
def scratch(home: Path) -> Iterator[None]:
    """Nothing of the workers' libraries is left here after the block; workers that are killed leave theirs."""
    try:
        yield
    finally:
        shutil.rmtree(home / SCRATCH, ignore_errors=True)


def read_all(settings: Settings, paths: Sequence[Path], bundles: Path, workers: int | None) -> Iterator[Outcome]:
    """Read files over the workers of the Ray that is connected; each as it is done.

    A worker that dies is replaced, and the file that it read is read again.

    Args:
        workers: one for each core of the cluster where it is not said.
    """
    import ray
    import ray.data

    cores = int(ray.cluster_resources().get("CPU", 1))
    workers = min(workers or cores, len(paths), cores)
    if settings.threads is None:
        settings = replace(settings, threads=max(1, cores // workers))

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [{"path": str(path), "name": bundle_name(path)} for path in paths]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Worker, fn_constructor_args=(settings, bundles), concurrency=workers, num_cpus=1, max_restarts=-1
    )
    for row in data.iter_rows():
        bundle = bundles / row["name"]
        if row["sent"]:
            part = bundle.with_suffix(".part")
            part.write_bytes(row["sent"])
            part.replace(bundle)
        path = "" if row["error"] else str(bundle)
        yield Outcome(row["path"], path, row["tokens"], row["seconds"], row["worker"], row["error"])


def collect(chat: "DocumentChat", bundle: Path) -> None:
    """Make the document of a bundle one of this library, with what was read of it, unless it is."""
    with suppress(NotFoundError):
        if chat.library.document(bundle.name[:ID_DIGITS]).state == "read":
            return
    chat.saved.forget_empty(chat.transfers.import_chat(bundle, own=True))
