"""A real server in a process of its own, for tests, scripts and benchmarks."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_S = 120
END_S = 30


@dataclass
class Server:
    """A served page.

    Attributes:
        url: what the server printed, with the key of this start; where it has no page, the address for programs.
        pid: of the process.
        contacts: names and addresses beyond loopback that the server process asked for.
    """

    url: str
    log: list[str] = field(default_factory=list)
    pid: int = 0
    contacts_file: Path | None = None

    @property
    def base(self) -> str:
        """The address without the key, which the page has once it is open."""
        return self.url.partition("?")[0]

    @property
    def contacts(self) -> list[str]:
        file = self.contacts_file
        return file.read_text(encoding="utf-8").splitlines() if file and file.exists() else []


@contextmanager
def serving(arguments: Sequence[str], folder: Path, start_s: float = START_S, end_s: float = END_S) -> Iterator[Server]:
    """Run `python ARGUMENTS` until the block ends; ready when it says its URL.

    Args:
        folder: for what is noted of it.
        start_s: longest wait for that.
        end_s: longest wait for its end.
    """
    contacts = folder / "contacts.txt"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "guard"), str(ROOT)]),
        "LECTERN_TEST_CONTACTS": str(contacts),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server("", contacts_file=contacts, pid=process.pid)
    open_now = threading.Event()

    def listen() -> None:
        for line in process.stdout:
            server.log.append(line.rstrip())
            if found := re.search(r"(?:Lectern is open at|Programs with a key reach Lectern at) (https?://\S+)", line):
                server.url = found.group(1)
                open_now.set()
        open_now.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        assert open_now.wait(start_s) and server.url, "the server did not start:\n" + "\n".join(server.log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(end_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
