"""kill -9 at any moment: the folder opens, is sound, and holds everything that was acknowledged."""

import random
import subprocess
import sys
import time
from pathlib import Path

from app.store import home
from app.store.store import Store

ROOT = Path(home.__file__).resolve().parents[2]

# Acknowledges on stdout: "turn N" after a turn is saved, "sealed N" after N blocks are flushed and named.
WRITER = """
import sys
from pathlib import Path
from app.records import Document, MemoryText, Part, Span, Tail
from app.store.home import acquire
from app.store.store import Store
folder = Path(sys.argv[1])
start = int(sys.argv[2])
lock = acquire(folder)
store = Store(folder, disk_budget_bytes=1 << 30)
ids = list(range(4000 * 8))
id = store.add_document(Document("Book", "text", "b" * 64, (Part(1, "1", "words"),)))
store.set_memories(id, "aa", [MemoryText(ids, (Span(1, 1, 9),))])
keys = store.blocks.chain_keys("aa", ids, 8)
known = store.blocks.known_prefix(keys)
chat = store.chats()[0].id if store.chats() else store.create_chat([id], "m")
print("ready", flush=True)
for n in range(known, len(keys)):
    store.blocks.put(keys[n], ids[n * 8:n * 8 + 8], bytes([n % 256]) * 3000, [bytes([n % 255]) * 40000], "raw")
    if n % 5 == 4:
        store.blocks.flush()
        store.set_manifest(id, "aa", 0, keys[:n + 1])
        print("sealed", n + 1, flush=True)
        store.save_turn(chat, f"question {start + n}", "answer", {}, [], Tail("aa", (n,), (keys[0],), (1,), ()))
        print("turn", start + n, flush=True)
    if n % 25 == 24:
        other = store.add_document(Document("Other", "text", "c" * 64, (Part(1, "1", "more words " * 500),)))
        store.delete_document(other)
"""


def run_and_kill(folder: Path, round: int, after_s: float) -> list[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(round * 10_000)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
        time.sleep(after_s)
        process.kill()
        # A kill can cut the last line short; only a whole one acknowledges.
        return [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]


def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    generator = random.Random(0)
    turns: list[str] = []
    sealed = 0
    for round in range(5):
        lines = run_and_kill(tmp_path, round, generator.uniform(0.02, 0.4))
        turns += [f"question {line.split()[1]}" for line in lines if line.startswith("turn")]
        sealed = max([sealed, *(int(line.split()[1]) for line in lines if line.startswith("sealed"))])
        lock = home.acquire(tmp_path)
        store = Store(tmp_path, disk_budget_bytes=1 << 30)
        store.collect_garbage()
        assert store.verify().damaged == [] and store.notes == []
        id = store.document("Book", "aa").id
        keys = store.blocks.chain_keys("aa", (store.memories(id, "aa") or [])[0].token_ids, 8)
        assert store.blocks.known_prefix(keys) >= sealed
        assert store.manifest(id, "aa", 0) == keys[: len(store.manifest(id, "aa", 0))]
        assert len(store.manifest(id, "aa", 0)) >= sealed
        contents = [message.content for message in store.messages(store.chats()[0].id)]
        assert set(turns) <= set(contents[::2]) and set(contents[1::2]) <= {"answer"}
        store.close()
        lock.release()
    assert sealed > 0 and turns
