"""Two users of one Lectern: one tries in 200 ways to reach what the other has, and somebody without a key everything.

    python scripts/separation.py

Starts Lectern as behind a proxy, on a data folder that is thrown away, adds two users, lets one send a document and
talk about it, and tries. A way succeeds when an answer holds a word of the document, its title, the id of the chat or
of the library's folder, or when something of the owner's is gone afterwards. Prints what was tried by kind, then one
JSON line, and writes benchmarks/results/separation.json; the exit code is 1 when a way succeeds.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402
from tests.serving import serving  # noqa: E402

SECRET, TITLE = "Quillfeather", "harbour-ledger"
TEXT = f"The keeper of the harbour is {SECRET}. " * 40
QUESTION = "Who keeps the harbour?"
WAIT_S = 300
ROUTES = (
    "/", "/config", "/metrics", "/ready", "/theme.css", "/gradio_api/queue/join", "/gradio_api/upload",
    "/gradio_api/file=users.json", "/v1/models", "/v1/files", "/v1/chat/completions", "/v1/responses",
    "/v1/completions", "/chats/a/export.md", "/documents/a/pages/1.jpg", "/docs", "/openapi.json",
)  # fmt: skip


class Client(Protocol):
    """What asks: httpx.Client, or a TestClient."""

    def request(self, method: str, url: str, **given: Any) -> Any: ...


@dataclass(frozen=True)
class Way:
    """One try."""

    kind: str
    method: str
    path: str
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Theirs:
    """What the other user has.

    Attributes:
        reply: of the endpoint, to the question about the document.
    """

    document: str
    chat: str
    reply: dict[str, Any]
    name: str
    folder: str
    digest: str

    def shown_in(self, text: str, sent: str) -> bool:
        """Whether an answer holds something of it that was not sent: messages repeat what they refuse."""
        words = (SECRET, TITLE, self.chat, self.folder, self.digest)
        return any(word in text for word in words if word not in sent)


def have(client: Client, key: str, name: str, folder: str, digest: str) -> Theirs:
    """Send a document as one user and talk about it."""
    headers = {"Authorization": f"Bearer {key}"}
    file = client.request("POST", "/v1/files", files={"file": (f"{TITLE}.txt", TEXT.encode())}, headers=headers).json()
    body = {"model": "lectern", "messages": _said(QUESTION), "max_tokens": 8, "documents": [file["id"]]}
    reply = client.request("POST", "/v1/chat/completions", json=body, headers=headers).json()
    return Theirs(file["id"].removeprefix("file-"), reply["lectern"]["chat"], reply, name, folder, digest)


def ways(theirs: Theirs) -> Iterator[Way]:
    """Every try with a key of one's own."""
    ids = _spellings(theirs.document, TITLE)
    for id in ids:
        yield Way("file", "GET", f"/v1/files/{quote(id, safe='')}")
        yield Way("file", "DELETE", f"/v1/files/{quote(id, safe='')}")
        yield Way("file", "GET", f"/v1/files/{quote(id, safe='')}/content")
        yield Way("model", "GET", f"/v1/models/lectern:{quote(id, safe='')}")
        yield from _asked("document", documents=[id])
        yield from _asked("focus", focus=[id])
        yield from _asked("mute", mute=[f"{id}#1"])
        yield Way("file part", "POST", "/v1/chat/completions", {"json": _body(
            messages=[{"role": "user", "content": [{"type": "file", "file": {"file_id": id}}, _text(QUESTION)]}]
        )})  # fmt: skip
        yield Way("model name", "POST", "/v1/chat/completions", {"json": _body(model=f"lectern:{id}")})
    for id in _spellings(theirs.chat, QUESTION):
        for form in ("md", "json", "lectern"):
            yield Way("export", "GET", f"/chats/{quote(id, safe='')}/export.{form}")
        for name in ("chat", "chat_id", "previous_response_id", "conversation", "parent", "fork", "resume"):
            body = {"model": "lectern", "input": "Go on.", "max_output_tokens": 4, name: id}
            yield Way("resume", "POST", "/v1/responses", {"json": body})
    for path in ("/documents/{}/pages/1.jpg", "/v1/chats/{}", "/v1/responses/{}", "/v1/conversations/{}"):
        for id in (theirs.document, theirs.chat):
            yield Way("page", "GET", path.format(id))
    yield from _listings()
    yield from _paths(theirs)
    yield from _names(theirs)
    yield from _turns(theirs)


