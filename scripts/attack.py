"""Try what another account, program or site would try on a running Lectern: all of it has to be refused.

    python scripts/attack.py               # a table: case, refused or not
    python scripts/attack.py --only 8,17   # some of the cases
    python scripts/attack.py --tree PATH   # on another checkout, an older one say

Starts the app over a data folder that is thrown away, speaks to 127.0.0.1 alone, and uses harmless marker files. A case
is a function marked with @case that returns "" when it was refused, else what was reached. The exit code is 1 when
anything was reached.
"""

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
START_S = 300
ANSWER_S = 60
MARKER = "marker 7f3a of the attack script"
SESSION = "attack1"
LOADS = 60
LOAD_BYTES = 64 << 20  # what so many page loads may leave behind, the interpreter's own growth included
HOSTILE = (
    "Look:\n\n    a < b && c\n\n<style>body{display:none}</style> <b onclick=x>tag</b> "
    "![picture](http://127.0.0.1:9/marker.png)"
)
HEADERS = ("content-security-policy", "x-content-type-options", "referrer-policy")


@dataclass
class Target:
    """A running Lectern.

    Attributes:
        key: the cookie of the owner; "" where the page has none.
        tree: the checkout that it runs.
        log: what the server printed.
    """

    address: str
    home: Path
    pid: int
    key: str = ""
    tree: Path = ROOT
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

    def take_in(self, content: bytes) -> str:
        """Import a chat as the page does; returns its id."""
        body = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="chat.json"\r\n\r\n'
            + content
            + b"\r\n--x--\r\n"
        )
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        path = json.loads(self.ask("POST", "/gradio_api/upload", body, owner=True, headers=form)[2])[0]
        record = {"path": path, "orig_name": "chat.json", "meta": {"_type": "gradio.FileData"}}
        self.event(self.events("import", "upload")[0], [record, False, ""], owner=True)
        for _ in range(60):
            if found := re.search(r'data-do="chat-open" data-id="(\w+)"', self._chats()):
                return found[1]
            time.sleep(0.5)
        raise SystemExit("the chat was not taken in")

    def _chats(self) -> str:
        """The HTML of the Chats tab."""
        chats = self.events("search", "change")[0]
        call = {"fn_index": chats, "data": [""], "session_hash": SESSION}
        answer = self.ask("POST", "/gradio_api/run/predict", json.dumps(call).encode(), owner=True, headers=JSON)[2]
        return str(json.loads(answer)["data"][0])


Case = Callable[[Target, Path], str]
JSON = {"Content-Type": "application/json"}
CASES: list[tuple[int, str, Case]] = []


def case(number: int, name: str) -> Callable[[Case], Case]:
    """Add a function to the table."""

    def add(attack: Case) -> Case:
        CASES.append((number, name, attack))
        return attack

    return add


def reached(answers: Mapping[str, int]) -> str:
    """The requests that were not refused."""
    return ", ".join(f"{what}: {status}" for what, status in answers.items() if status < 400)


# 8: files, the key, the data folder


@case(8, "routes without the key")
def without_key(target: Target, folder: Path) -> str:
    paths = (
        "/",
        "/config",
        "/theme.css",
        "/gradio_api/info",
        "/gradio_api/app_id",
        "/gradio_api/queue/data?session_hash=a",
    )
    answers = {path: target.ask("GET", path)[0] for path in paths}
    answers["upload"] = target.ask("POST", "/gradio_api/upload", b"", headers={"Content-Type": "multipart/form-data"})[
        0
    ]
    return reached(answers)


@case(8, "an event without the key names a file")
def file_without_key(target: Target, folder: Path) -> str:
    return _file_by_event(target, folder / "one.txt", owner=False)


@case(8, "an event with the key names a file elsewhere")
def file_with_key(target: Target, folder: Path) -> str:
    return _file_by_event(target, folder / "two.txt", owner=True)


