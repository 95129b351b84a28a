"""Two replicas over Ray on this computer: throughput, the same words, one killed among four streams, 40 documents read.

    python launch.py setup --with ray
    python benchmarks/cluster.py --model MODEL

`throughput`: as many streams at once at a plain Lectern with all threads, at one replica and at two with a thread each.
`answers`: greedy answers about documents, from one replica and from two. `kill`: a replica is killed while 4 clients
stream from it; a client that is told so asks again. `read`: 40 documents by `read --ray` with two workers.

The exit code is 1 where two replicas say less than 1.6 times what one says, words differ, a client gets no answer, a
turn is lost, or a document is missing.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import psutil

from app.settings import SMALL_MODEL
from benchmarks import machine
from benchmarks.streams import BOOK, QUESTIONS, WILD, Served
from tests.serving import serving

WAIT_S = 600
GAIN = 1.6
DOCUMENTS = 40


@contextmanager
def lectern(model: str, *flags: str) -> Iterator[Served]:
    """A Lectern on a data folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-P", "-m", "app.cli", "serve", "--no-browser", "--port", "0", "--home", folder, "--model", model]
        with serving([*command, *flags], Path(folder), WAIT_S, WAIT_S) as server:
            url, key = server.base.rstrip("/"), (Path(folder) / "programs.key").read_text().strip()
            while httpx.get(f"{url}/ready", timeout=60).status_code != 200:
                time.sleep(0.5)
            yield Served(url, server.url, key, psutil.Process(server.pid))


def streams(served: Served, count: int, tokens: int) -> dict[str, Any]:
    """Tokens a second of so many streams at once, after a round that warms up."""

    def one(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"}]
        with served.client() as client:
            return served.ask(client, messages, tokens, temperature=WILD, seed=number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count, 2 * count)))
        rows = list(pool.map(one, range(count)))
    failed = [row for row in rows if row["status"] != 200]
    assert not failed, failed
    said, began, end = sum(r["tokens"] for r in rows), min(r["began"] for r in rows), max(r["end"] for r in rows)
    first = max(row["first"] - row["began"] for row in rows)
    return {"tokens": said, "tokens_per_s": round(said / (end - began), 2), "first_token_s": round(first, 2)}


def documents(served: Served, count: int) -> list[str]:
    """Uploads so many short documents; their ids."""
    with served.client() as client:
        made = [client.post("/v1/files", files={"file": (f"{n}.txt", piece(n))}) for n in range(count)]
    return [answer.raise_for_status().json()["id"] for answer in made]


def piece(number: int, size: int = 3000) -> bytes:
    """A stretch of the sample book."""
    return BOOK.read_bytes()[number * size : (number + 1) * size]


