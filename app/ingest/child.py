"""Run one reader in a child process that can be killed, and hear what it says about a file."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.errors import CancelledError
from app.ingest.files import Cancelled

OPEN_TIMEOUT_S = 60.0  # until the first event
NEXT_TIMEOUT_S = 20.0  # between two events
MEMORY_BYTES = 2 << 30
POLL_S = 0.1  # how soon a cancel is seen

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "app.ingest.worker")


def events(
    request: dict[str, Any], cancelled: Cancelled, what: str, *, next_timeout_s: float | None = None
) -> Iterator[dict[str, Any]]:
    """Run one worker and yield its events; the last is `end`, `failed`, or `stopped` with the reason.

    Args:
        request: what the worker is to do (see `app.ingest.worker`).
        cancelled: asked ten times a second.
        what: the kind of file, for messages ("PDF").
        next_timeout_s: between two events; None: `NEXT_TIMEOUT_S`.

    Raises:
        CancelledError: `cancelled` said so.
    """
    worker = start(COMMAND)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=pump, args=(worker.stdout, lines), daemon=True)
    reader.start()
    try:
        worker.stdin.write(json.dumps({"memory_bytes": MEMORY_BYTES, **request}) + "\n")
        worker.stdin.flush()
        timeout_s = OPEN_TIMEOUT_S
        while True:
            line = _next_line(lines, timeout_s, cancelled, what)
            if not line:
                late = f"it took more than {timeout_s:g} s"
                yield {"stopped": late if line is None else f"the {what} reader crashed"}
                return
            event = json.loads(line)
            yield event
            if "end" in event or "failed" in event:
                return
            timeout_s = next_timeout_s or NEXT_TIMEOUT_S
    except BrokenPipeError:
        yield {"stopped": f"the {what} reader crashed"}
    finally:
        worker.kill()
        worker.wait()
        reader.join()
        worker.stdin.close()
        worker.stdout.close()


def start(command: Sequence[str]) -> subprocess.Popen:
    """A child of ours, to be written to and heard line by line."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,  # an "app" folder where the user happens to be must not be taken for ours
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        encoding="ascii",
    )


def pump(stream: Any, lines: "queue.SimpleQueue[str]") -> None:
    """Hear a child until it ends; an empty line says that it did."""
    for line in stream:
        lines.put(line)
    lines.put("")


def _next_line(lines: "queue.SimpleQueue[str]", timeout_s: float, cancelled: Cancelled, what: str) -> str | None:
    """The next line, an empty one at the end of output, or None when `timeout_s` is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if cancelled():
            raise CancelledError(f"reading the {what} was cancelled")
        try:
            return lines.get(timeout=POLL_S)
        except queue.Empty:
            continue
    return None
