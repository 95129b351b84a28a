"""Answers at once: tokens a second of 1 to 8 streams, first tokens and the page beside a reading, many clients.

    python benchmarks/streams.py --model MODEL --parts streams reading load

A Lectern of its own is started for it, on a data folder that is thrown away. `streams`: the same questions by one
client and by several at once. `reading`: 8 streams while a document is read in the background, and GET / meanwhile.
`load`: `--requests` from `--clients` clients, each with a talk of its own: every answer is in its own chat
and in order, what is refused is told (429, 503), and what memory the process takes after the first 100 and at the end.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import psutil

from app.settings import SMALL_MODEL
from benchmarks import machine
from tests.serving import serving

BOOK = machine.ROOT / "tests" / "data" / "book.txt"
QUESTIONS = (
    "Write a long story about a lighthouse.", "Tell everything about bees.", "Describe a journey over the sea.",
    "Explain how bread is made, step by step.", "List the months and what happens in each.",
    "Write a letter to an old friend.", "Describe a town in winter.", "Tell how a ship is built.",
)  # fmt: skip
WAIT_S = 600
WILD = 3.0  # so that no answer ends by itself


@dataclass(frozen=True)
class Served:
    """A Lectern that runs: its address, the one that opens the page, the key for programs, and its process."""

    url: str
    page: str
    key: str
    process: psutil.Process

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=WAIT_S)

    def ask(self, client: httpx.Client, messages: list[dict[str, str]], tokens: int, **more: Any) -> dict[str, Any]:
        """One streamed answer: its text, when its first token and its end came, tokens; or its status."""
        body = {"model": "lectern", "messages": messages, "max_tokens": tokens, "stream": True, **more}
        began, first, text, usage, chat = time.monotonic(), 0.0, "", {}, ""
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return {"status": answer.status_code, "wait": answer.headers.get("retry-after")}
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line[6:])
                if "error" in part:
                    return {"status": 500, "error": part["error"]["message"]}
                delta = part["choices"][0]["delta"].get("content") if part["choices"] else None
                if delta:
                    first, text = first or time.monotonic(), text + delta
                usage, chat = part.get("usage") or usage, part.get("lectern", {}).get("chat") or chat
        now = time.monotonic()
        return {
            "status": 200, "text": text, "chat": chat, "began": began, "first": first or now, "end": now,
            "tokens": usage.get("completion_tokens", 0), "read": usage.get("prompt_tokens", 0),
        }  # fmt: skip


@contextmanager
def served(model: str, threads: int) -> Iterator[Served]:
    """A Lectern on a data folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-P", "-m", "app.cli", "serve", "--no-browser", "--port", "0", "--home", folder]
        command += ["--model", model, "--threads", str(threads)]
        with serving(command, Path(folder), WAIT_S) as server:
            url = server.base.rstrip("/")
            key = (Path(folder) / "programs.key").read_text().strip()
            while httpx.get(f"{url}/ready").status_code != 200:
                time.sleep(0.5)
            yield Served(url, server.url, key, psutil.Process(server.pid))


def streams(lectern: Served, tokens: int, counts: tuple[int, ...]) -> dict[str, Any]:
    """Total tokens a second by the number of streams, from the first request to the last token.

    By the clock, and by processor time, which other work on the computer changes less.
    """
    found: dict[str, Any] = {}
    for count in (1, *counts):  # the first time warms up
        before = sum(lectern.process.cpu_times()[:2])
        rows = _at_once(lectern, count, tokens)
        spent = sum(lectern.process.cpu_times()[:2]) - before
        said, began, end = sum(r["tokens"] for r in rows), min(r["began"] for r in rows), max(r["end"] for r in rows)
        found[str(count)] = {
            "tokens": said, "tokens_per_s": round(said / (end - began), 2),
            "tokens_per_cpu_s": round(said / spent, 2),
            "first_token_s": round(max(r["first"] - r["began"] for r in rows), 2),
        }  # fmt: skip
    one, most = found["1"], found[str(max(counts))]
    gains = {name: round(most[name] / one[name], 2) for name in ("tokens_per_s", "tokens_per_cpu_s")}
    return found | {"gain": gains["tokens_per_s"], "gain_by_cpu": gains["tokens_per_cpu_s"]}


