"""Files that take long or much: adding them is bounded, can be stopped, and ends with a reason."""

import http.client
import io
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from scripts.attacks.target import JSON, SESSION, Target, case

MB = 1 << 20
LONG_BYTES = 20 * MB
MOST_BYTES = 1 << 30
WATCHED_S = 15
STOPPED_S = 10  # it stops within a second; the machine may be busy
CPU_S = 20
DEPTH = 2_000


def _upload(target: Target, name: str, content: bytes) -> str:
    """Where the page's upload of a file lies."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    body = head + content + b"\r\n--x--\r\n"
    return json.loads(target.ask("POST", "/gradio_api/upload", body, owner=True, headers=form)[2])[0]


@case(11, "a source file of 20 MB in one line: memory, and Stop")
def long_file(target: Target, folder: Path) -> str:
    path = _upload(target, "long.py", b"a = [" + b"1, " * (LONG_BYTES // 3) + b"]")
    record: Any = [{"path": path, "orig_name": "long.py", "meta": {"_type": "gradio.FileData"}}]
    before, most = target.resident(), 0
    target.event(target.events("drop", "upload")[0], [record, "", False], owner=True)
    for _ in range(2 * WATCHED_S):
        most = max(most, target.resident() - before)
        time.sleep(0.5)
    target.event(target.events("library-stop", "click")[0], [], owner=True)
    ended = _ends(target)
    grown = f"{most / 1e9:.1f} GB" if most > MOST_BYTES else ""
    return ", ".join(filter(None, (grown, "" if ended else "it does not stop")))


def _ends(target: Target) -> bool:
    """Whether what the session waits for comes to its end in time."""
    stream = http.client.HTTPConnection(target.address, timeout=STOPPED_S)
    started = time.monotonic()
    try:
        stream.request("GET", f"/gradio_api/queue/data?session_hash={SESSION}", headers={"Cookie": target.key} | JSON)
        answer = stream.getresponse()
        while time.monotonic() - started < STOPPED_S and (line := answer.readline()):
            if b"process_completed" in line or b"close_stream" in line:
                return True
    except OSError:
        pass
    finally:
        stream.close()
    return False


@case(15, "2,000 nested folders, 20 MB of blanks: time and words")
def slow_files(target: Target, folder: Path) -> str:
    deep, blanks = folder / "deep.zip", folder / "blanks.txt"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        made.writestr("a/" * DEPTH + "x.py", "x = 1\n")
    deep.write_bytes(packed.getvalue())
    blanks.write_bytes(b"A text. " + b" " * LONG_BYTES + b" Its end.")
    return ", ".join(filter(None, (_slow(target, path) for path in (deep, blanks))))


def _slow(target: Target, path: Path) -> str:
    """What is wrong with how the app takes a file apart."""
    command = [sys.executable, "-P", "-m", "app.cli", "text", str(path), "--home", str(path.parent / "text")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(target.tree)}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, cwd=target.tree, timeout=300)
    except subprocess.TimeoutExpired:
        return f"{path.name}: not done after 300 s"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if b"Traceback" in done.stderr or b"went wrong" in done.stderr:
        return f"{path.name}: {done.stderr[-120:].decode(errors='replace')}"
    return f"{path.name}: {spent:.0f} s" if spent > CPU_S else ""
