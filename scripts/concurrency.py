"""One answering thread, eight readers and four uploads on one store: no "database is locked", no lost write.

    python scripts/concurrency.py --operations 10000

Prints one JSON line and writes benchmarks/results/concurrency.json; the exit code is 1 on any failure.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.records import Document, MemoryText, Part, Span, Tail  # noqa: E402
from app.store.store import Store  # noqa: E402

READERS, UPLOADS = 8, 4
GROUP = 8
RECIPE = "ab" * 32


class Load:
    """The threads and what they wrote."""

    def __init__(self, store: Store, operations: int) -> None:
        self.store = store
        each = {"answer": operations // 10, "upload": operations // 5 // UPLOADS}
        self.each = each | {"look": (operations - each["answer"] - UPLOADS * each["upload"]) // READERS}
        self.lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.chat = store.create_chat([], "m")
        self.answers: list[str] = []
        self.uploads: dict[str, tuple[str, list[str]]] = {}
        self.slowest_s = 0.0

    def run(self) -> None:
        """All threads until every operation is done."""
        workers = [("answer", self.answer), *[("look", self.look)] * READERS, *[("upload", self.upload)] * UPLOADS]
        threads = [threading.Thread(target=self._work, args=(name, n, work)) for n, (name, work) in enumerate(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, name: str, worker: int, operation: Callable[[int, int], None]) -> None:
        for number in range(self.each[name]):
            began = time.monotonic()
            try:
                operation(worker, number)
            except Exception as error:  # what this looks for
                self.problems.append(f"{name} {worker}-{number}: {type(error).__name__}: {error}")
                return
            with self.lock:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.done[name] += 1

    def answer(self, worker: int, number: int) -> None:
        """Write a tail block and save a turn."""
        tokens = list(range(number * GROUP, number * GROUP + GROUP))
        (key,) = self.store.blocks.chain_keys(f"tail {number}", tokens, GROUP)
        self.store.blocks.put(key, tokens, b"i" * 50, [b"k" * 500], "raw")
        self.store.blocks.flush()
        text = f"answer {number}"
        self.store.save_turn(
            self.chat, f"question {number}", text, {}, [], Tail(RECIPE, tuple(tokens), (key,), (GROUP,), ())
        )
        self.answers.append(text)

    def upload(self, worker: int, number: int) -> None:
        """Add a document and what was read of it."""
        name = f"book {worker} {number}"
        tokens = [worker, number, *range(14)]
        document = Document(name, "text", f"{worker:02d}{number:010d}" + "0" * 52, (Part(1, "1", f"text of {name}"),))
        id = self.store.add_document(document)
        self.store.set_memories(id, RECIPE, [MemoryText(tokens, (Span(1, 0, 16),))])
        keys = self.store.blocks.chain_keys(RECIPE, tokens, GROUP)
        for place, key in enumerate(keys):
            self.store.blocks.put(key, tokens[place * GROUP :][:GROUP], b"i", [name.encode()], "raw")
        self.store.set_manifest(id, RECIPE, 0, keys)
        self.uploads[id] = (name, keys)

    def look(self, worker: int, number: int) -> None:
        """Read what a page reads; a block that is named has to come back as it was put."""
        kind = number % 5
        if kind == 0:
            self.store.chats("answer")
        elif kind == 1:
            self.store.messages(self.chat)
        elif kind == 2:
            self.store.search_parts("text book", limit=5)
        elif kind == 3:
            self.store.stats()
        elif self.uploads:
            id, (name, keys) = list(self.uploads.items())[-1]
            self.store.blocks.flush()
            assert self.store.part(id, 1).text == f"text of {name}"
            assert self.store.blocks.read_rows(keys[0], [0]) == [name.encode()]

    def check(self) -> None:
        """Nothing that was written is lost."""
        self.store.blocks.flush()
        kept = [message.content for message in self.store.messages(self.chat) if message.role == "assistant"]
        if kept != self.answers:
            self.problems.append(f"{len(set(self.answers) - set(kept))} answers are lost")
        for id, (name, keys) in self.uploads.items():
            if self.store.manifest(id, RECIPE, 0) != keys or self.store.blocks.known_prefix(keys) != len(keys):
                self.problems.append(f"{name}: blocks are lost")
        self.store.collect_garbage()
        self.problems += [f"verify: {fault}" for fault in self.store.verify().damaged]
        self.problems += self.store.notes


def run(operations: int) -> dict[str, Any]:
    """So many operations in all; returns counts and every failure."""
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), disk_budget_bytes=1 << 30)
        load = Load(store, operations)
        load.run()
        seconds = time.time() - started
        load.check()
        store.close()
    return {
        "operations": dict(load.done),
        "threads": {"answer": 1, "look": READERS, "upload": UPLOADS},
        "problems": load.problems,
        "slowest_operation_s": round(load.slowest_s, 2),
        "seconds": round(seconds, 1),
    }


def main() -> int:
    """Parse flags, run, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000, help="of all threads together (10000)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "concurrency.json")
    args = parser.parse_args()
    from benchmarks import machine

    result = {"benchmark": "concurrency", **run(args.operations), **machine.describe()}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("operations", "problems", "slowest_operation_s", "seconds")}))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