def ask(client: httpx.Client, document: str, *contents: str, tokens: int = 24) -> dict[str, Any]:
    """A whole greedy answer, asked again when it is told to be."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    body = {"model": "lectern", "messages": messages, "documents": [document], "max_tokens": tokens}
    for _ in range(60):
        answer = client.post("/v1/chat/completions", json=body)
        if answer.status_code == 200:
            return answer.json()
        assert answer.status_code == 503, answer.text
        time.sleep(int(answer.headers["retry-after"]))
    raise AssertionError("no answer")


def words(served: Served, count: int) -> list[str]:
    """Greedy answers, one about each document."""
    with served.client() as client:
        said = [ask(client, document, QUESTIONS[0]) for document in documents(served, count)]
    return [reply["choices"][0]["message"]["content"] for reply in said]


def kill(served: Served, tokens: int) -> dict[str, Any]:
    """How four streams end whose replica is killed, and whether the turns before are there after it."""
    with served.client() as client:
        document = documents(served, 1)[0]
        counted = answers(client)
        first = ask(client, document, QUESTIONS[0])
        holder = next(name for name, count in answers(client).items() if count > counted.get(name, 0))
        ends: list[dict[str, Any]] = []
        threads = [threading.Thread(target=patient, args=(served, document, n, tokens, ends)) for n in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(3)
        dead = replica(served.process, holder)
        began = time.monotonic()
        os.kill(dead, signal.SIGKILL)
        for thread in threads:
            thread.join()
        said = first["choices"][0]["message"]["content"]
        after = ask(client, document, QUESTIONS[0], said, QUESTIONS[1])
    usage = after["usage"]
    return {
        "streams": sorted(ends, key=lambda end: end["number"]), "seconds": round(time.monotonic() - began, 1),
        "same_chat": after["lectern"]["chat"] == first["lectern"]["chat"],
        "read_after": usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"],
        "prompt_after": usage["prompt_tokens"], "replaced": replica(served.process, holder) != dead,
    }  # fmt: skip


def patient(served: Served, document: str, number: int, tokens: int, ends: list[dict[str, Any]]) -> None:
    """A client that asks again when its stream breaks or it is told 503; notes what happened."""
    told, began = [], time.monotonic()
    with served.client() as client:
        while len(told) < 30:
            messages = [{"role": "user", "content": f"{QUESTIONS[number]} ({number})"}]
            row = served.ask(client, messages, tokens, documents=[document])
            if row["status"] == 200:
                break
            told.append("503" if row["status"] == 503 else "error event")
            time.sleep(int(row.get("wait") or 1))
    answered = {"number": number, "told": told, "status": row["status"], "tokens": row.get("tokens", 0)}
    ends.append(answered | {"seconds": round(time.monotonic() - began, 1)})


def answers(client: httpx.Client) -> dict[str, float]:
    """How many answers each replica has given."""
    found: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        if match := re.match(r'lectern_answers_total\{.*replica="(\d+)"\} (\S+)', line):
            found[match[1]] = found.get(match[1], 0) + float(match[2])
    return found


def replica(ingress: psutil.Process, name: str) -> int:
    """The process of a replica."""
    for process in ingress.children(recursive=True):
        try:
            if any(f"lectern-{name}:" in word for word in process.cmdline()):
                return process.pid
        except psutil.Error:
            continue
    return 0


def read(model: str, workers: int) -> dict[str, Any]:
    """So many documents over Ray Data, and once more, when nothing is left to do."""
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.mkdir()
        for number in range(DOCUMENTS):
            (texts / f"{number}.txt").write_bytes(piece(number))
        command = [
            sys.executable,
            "-P",
            "-m",
            "app.cli",
            "read",
            "--ray",
            str(texts),
            "--workers",
            str(workers),
            "--json",
        ]
        command += ["--home", f"{folder}/home", "--model", model]
        environment = {**os.environ, "PYTHONPATH": str(machine.ROOT)}
        found = []
        for _ in range(2):
            run = subprocess.run(
                command, cwd=machine.ROOT, env=environment, capture_output=True, text=True, timeout=3600
            )
            assert run.returncode == 0, run.stderr[-3000:]
            found.append(json.loads(run.stdout.splitlines()[-1]))
        return {**found[0], "read_again": found[1]["read"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (64)")
    parts = ("throughput", "answers", "kill", "read")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--output", type=Path, default=machine.ROOT / "benchmarks" / "results" / "cluster.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "cluster", "model": Path(args.model).name, "streams": args.streams}
    right = True
    one, two = (("--replicas", count, "--threads", "1") for count in "12")
    if "throughput" in args.parts:
        found: dict[str, Any] = {}
        for name, flags in (("plain", ("--threads", str(os.cpu_count()))), ("one replica", one), ("two replicas", two)):
            with lectern(args.model, *flags) as served:
                found[name] = streams(served, args.streams, args.tokens)
            print(name, found[name], flush=True)
        found["gain"] = round(found["two replicas"]["tokens_per_s"] / found["one replica"]["tokens_per_s"], 2)
        found["gain_over_plain"] = round(found["two replicas"]["tokens_per_s"] / found["plain"]["tokens_per_s"], 2)
        result["throughput"], right = found, right and found["gain"] >= GAIN
    if "answers" in args.parts:
        with lectern(args.model, *one) as served:
            by_one = words(served, 8)
        with lectern(args.model, *two) as served:
            by_two = words(served, 8)
        result["answers"] = {"asked": len(by_one), "same": sum(a == b for a, b in zip(by_one, by_two, strict=True))}
        right = right and by_one == by_two
    if "kill" in args.parts:
        with lectern(args.model, *two) as served:
            result["kill"] = killed = kill(served, 8 * args.tokens)
        mended = all(end["status"] == 200 for end in killed["streams"])
        right = right and mended and killed["same_chat"] and killed["replaced"] and killed["read_after"] < 64
    if "read" in args.parts:
        result["read"] = over = read(args.model, 2)
        right = right and (over["documents"], over["workers"], over["read_again"]) == (DOCUMENTS, 2, 0)
    result |= {"right": right, **machine.describe()}
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
