"""Pages of PDFs for the viewer: as pictures, and where on them a passage stands; a child process that stays does it."""

import base64
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InputError
from app.ingest import child

COMMAND = (sys.executable, "-m", "app.ingest.page_worker", str(child.MEMORY_BYTES))
LONGEST_S = 20.0  # for one page
IDLE_S = 120.0  # the child ends when nobody turned a page for so long


@dataclass(frozen=True)
class Located:
    """Where a passage stands on its page.

    Attributes:
        width, height: of the page, in points.
        boxes: (left, top, right, bottom) of each of its lines, in shares of the page from its upper left corner.
    """

    width: float
    height: float
    boxes: tuple[tuple[float, float, float, float], ...] = ()


class Pages:
    """Shows pages of PDFs. One request runs at a time; a page that takes too long costs the child its life."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: subprocess.Popen | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._idle: threading.Timer | None = None

    def draw(self, path: Path, page: int) -> bytes:
        """One page as JPEG, 1,200 pixels wide.

        Args:
            page: its index, from 0.

        Raises:
            InputError: the file or the page cannot be drawn.
        """
        return base64.b64decode(self._ask(path, page)["image"])

    def locate(self, path: Path, page: int, text: str, start: int, end: int) -> Located:
        """Where characters [start, end) of a page's text stand on it; no boxes where they are not found.

        Args:
            text: as the library has it.

        Raises:
            InputError: see `draw`.
        """
        found = self._ask(path, page, passage=(text, start, end))
        return Located(found["width"], found["height"], tuple(tuple(box) for box in found["boxes"]))

    def close(self) -> None:
        """End the child; the next page starts another."""
        with self._lock:
            self._end()

    def _ask(self, path: Path, page: int, **request: Sequence[Any]) -> dict[str, Any]:
        said: dict[str, Any] = {"failed": "the PDF reader crashed"}
        with self._lock:
            if self._idle:
                self._idle.cancel()
            try:
                worker = self._started()
                worker.stdin.write(json.dumps({"path": str(path.absolute()), "page": page, **request}) + "\n")
                worker.stdin.flush()
                said = json.loads(self._lines.get(timeout=LONGEST_S) or json.dumps(said))
            except queue.Empty:
                said = {"failed": f"it took more than {LONGEST_S:g} s"}
                self._end()
            except OSError:
                self._end()
            self._idle = threading.Timer(IDLE_S, self.close)
            self._idle.daemon = True
            self._idle.start()
        if "failed" in said:
            raise InputError(f"{path.name}: page {page + 1} cannot be drawn ({said['failed']}); its text can be read")
        return said

    def _started(self) -> subprocess.Popen:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._end()
        worker = child.start(COMMAND)
        lines = self._lines = queue.SimpleQueue()
        threading.Thread(target=child.pump, args=(worker.stdout, lines), daemon=True).start()
        self._worker = worker
        return worker

    def _end(self) -> None:
        if self._idle:
            self._idle.cancel()
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            self._worker.stdin.close()
        self._worker = None
