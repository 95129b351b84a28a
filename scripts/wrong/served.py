"""Wrong events of the page and wrong requests of programs, to the app as it is served."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.chat import DocumentChat
from scripts.wrong import values

HERE = "http://127.0.0.1:7860"
KEY, PROGRAMS = "page-key", "programs-key"
PATHS = (
    "",
    "/",
    "nobody",
    "%00",
    "%ff",
    "..%2f..",
    "x" * 3_000,
    "a%0ab",
    "%F0%9F",
    "file-",
    "tiny:nobody",
    "%ED%A0%BD",
)
NAMES = (
    "",
    "x" * 300 + ".txt",
    "a\x00b.txt",
    "../../x.txt",
    "é.txt",
    ".",
    "..",
    "/",
    "a\nb.txt",
    "con.txt",
    "x.pdf",
    "x.zip",
)


@dataclass
class Served:
    """A client that has both keys."""

    client: Any
    blocks: Any
    chat: DocumentChat


@contextmanager
def serving(chat: DocumentChat) -> Iterator[Served]:
    """The app over a chat, in this process."""
    from fastapi.testclient import TestClient

    from app import server
    from app.ui.build import build
    from tests.fake_chat import fake_passkey_run

    blocks = build(chat, run_passkey=fake_passkey_run)
    app = server.create_app(chat, blocks, KEY, PROGRAMS)
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        client.cookies.set("lectern-7860", KEY, domain="127.0.0.1")
        try:
            yield Served(client, blocks, chat)
        finally:
            blocks.reading.close()  # it would go on in a data folder that is being put back


# --- events


def event(served: Served, rng: random.Random, number: int) -> tuple[str, int, str]:
    """(what was sent, status, answer) of an event of the page with wrong values."""
    call = _call(served, rng, number)
    queued = served.blocks.fns[number].queue
    path = "/gradio_api/queue/join" if queued else "/gradio_api/run/predict"
    body = rng.choice((values.content(rng), b"", b"null")) if rng.random() < 0.05 else values.as_json(call)
    answer = served.client.post(path, content=body, headers={"Content-Type": "application/json"})
    text = answer.text
    if queued and answer.status_code == 200:
        text += served.client.get(f"/gradio_api/queue/data?session_hash={call['session_hash']}").text
    return f"{path} {body[:400]!r}", answer.status_code, text


def _call(served: Served, rng: random.Random, number: int) -> dict[str, Any]:
    """An event as the page would send it, with one or more wrong places."""
    inputs = served.blocks.fns[number].inputs
    data = [_right(served, block) for block in inputs]
    for place in rng.sample(range(len(data)), min(len(data), rng.randint(0, 2))):
        data[place] = rng.choice(values.VALUES)
    click = {"id": rng.choice((*values.TEXTS, "c1@0", "x@1", "e1-1")), "text": rng.choice(values.TEXTS)}
    call = {"fn_index": number, "data": data, "session_hash": f"s{rng.randrange(5)}", "event_data": click}
    if rng.random() < 0.15:
        changed = values.broken(call, rng)
        return changed | {"session_hash": call["session_hash"]} if isinstance(changed, dict) else call
    return call


def _right(served: Served, block: Any) -> Any:
    name = block.get_block_name()
    known = [info.id for info in served.chat.library.documents()]
    plain = {"textbox": "word", "html": "", "button": "Which word?", "checkbox": False, "state": None, "file": None,
             "json": known, "checkboxgroup": []}  # fmt: skip
    if name in plain:
        return plain[name]
    if name == "dropdown":
        return [] if block.multiselect else block.value
    if name == "slider":
        return block.minimum
    return getattr(block, "value", None)


# --- programs


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": [{"type": "text", "text": "Which word?"}]},
        ],
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["x"],
        "stream": False,
        "documents": [],
        "focus": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "stream_options": {"include_usage": True},
    },
    "/v1/completions": {"model": "tiny", "prompt": "Which word?", "max_tokens": 2, "stop": None, "echo": True, "n": 1},
    "/v1/responses": {
        "model": "tiny",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Which word?"}]}],
        "instructions": "Answer.",
        "max_output_tokens": 16,
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
    },
}
FILE_PART = {"type": "file", "file": {"filename": "a.txt", "file_data": "QSB0ZXh0Lg=="}}


def request(served: Served, rng: random.Random) -> tuple[str, int, str]:
    """(what was asked, status, answer) of a wrong request of a program."""
    kind = rng.random()
    headers = {"Authorization": f"Bearer {PROGRAMS}"}
    client = served.client
    if kind < 0.65:
        path, body = rng.choice(list(BODIES.items()))
        if path.endswith("chat/completions") and rng.random() < 0.3:
            body = json.loads(json.dumps(body))
            body["messages"][-1]["content"].append(FILE_PART)
        made = values.broken(body, rng) | {} if rng.random() < 0.95 else rng.choice(values.VALUES)
        data = values.as_json(made) if rng.random() < 0.95 else values.content(rng)
        answer = client.post(path, content=data, headers=headers | {"Content-Type": "application/json"})
        return f"POST {path} {data[:300]!r}", answer.status_code, answer.text
    if kind < 0.8:
        files = {rng.choice(("file", "file", "file", "other")): (rng.choice(NAMES), values.content(rng))}
        answer = client.post(
            "/v1/files", files=files, data={"purpose": rng.choice(("", "x" * 300, "é"))}, headers=headers
        )
        return f"POST /v1/files {files!r}"[:300], answer.status_code, answer.text
    path = rng.choice(("/v1/files/", "/v1/models/", "/v1/", "/chats/", "/health/")) + rng.choice(PATHS)
    path += rng.choice(("", "", "/export.md", "/export.json", "/export.lectern", "/content"))
    method = rng.choice(("GET", "GET", "DELETE", "POST", "PUT", "HEAD", "OPTIONS"))
    answer = client.request(method, path, headers=headers)
    return f"{method} {path[:200]}", answer.status_code, answer.text