def _at_once(lectern: Served, count: int, tokens: int) -> list[dict[str, Any]]:
    def one(number: int) -> dict[str, Any]:
        question = QUESTIONS[number % len(QUESTIONS)]
        with lectern.client() as client:
            return lectern.ask(client, [{"role": "user", "content": question}], tokens, temperature=WILD, seed=number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def reading(lectern: Served, tokens: int) -> dict[str, Any]:
    """First tokens of 8 streams while a document is read, and how long GET / takes meanwhile."""
    times: list[float] = []
    over = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=lectern.url, follow_redirects=True) as client:
            client.get(lectern.page).raise_for_status()  # the cookie
            while not over.is_set():
                began = time.monotonic()
                client.get("/").raise_for_status()
                times.append(time.monotonic() - began)
                time.sleep(0.1)

    with lectern.client() as client:
        file = client.post("/v1/files", files={"file": ("book.txt", BOOK.read_bytes())}).json()
        time.sleep(2)
        watching = threading.Thread(target=look)
        watching.start()
        rows = _at_once(lectern, 8, tokens)
        status = client.get(f"/v1/files/{file['id']}").json()["status"]
        over.set()
        watching.join()
    times.sort()
    return {
        "status_after_answers": status, "first_token_s": round(max(r["first"] - r["began"] for r in rows), 2),
        "page_median_s": round(median(times), 3), "page_p99_s": round(times[int(0.99 * (len(times) - 1))], 3),
        "page_requests": len(times),
    }  # fmt: skip


def load(lectern: Served, requests: int, clients: int) -> dict[str, Any]:
    """Talks of many clients: what was told, whether a turn was lost or mixed, and memory after 100 and at the end."""
    statuses: Counter[str] = Counter()
    problems: list[str] = []
    sizes: list[int] = []
    lock = threading.Lock()

    def talk(number: int) -> None:
        messages: list[dict[str, str]] = []
        with lectern.client() as client:
            for turn in range(requests // clients):
                messages.append({"role": "user", "content": f"Client {number}, question {turn}: what comes next?"})
                while (reply := lectern.ask(client, messages, 8))["status"] in (429, 503):
                    with lock:
                        statuses[f"{reply['status']} told"] += 1
                    time.sleep(min(int(reply["wait"]), 2))
                with lock:
                    statuses[str(reply["status"])] += 1
                    if reply["status"] != 200:
                        problems.append(f"client {number}, turn {turn}: {reply}")
                        return
                    if statuses["200"] in (100, requests):
                        sizes.append(lectern.process.memory_info().rss)
                messages.append({"role": "assistant", "content": reply["text"] or "-"})
                chats[number].append(reply["chat"])

    chats: list[list[str]] = [[] for _ in range(clients)]
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(talk, range(clients)))
    owners = {chat: number for number, its in enumerate(chats) for chat in its}
    mixed = sum(owners[chat] != number for number, its in enumerate(chats) for chat in its)
    lost = requests // clients * clients - sum(map(len, chats))
    return {
        "requests": requests, "clients": clients, "statuses": dict(statuses), "problems": problems[:5], "mixed": mixed,
        "lost": lost, "chats": len(owners), "seconds": round(time.monotonic() - began, 1),
        "resident_bytes": sizes, "grew": round(sizes[-1] / sizes[0] - 1, 4) if sizes else None,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most (64)")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8], help="streams at once (1 2 4 8)")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--parts", nargs="+", choices=("streams", "reading", "load"), default=["streams", "reading"])
    parser.add_argument("--output", type=Path, default=machine.ROOT / "benchmarks" / "results" / "streams.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "streams", "model": Path(args.model).name, "threads": args.threads}
    with served(args.model, args.threads) as lectern:
        if "streams" in args.parts:
            result["streams"] = streams(lectern, args.tokens, tuple(args.counts))
        if "reading" in args.parts:
            result["reading"] = reading(lectern, args.tokens)
        if "load" in args.parts:
            result["load"] = load(lectern, args.requests, args.clients)
    result |= machine.describe()
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failed = result.get("load", {}).get("problems") or result.get("load", {}).get("mixed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