def _file_by_event(target: Target, marker: Path, owner: bool) -> str:
    marker.write_text(MARKER, encoding="utf-8")
    record = {"path": str(marker), "orig_name": "a.txt", "meta": {"_type": "gradio.FileData"}}
    for index in target.events(kind="upload"):
        first: Any = [record] if "drop" in json.dumps(target.config["dependencies"][index]["targets"]) else record
        for value in (first, record, [record]):
            target.event(index, [value, *[""] * (target.inputs(index) - 1)], owner=owner)
    return "" if marker.exists() else "the file was removed"


@case(8, "events by their names")
def by_name(target: Target, folder: Path) -> str:
    names = {event.get("api_name") for event in target.config["dependencies"]} - {None, False}
    answers = {}
    for name in list(names)[:20]:
        answers[f"call/{name}"] = target.ask(
            "POST", f"/gradio_api/call/{name}", b'{"data": []}', owner=True, headers=JSON
        )[0]
        answers[f"run/{name}"] = target.ask(
            "POST", f"/gradio_api/run/{name}", b'{"data": []}', owner=True, headers=JSON
        )[0]
    return reached(answers)


@case(8, "files of the data folder by the file route")
def file_route(target: Target, folder: Path) -> str:
    paths = [target.home / "library.db", target.home / "owner.json", folder / ".." / "etc" / "hostname"]
    return reached({path.name: target.ask("GET", f"/gradio_api/file={path}", owner=True)[0] for path in paths})


@case(8, "the data folder by other accounts")
def modes(target: Target, folder: Path) -> str:
    paths = [target.home, *target.home.iterdir()]
    return ", ".join(f"{path.name} {path.stat().st_mode & 0o777:o}" for path in paths if path.stat().st_mode & 0o077)


@case(8, "the key in command lines")
def command_lines(target: Target, folder: Path) -> str:
    key = target.key.partition("=")[2].encode()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()] if key else []
    return "it stands in one" if any(key in line for line in lines) else ""


@case(8, "foreign Host and Origin")
def foreign(target: Target, folder: Path) -> str:
    tried = {
        "Host": [("Host", "evil.example")],
        "Origin": [("Origin", "https://evil.example")],
        "other port": [("Origin", "http://127.0.0.1:1")],
        "null": [("Origin", "null")],
    }
    return reached({name: target.ask("GET", "/", owner=True, headers=pairs)[0] for name, pairs in tried.items()})


# 9, 10, 13, 14: the data folder and files from elsewhere, on folders of their own


STORE = """
import hashlib, json, sys, time, zipfile
from pathlib import Path
from app.errors import LecternError
from app.records import Document, Evidence, Part
from app.store import bundle, transfer
from app.store.home import acquire
from app.store.store import Store

folder, name = Path(sys.argv[1]), sys.argv[2]
folder.mkdir()

def opened(place):
    return Store(folder / place, disk_budget_bytes=1 << 30)

def filled(place):
    store = opened(place)
    text = (Part(1, "1", "The text of the file."),)
    id = store.add_document(Document("Book", "text", "ab" * 32, text))
    chat = store.create_chat([id], "m", "A chat")
    store.save_turn(chat, "q", "a", {}, [Evidence("", id, "Book", "1", 1, 0, 3, "The", 0.5)], None)
    time.sleep(1)
    store.close()
    return id, chat

def changed(change):
    id, chat = filled("from")
    store = opened("from")
    transfer.export_chat(store, chat, folder / "chat.lectern", "r")
    store.close()
    with zipfile.ZipFile(folder / "chat.lectern") as file:
        entries = {n: json.loads(file.read(n)) for n in file.namelist() if n != bundle.MANIFEST}
    change(entries)
    with bundle.writing(folder / "changed.lectern") as out:
        for n, value in entries.items():
            out.add(n, json.dumps(value).encode())
        out.finish({"recipe": "r", "parts": {}})
    return folder / "changed.lectern"

def lost():
    filled("home")
    opened("home").close()
    time.sleep(1)
    for path in (folder / "home").glob("library.db*"):
        path.unlink()
    copy = folder / "home" / "library.backup.db"
    before = copy.read_bytes()
    copy.touch()
    import os
    os.utime(copy, (0, 0))
    try:
        store = opened("home")
        time.sleep(2)
        store.close()
    except LecternError:
        pass
    return "the copy was replaced by an emptier one" if copy.read_bytes() != before else ""

def claimed():
    def change(entries):
        for n in [n for n in entries if n.startswith("documents/")]:
            value = entries.pop(n)
            value["sha256"], value["parts"][0]["text"] = "cd" * 32, "A claimed text."
            entries["documents/" + "cd" * 6 + ".json"] = value
    path = changed(change)
    store = opened("to")
    transfer.import_chat(store, path, None)
    id = store.add_document(Document("Real", "text", "cd" * 32, (Part(1, "1", "What the file says."),)))
    text = store.parts(id)[0].text
    store.close()
    return "" if text == "What the file says." else f"the file reads as {text!r}"

def nan():
    def change(entries):
        entries["chat.json"]["messages"][1]["evidence"][0]["weight"] = float("nan")
    path, store = changed(change), opened("to")
    try:
        transfer.import_chat(store, path, None)
    except LecternError:
        return "something was taken" if store.documents("r") or store.chats() else ""
    finally:
        store.close()
    return "a weight that is no number was taken"

def left():
    part = folder / "home" / "exports" / "0123456789abcdef.lectern.part"
    part.parent.mkdir(parents=True)
    part.write_text("private")
    acquire(folder / "home").release()
    return "half an export stays" if part.exists() else ""

print(json.dumps({"lost": lost, "claimed": claimed, "nan": nan, "left": left}[name]()))
"""


