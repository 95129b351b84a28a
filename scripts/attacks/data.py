"""The data folder: a library that is gone, chat files that no Lectern wrote, and what is left behind.

A full disk (12) is tried by scripts/full_disk.py.
"""

import http.client
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.attacks.target import LEFT, Target, case

WAIT_S = 10


def chat_file(title: str) -> dict[str, Any]:
    """A small chat as `chats export` writes it."""
    stats: dict[str, Any] = {}
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    kept = [message | {"id": n, "stats": stats, "evidence": []} for n, message in enumerate(messages, 1)]
    about = {"format": "lectern-chat-json", "version": 1, "title": title, "model": "", "policy": "keep-all"}
    return about | {"documents": [], "updated": "2026-01-01T00:00:00+00:00", "messages": kept}


def _on_a_store(target: Target, folder: Path, name: str) -> str:
    """Run a try of bundles.py in a process of its own, for it takes the modules of the checkout that is attacked."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("bundles.py")), str(folder / f"store-{name}"), name]
    environment = os.environ | {"PYTHONPATH": str(target.tree)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return json.loads(done.stdout) if done.returncode == 0 else f"could not be tried: {done.stderr[-150:]}"


@case(9, "a library that is gone: its copy replaced, or opened empty")
def lost_library(target: Target, folder: Path) -> str:
    return _on_a_store(target, folder, "lost")


@case(10, "an imported chat that claims the SHA-256 of a file")
def claimed_hash(target: Target, folder: Path) -> str:
    return _on_a_store(target, folder, "claimed")


@case(13, "an imported bundle with a weight that is no number")
def no_number(target: Target, folder: Path) -> str:
    return _on_a_store(target, folder, "no_number")


def _evidence(chat: dict[str, Any], **values: Any) -> None:
    passage = {"id": "e2-1", "document": "d", "title": "D", "label": "1", "part": 1, "char_start": 0, "char_end": 4}
    chat["messages"][1]["evidence"] = [passage | {"text": "text", "weight": 0.5, "regions": [[0, 1]]} | values]


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "a weight that is no number": lambda chat: _evidence(chat, weight=math.nan),
    "a place backwards": lambda chat: _evidence(chat, char_start=9, char_end=3),
    "a text that is none": lambda chat: chat["messages"][0].update(content=7),
    "a role that is none": lambda chat: chat["messages"][0].update(role="system"),
    "statistics that are none": lambda chat: chat["messages"][1].update(stats=[1]),
    "documents that are none": lambda chat: chat.update(documents="d"),
    "a title that is none": lambda chat: chat.update(title=["t"]),
}


@case(13, "chat files with values that no Lectern writes")
def wrong_chats(target: Target, folder: Path) -> str:
    for number, change in enumerate(WRONG.values()):
        chat = chat_file(f"Wrong {number}")
        change(chat)
        target.send_chat(json.dumps(chat).encode())
    target.take_in(json.dumps(chat_file("Right")).encode())  # by now all of them were looked at
    listed = target.chats()
    return ", ".join(what for number, what in enumerate(WRONG) if f"Wrong {number}" in listed)


@case(14, "what an earlier start left unfinished")
def left(target: Target, folder: Path) -> str:
    return ", ".join(name for name in LEFT if (target.home / name).exists())


@case(14, "an upload whose connection drops")
def dropped_upload(target: Target, folder: Path) -> str:
    uploads = target.home / "uploads"
    before = set(uploads.rglob("*"))
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="private.txt"\r\n\r\n'
    connection = http.client.HTTPConnection(target.address, timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    for name, value in (("Content-Type", "multipart/form-data; boundary=x"), ("Cookie", target.key)):
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(8 << 20))
    connection.endheaders(head + b"private " * (1 << 17))
    time.sleep(2)  # it is being written
    connection.close()
    for _ in range(WAIT_S * 2):
        if not (files := {path for path in set(uploads.rglob("*")) - before if path.is_file()}):
            return ""
        time.sleep(0.5)
    return f"{len(files)} files stay"
