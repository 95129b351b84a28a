"""A running Lectern over a data folder that is thrown away, and ways to talk to it as its page does, or not."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

START_S = 300
ANSWER_S = 60
SESSION = "attack1"
JSON = {"Content-Type": "application/json"}
LEFT = ("owner.new", "exports/0123456789abcdef.lectern.part", f"uploads/{'ab' * 32}/private.pdf", "uploads/tmp0a_b1c2d")


@dataclass
class Target:
    """A running Lectern.

    Attributes:
        tree: the checkout that runs.
        key: the cookie of the owner; "" where the page has none.
        log: what the server printed.
    """

    address: str
    tree: Path
    home: Path
    pid: int
    key: str = ""
    log: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, owner: bool = False, headers: Any = ()
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request; `headers` may name one twice."""
        connection = http.client.HTTPConnection(self.address, timeout=ANSWER_S)
        try:
            pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
            connection.putrequest(method, path, skip_host=any(name == "Host" for name, _ in pairs))
            for name, value in [*pairs, *([("Cookie", self.key)] if owner and self.key else [])]:
                connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body or b"")))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def event(self, index: int, data: list[Any], *, owner: bool, click: Any = None) -> int:
        """Call an event that answers at once, or join the queue for one that does not; returns the status."""
        call = {"fn_index": index, "data": data, "session_hash": SESSION, "event_data": click}
        queued = self.config["dependencies"][index].get("queue") is not False
        path = "/gradio_api/queue/join" if queued else "/gradio_api/run/predict"
        status = self.ask("POST", path, json.dumps(call).encode(), owner=owner, headers=JSON)[0]
        if queued and status == 200:
            time.sleep(2)  # it is worked on now
        return status

    def events(self, elem_id: str = "", kind: str = "") -> list[int]:
        """Events of a component, or of a kind."""
        ids = {part["id"] for part in self.config["components"] if part["props"].get("elem_id") == elem_id}
        return [
            number
            for number, event in enumerate(self.config["dependencies"])
            if any((not elem_id or key in ids) and (not kind or what == kind) for key, what in event["targets"])
            and event.get("backend_fn")
        ]

    def inputs(self, index: int) -> int:
        return len(self.config["dependencies"][index]["inputs"])

    def load(self, session: str) -> None:
        """Open the page, let it ask for the list of chats, and leave it."""
        page = http.client.HTTPConnection(self.address, timeout=ANSWER_S)
        self.ask("GET", "/", owner=True)
        page.request("GET", f"/gradio_api/heartbeat/{session}", headers={"Cookie": self.key})
        page.getresponse().read(1)  # the page is open as long as this goes on
        self.chats(session)
        page.close()

    def resident(self) -> int:
        """Bytes of memory that the process takes."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    def send_chat(self, content: bytes) -> None:
        """Import a file of a chat as the page does."""
        body = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="chat.json"\r\n\r\n'
            + content
            + b"\r\n--x--\r\n"
        )
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        path = json.loads(self.ask("POST", "/gradio_api/upload", body, owner=True, headers=form)[2])[0]
        record = {"path": path, "orig_name": "chat.json", "meta": {"_type": "gradio.FileData"}}
        self.event(self.events("import", "upload")[0], [record, False, ""], owner=True)

    def take_in(self, content: bytes) -> str:
        """Import a chat that has to be taken in; returns its id."""
        self.send_chat(content)
        for _ in range(60):
            if found := re.search(r'data-do="chat-open" data-id="(\w+)"', self.chats()):
                return found[1]
            time.sleep(0.5)
        raise SystemExit("the chat was not taken in")

    def chats(self, session: str = SESSION) -> str:
        """The HTML of the Chats tab."""
        call = {"fn_index": self.events("search", "change")[0], "data": [""], "session_hash": session}
        answer = self.ask("POST", "/gradio_api/run/predict", json.dumps(call).encode(), owner=True, headers=JSON)[2]
        return str(json.loads(answer)["data"][0])


Case = Callable[[Target, Path], str]
CASES: list[tuple[int, str, Case]] = []


def case(number: int, name: str) -> Callable[[Case], Case]:
    """Add a function to the table."""

    def add(attack: Case) -> Case:
        CASES.append((number, name, attack))
        return attack

    return add


@contextmanager
def running(tree: Path, folder: Path) -> Iterator[Target]:
    """The app of a checkout, until the block ends; its folder looks as if an earlier start had been killed."""
    home = folder / "home"
    for name in LEFT:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("left", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "app.cli", "serve", "--no-browser", "--port", "0", "--home", str(home)]
    command += ["--model", str(tree / "models" / "lectern-small")]  # it needs no network
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    target, opened = Target("", tree, home, process.pid), threading.Event()

    def listen() -> None:
        for line in process.stdout or ():
            target.log.append(line.rstrip())
            if found := re.search(r"Lectern is open at (http://\S+)", line):
                target.address = urlsplit(found[1]).netloc
                query = urlsplit(found[1]).query
                target.key = f"lectern-{target.address.rpartition(':')[2]}={query.partition('=')[2]}" if query else ""
                opened.set()
        opened.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        if not opened.wait(START_S) or not target.address:
            raise SystemExit("Lectern did not start:\n" + "\n".join(target.log))
        target.config = json.loads(target.ask("GET", "/config", owner=True)[2])
        yield target
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