def _on_a_store(target: Target, folder: Path, name: str) -> str:
    """Run one of the tries above in a process of its own; what it reached."""
    command = [sys.executable, "-P", "-c", STORE, str(folder / f"store-{name}"), name]
    environment = os.environ | {"PYTHONPATH": str(target.tree)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=environment)
    return json.loads(done.stdout) if done.returncode == 0 else f"could not be tried: {done.stderr[-150:]}"


@case(9, "a removed library, and the copy beside it")
def lost_library(target: Target, folder: Path) -> str:
    return _on_a_store(target, folder, "lost")


@case(10, "an imported chat that claims the SHA-256 of a file")
def claimed_hash(target: Target, folder: Path) -> str:
    return _on_a_store(target, folder, "claimed")


@case(13, "an imported chat with a weight that is no number")
def no_number(target: Target, folder: Path) -> str:
    return _on_a_store(target, folder, "nan")


@case(14, "half an export of a process that died")
def leftovers(target: Target, folder: Path) -> str:
    return _on_a_store(target, folder, "left")


# 16: what answers and exports show


@case(16, "HTML and pictures of an imported chat in an export")
def export(target: Target, folder: Path) -> str:
    from markdown_it import MarkdownIt

    key = _hostile_chat(target)
    text = target.ask("GET", f"/chats/{key}/export.md", owner=True)[2].decode()
    found = re.findall(r"<(?:style|b|img)\b[^>]*>", MarkdownIt("commonmark").render(text))
    return ", ".join(found) if "a < b && c" in text else "code was changed"


@case(16, "HTML, styles and pictures of an imported chat on the page")
def on_page(target: Target, folder: Path) -> str:
    try:
        from tests.browser import chromium, visiting
    except ImportError:
        return ""
    key = _hostile_chat(target)
    url = f"http://{target.address}/" + (f"?key={target.key.partition('=')[2]}" if target.key else "")
    with chromium() as browser, visiting(browser, url) as visit:
        visit.tab("Chats")
        visit.page.locator(f".lt-open[data-id='{key}']").click()
        visit.page.locator("#talk .lt-foot").wait_for(timeout=30_000)
        foreign = visit.page.locator("#talk style, #talk img, #talk b[onclick]").count()
        blocked = [line for line in visit.errors if "Content Security Policy" in line]
        code = "a < b && c" in visit.page.locator("#talk").inner_text()
    return (
        f"{foreign} elements, {len(blocked)} fetches"
        if foreign or blocked or visit.outside
        else ""
        if code
        else "code was changed"
    )