def _listings() -> Iterator[Way]:
    for path in ("/v1/files", "/v1/models", "/metrics", "/health", "/ready", "/"):
        yield Way("list", "GET", path)
    for query in ("?user={}", "?owner={}", "?after=", "?limit=1000", "?search=" + TITLE, "?purpose=user_data"):
        yield Way("search", "GET", "/v1/files" + query.format(TITLE))


def _paths(theirs: Theirs) -> Iterator[Way]:
    """Files of the data folder by path."""
    targets = ("users.json", "programs.key", "audit.log", f"users/{theirs.folder}/library.db", "library.db")
    for target in targets:
        for path in ("/v1/files/../../{}", "/v1/../{}", "/v1/files/%2e%2e%2f{}", "/{}", "/gradio_api/file={}"):
            yield Way("path", "GET", path.format(target))
        yield from _asked("path", documents=[f"../{target}"])


def _names(theirs: Theirs) -> Iterator[Way]:
    """Somebody else's name, id or hash beside, or in place of, one's own key."""
    for name in ("X-User", "X-Forwarded-User", "Remote-User", "X-Lectern-User", "X-Original-URL", "X-Forwarded-For"):
        for value in (theirs.name, "owner", "127.0.0.1"):
            yield Way("header", "GET", "/v1/files", {"headers": {name: value}})
    for key in (theirs.name, theirs.digest, theirs.folder, f"lectern-{theirs.name}-", "", "null", "undefined", "*"):
        yield Way("key", "GET", "/v1/files", {"headers": {"Authorization": f"Bearer {key}".strip()}})
        cookies = {"headers": {"Cookie": f"lectern-7860={key}; lectern-80={key}"}}
        yield Way("key", "GET", f"/v1/files?key={key}", cookies)


def _turns(theirs: Theirs) -> Iterator[Way]:
    """The other's talk, word for word, to go on with it."""
    answer = theirs.reply["choices"][0]["message"]["content"] or "-"
    yield Way("turns", "POST", "/v1/chat/completions", {"json": _body(messages=_said(QUESTION, answer, "And?"))})
    yield Way("turns", "POST", "/v1/chat/completions", {"json": _body(messages=_said(QUESTION))})


def _asked(kind: str, **more: Any) -> Iterator[Way]:
    yield Way(kind, "POST", "/v1/chat/completions", {"json": _body(**more)})


def _body(**more: Any) -> dict[str, Any]:
    return {"model": "lectern", "messages": _said("What is it?"), "max_tokens": 4} | more


def _said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _spellings(id: str, title: str) -> list[str]:
    return [id, id[:6], f"file-{id}", id.upper(), f"../{id}", title]


def try_all(client: Client, key: str, theirs: Theirs) -> tuple[Counter[str], list[str]]:
    """Every way with a key of one's own: (tries by kind, those that succeed)."""
    tried: Counter[str] = Counter()
    reached = []
    for way in ways(theirs):
        headers = {"Authorization": f"Bearer {key}", **way.given.get("headers", {})}
        answer = client.request(way.method, way.path, **{**way.given, "headers": headers})
        tried[way.kind] += 1
        sent = f"{way.method} {way.path} {json.dumps(way.given)}"
        if theirs.shown_in(answer.text, sent):
            reached.append(f"{sent[:250]}: {answer.status_code} {answer.text[:250]}")
    return tried, reached


