"""Two replicas over a real Ray; skipped where `setup --with ray` was not run."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import SMALL_MODEL
from tests.serving import Server, serving

pytest.importorskip("ray", reason="needs `setup --with ray`")
pytestmark = pytest.mark.slow
START_S = 240
WORDS = "The lighthouse of replica %d is kept by Ada and her cat. "


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def lectern(home: Path) -> Iterator[Server]:
    flags = ["--replicas", "2", "--no-browser", "--port", "0", "--home", str(home / "home")]
    command = ["-P", "-m", "app.cli", "serve", *flags, "--model", str(SMALL_MODEL), "--threads", "1"]
    with serving(command, home, START_S, START_S) as server:
        yield server


@pytest.fixture
def client(lectern: Server, home: Path) -> Iterator[httpx.Client]:
    key = (home / "home" / "programs.key").read_text().strip()
    with httpx.Client(base_url=lectern.base, headers={"Authorization": f"Bearer {key}"}, timeout=180) as client:
        yield client


def replica(lectern: Server, number: int) -> int:
    """The process of a replica."""
    found = [child for child in psutil.Process(lectern.pid).children(recursive=True) if _is(child, number)]
    assert len(found) == 1, found
    return found[0].pid


def _is(process: psutil.Process, number: int) -> bool:
    try:
        return any(f"lectern-{number}:" in word for word in process.cmdline())
    except psutil.Error:
        return False


def upload(client: httpx.Client, number: int) -> str:
    file = ("book.txt", (WORDS * 40 % ((number,) * 40)).encode())
    answer = client.post("/v1/files", files={"file": file}, data={"purpose": "user_data"})
    return answer.raise_for_status().json()["id"]


def question(words: str, document: str, **more) -> dict:
    messages = [{"role": "user", "content": words}]
    return {"model": "lectern", "messages": messages, "documents": [document], "max_tokens": 24, **more}


def stream(client: httpx.Client, body: dict) -> dict:
    """How a stream ended: its status, its text, and its error."""
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            return {"status": answer.status_code, "after": answer.headers.get("retry-after")}
        parts = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    error = next((part["error"] for part in parts if "error" in part), None)
    text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part.get("choices"))
    return {"status": 200, "error": error, "text": text}


def until_answered(client: httpx.Client, body: dict) -> dict:
    """As a client does that comes again when it is told to."""
    for _ in range(20):
        reply = client.post("/v1/chat/completions", json=body)
        if reply.status_code == 200:
            return reply.json()
        assert reply.status_code == 503, reply.text
        time.sleep(int(reply.headers["retry-after"]))
    raise AssertionError("no answer")


def answers(client: httpx.Client) -> dict[int, float]:
    """How many answers each replica has given."""
    found = dict.fromkeys((0, 1), 0.0)
    for line in client.get("/metrics").text.splitlines():
        if match := re.match(r'lectern_answers_total\{.*replica="(\d)"\} (\S+)', line):
            found[int(match[1])] += float(match[2])
    return found


def test_both_replicas_hold_documents_and_answer_the_same_words(lectern, client):
    files = [upload(client, number) for number in range(8)]
    assert len(set(files)) == 8
    said = [
        until_answered(client, question("Who keeps it?", file))["choices"][0]["message"]["content"] for file in files
    ]
    again = [until_answered(client, question("Who keeps it?", f))["choices"][0]["message"]["content"] for f in files]
    assert said == again
    assert min(answers(client).values()) > 0


def test_the_page_is_served(lectern):
    with httpx.Client(follow_redirects=True, timeout=60) as browser:
        assert "gradio" in browser.get(lectern.url).text.lower()
        assert browser.get(f"{lectern.base}config").status_code == 200
    assert httpx.get(lectern.base).status_code == 403


def test_nothing_of_ray_but_what_wants_its_token_listens_beyond_loopback(lectern):
    """Ray Serve lets its replicas listen everywhere: they answer no one without the token."""
    beyond = set()
    for process in psutil.Process(lectern.pid).children(recursive=True):
        for connection in process.net_connections("tcp"):
            here = connection.laddr.ip.removeprefix("::ffff:")
            if connection.status == psutil.CONN_LISTEN and here not in ("127.0.0.1", "::1"):
                beyond.add(process.cmdline()[0].partition(":lectern")[0])
    assert beyond <= {"ray::ServeReplica"}


def test_a_killed_replica_is_replaced_and_its_talks_go_on(lectern, client):
    file = upload(client, 77)
    body = question("Who is the keeper?", file)
    counted = answers(client)
    before = until_answered(client, body)
    (holder,) = [number for number, count in answers(client).items() if count > counted[number]]
    ended: list[dict] = []
    threads = [
        threading.Thread(target=lambda n=n: ended.append(stream(client, question(f"Tell {n}.", file, max_tokens=400))))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1)
    os.kill(replica(lectern, holder), signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert len(ended) == 4
    for end in ended:
        told = end["status"] == 503 and end["after"] or end["status"] == 200 and (end["error"] or end["text"])
        assert told, end
    said = before["choices"][0]["message"]["content"]
    more = [*body["messages"], {"role": "assistant", "content": said}, {"role": "user", "content": "And her cat?"}]
    after = until_answered(client, {**body, "messages": more})
    assert after["lectern"]["chat"] == before["lectern"]["chat"]
    assert after["usage"]["prompt_tokens_details"]["cached_tokens"] > 200


def test_a_rolling_restart_loses_no_answer(lectern, client):
    pids = {number: replica(lectern, number) for number in (0, 1)}
    file = upload(client, 99)
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        number = 0
        while not over.is_set():
            number += 1
            statuses.append(client.post("/v1/chat/completions", json=question(f"{number}?", file)).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    os.kill(lectern.pid, signal.SIGHUP)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        time.sleep(1)
        try:
            if all(replica(lectern, number) != pid for number, pid in pids.items()):
                break
        except AssertionError:
            continue
    over.set()
    asking.join()
    assert all(replica(lectern, number) != pid for number, pid in pids.items())
    assert statuses and set(statuses) <= {200, 503} and statuses[-1] == 200