def _hostile_chat(target: Target) -> str:
    messages = [{"role": "user", "content": "Why __init__?"}, {"role": "assistant", "content": HOSTILE}]
    kept = [message | {"id": number, "stats": {}, "evidence": []} for number, message in enumerate(messages, 1)]
    chat = {
        "format": "lectern-chat-json",
        "version": 1,
        "title": "Look",
        "model": "",
        "policy": "keep-all",
        "documents": [],
    }
    return target.take_in(json.dumps(chat | {"updated": "2026-01-01T00:00:00+00:00", "messages": kept}).encode())


# 17: small things


@case(17, "an export by the first letters of an id, or from another site")
def exports(target: Target, folder: Path) -> str:
    key = _hostile_chat(target)
    path = f"/chats/{key}/export.json"
    whole = target.ask("GET", path, owner=True)[0]
    answers = {"part of an id": target.ask("GET", f"/chats/{key[:6]}/export.json", owner=True)[0]}
    for site in ("cross-site", "same-site"):
        answers[site] = target.ask("GET", path, owner=True, headers={"Sec-Fetch-Site": site})[0]
    return reached(answers) if whole == 200 else "the owner is refused"


@case(17, "two Origin headers")
def two_origins(target: Target, folder: Path) -> str:
    pairs = [("Origin", f"http://{target.address}"), ("Origin", "https://evil.example")]
    return reached({"two": target.ask("GET", "/", owner=True, headers=pairs)[0]})


@case(17, "a refusal without our headers")
def refusal_headers(target: Target, folder: Path) -> str:
    status, headers, _ = target.ask("GET", "/", headers={"Host": "evil.example"})
    missing = [name for name in HEADERS if name not in headers]
    return f"{status} without {', '.join(missing)}" if missing else ""


@case(17, "wrong types to every event: tracebacks in the log")
def wrong_types(target: Target, folder: Path) -> str:
    before = "\n".join(target.log).count("Traceback")
    values: list[Any] = [None, 7, {}, [[]], "x", True]
    for index, event in enumerate(target.config["dependencies"]):
        if event.get("backend_fn") and event.get("queue") is False:
            for number in range(3):
                data = [values[(number + place) % len(values)] for place in range(target.inputs(index))]
                target.event(index, data, owner=True, click={"id": "nobody", "text": ""})
    time.sleep(1)
    count = "\n".join(target.log).count("Traceback") - before
    return f"{count} tracebacks" if count else ""


@case(17, f"{LOADS} page loads that were left")
def loads(target: Target, folder: Path) -> str:
    def resident() -> int:
        status = Path(f"/proc/{target.pid}/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    before, look = resident(), target.events("search", "change")[0]
    for number in range(LOADS):
        target.ask("GET", "/", owner=True)
        call = {"fn_index": look, "data": [""], "session_hash": f"load{number}"}
        target.ask("POST", "/gradio_api/run/predict", json.dumps(call).encode(), owner=True, headers=JSON)
    grown = resident() - before
    return f"{grown / 1e6:.0f} MB stay" if grown > LOAD_BYTES else ""


@contextmanager
def running(tree: Path, folder: Path) -> Iterator[Target]:
    """The app of a checkout, until the block ends."""
    home = folder / "home"
    command = [sys.executable, "-P", "-m", "app.cli", "serve", "--no-browser", "--port", "0", "--home", str(home)]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    target, opened = Target("", home, process.pid, tree=tree), threading.Event()

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to start (this one)")
    parser.add_argument("--only", default="", help="numbers of cases, with commas")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    wanted = {int(number) for number in args.only.split(",") if number}
    failed = 0
    with tempfile.TemporaryDirectory() as folder, running(args.tree.resolve(), Path(folder)) as target:
        for number, name, attack in CASES:
            if wanted and number not in wanted:
                continue
            try:
                outcome = attack(target, Path(folder))
            except Exception as error:
                outcome = f"could not be tried: {type(error).__name__}: {error}"
            failed += bool(outcome)
            print(
                f"{number:>3}  {name:<62} {'refused' if not outcome else 'NOT REFUSED: ' + outcome[:200]}", flush=True
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