def by_the_page(client: Client, key: str, theirs: Theirs) -> tuple[Counter[str], list[str]]:
    """The ways of a browser that signed in: pages and exports by id, and every click with the other's ids.

    As `try_all`; nothing where there is no page.
    """
    signed = client.request("POST", "/sign-in", data={"key": key})
    token = re.search(r"lectern-session=([\w-]+)", signed.headers.get("set-cookie", ""))
    headers = {"Cookie": f"lectern-session={token[1]}"} if token else {}
    tried: Counter[str] = Counter()
    reached = []

    def ask(kind: str, method: str, path: str, **given: Any) -> Any:
        answer = client.request(method, path, headers=headers, **given)
        tried[kind] += 1
        if theirs.shown_in(answer.text, f"{path} {json.dumps(given)}"):
            reached.append(f"page, {method} {path} {str(given)[:250]}: {answer.status_code} {answer.text[:250]}")
        return answer

    config = ask("page: config", "GET", "/config")
    if config.status_code != 200:
        return Counter(), []
    ids = (theirs.document, theirs.chat)
    for id in ids:
        for path in (
            "/chats/{}/export.md",
            "/chats/{}/export.json",
            "/chats/{}/export.lectern",
            "/documents/{}/pages/1.jpg",
        ):
            ask("page: export", "GET", path.format(id))
    parts = {part["id"]: part for part in config.json()["components"]}
    for event in config.json()["dependencies"]:
        bridges = [id for id, _ in event["targets"] if str(_name(parts.get(id))).startswith("do-")]
        if not bridges or event["queue"] is not False or not event["backend_fn"]:
            continue
        data = [(parts.get(id) or {}).get("props", {}).get("value") for id in event["inputs"]]
        for id in (*ids, f"{theirs.document}@1", f"{theirs.chat}|1"):
            body = {
                "fn_index": event["id"],
                "data": data,
                "session_hash": "a1",
                "event_data": {"id": id, "text": TITLE},
            }
            ask("page: click", "POST", "/gradio_api/run/predict", json=body)
    client.request("POST", "/sign-out", headers=headers)
    return tried, reached


def _name(part: dict[str, Any] | None) -> Any:
    return (part or {}).get("props", {}).get("elem_id")


def same_text(client: Client, key: str) -> list[str]:
    """The same document sent by the other: nothing of the first one's reading may serve it."""
    headers = {"Authorization": f"Bearer {key}"}
    file = client.request("POST", "/v1/files", files={"file": ("mine.txt", TEXT.encode())}, headers=headers).json()
    problems = [] if file["status"] == "uploaded" else [f"a text that another has read is {file['status']} at once"]
    client.request("DELETE", f"/v1/files/{file['id']}", headers=headers)
    return problems


def without_key(client: Client) -> list[str]:
    """Routes that answer somebody without a key, health apart."""
    return [
        f"{method} {path}: {status}"
        for path in ROUTES
        for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS")
        if (status := client.request(method, path).status_code) < 400
    ]


def main() -> int:
    import httpx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "lectern-small"))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "separation.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        keys = {name: _command(home, "users", "add", name)["key"] for name in ("ann", "ben")}
        ann = json.loads((Path(home) / "users.json").read_text())[0]
        command = _line(home, "serve", "--behind-proxy", "--no-browser", "--port", "0", "--model", args.model)
        with serving(command, Path(home), WAIT_S) as server:
            base, host = server.url.removesuffix("/v1"), {"Host": "lectern.example"}
            with httpx.Client(base_url=base, timeout=WAIT_S, headers=host) as client:
                while client.get("/health").json()["model"]["state"] == "loading":
                    time.sleep(0.5)
                theirs = have(client, keys["ann"], "ann", ann["id"], ann["digest"])
                tried, reached = try_all(client, keys["ben"], theirs)
                by_page, more = by_the_page(client, keys["ben"], theirs)
                tried, reached = tried + by_page, reached + more
                reached += same_text(client, keys["ben"])
                open_routes = without_key(client)
                own = {"Authorization": f"Bearer {keys['ann']}"}
                kept = client.get(f"/v1/files/file-{theirs.document}", headers=own)
                reached += [] if kept.status_code == 200 else ["the document is gone"]
    for kind, count in tried.most_common():
        print(f"{kind}: {count}")
    print(*reached, *open_routes, sep="\n")
    result = {"benchmark": "separation", "ways": tried.total(), "by_kind": dict(tried), "reached": reached,
              "without_key": {"tried": 5 * len(ROUTES), "answered": open_routes}, **machine.describe()}  # fmt: skip
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"ways": tried.total(), "reached": len(reached), "without_key": len(open_routes)}))
    return 1 if reached or open_routes else 0


def _line(home: str, *words: str) -> list[str]:
    return ["-P", "-m", "app.cli", *words, "--home", home]


def _command(home: str, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *_line(home, *words, "--json")], capture_output=True, text=True, check=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
