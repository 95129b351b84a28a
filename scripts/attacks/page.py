"""Files and events of the page, what answers show, and small things: what other accounts, programs and sites try."""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.attacks.target import JSON, Target, case

MARKER = "marker 7f3a of the attack script"
HOSTILE = (
    "Look:\n\n    a < b && c\n\n<style>body{display:none}</style> <b onclick=x>tag</b> "
    "![picture](http://127.0.0.1:9/marker.png)"
)
HEADERS = ("content-security-policy", "x-content-type-options", "referrer-policy")
LOADS = 40
ROUNDS = 4
LOAD_BYTES = 100_000  # a quarter of what Gradio keeps of a page


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


@case(8, "routes for programs without their key, or with the page's")
def programs(target: Target, folder: Path) -> str:
    asked = json.dumps({"model": "x", "messages": [{"role": "user", "content": "x"}]}).encode()
    answers = {}
    for name, headers in {"none": {}, "wrong": {"Authorization": f"Bearer {target.key.partition('=')[2]}"}}.items():
        answers[f"models, {name}"] = target.ask("GET", "/v1/models", owner=True, headers=headers)[0]
        path = "/v1/chat/completions"
        answers[f"chat, {name}"] = target.ask("POST", path, asked, owner=True, headers=JSON | headers)[0]
    return ", ".join(f"{what}: {status}" for what, status in answers.items() if status != 401)


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
        foreign = visit.page.locator("img[src*=marker], b[onclick]").count()
        foreign += visit.page.locator("style", has_text="body{display:none}").count()
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
    before = len(target.log)
    values: list[Any] = [None, 7, {}, [[]], "x", True]
    for index, event in enumerate(target.config["dependencies"]):
        if event.get("backend_fn") and event.get("queue") is False:
            for number in range(3):
                data = [values[(number + place) % len(values)] for place in range(target.inputs(index))]
                target.event(index, data, owner=True, click={"id": "nobody", "text": ""})
    time.sleep(1)
    text = "\n".join(target.log[before:])
    kinds = sorted(set(re.findall(r"^(\w+(?:\.\w+)*(?:Error|Exception)): ?(.{,60})", text, re.MULTILINE)))
    return f"{text.count('Traceback')} tracebacks: {kinds}" if "Traceback" in text else ""


@case(17, "memory that page loads leave behind")
def loads(target: Target, folder: Path) -> str:
    """Loads of new pages, and as many of one page, in turns: what only the new ones leave is theirs."""
    left = {"same": 0, "new": 0}
    for number in range(ROUNDS):
        for kind in left:
            before = target.resident()
            for load in range(LOADS):
                target.load(f"load{number}x{load}" if kind == "new" else "loads")
            left[kind] += target.resident() - before if number else 0  # the first round warms up
    each = (left["new"] - left["same"]) / (LOADS * (ROUNDS - 1))
    return f"{each / 1e3:.0f} kB each" if each > LOAD_BYTES else ""
