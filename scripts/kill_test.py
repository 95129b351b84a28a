"""kill -9 at random moments of reading, answering and deleting: what was promised is there afterwards.

    python scripts/kill_test.py --kills 100

Every time: the library opens, `store verify` is clean, at most two segments are read again, and no turn is lost whose
answer was complete. Prints one JSON line and writes benchmarks/results/kill.json; the exit code is 1 on any failure.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WORDS = 150
LINES, PAUSE_S = 110, 0.05  # a moment lies after so many lines at most, and so long after the line
SEGMENT_GROUPS = 4  # tests.tiny reads four groups at a time


def work(home: Path, number: int, tell: Callable[..., None]) -> None:
    """What the killed process does, telling what a user saw: runs until it is killed."""
    from app.chat import DocumentChat
    from app.records import Done
    from app.runtime.config import GenerationConfig
    from app.settings import Settings
    from tests import tiny

    chat = DocumentChat.open(Settings(home=home), engine=tiny.engine())
    folder = home.parent
    generator = random.Random(number)
    tell("ready")
    for step in range(10_000):
        name = f"book-{number}-{step}"
        path = folder / f"{name}.txt"
        path.write_text(" ".join(f"{name} word{n}" for n in range(WORDS)), encoding="utf-8")
        document = chat.add_document(path)
        tell("added", document.id)
        for reading in chat.read(document.id):
            tell("read", document.id, reading.tokens_done)
        known = [info.id for info in chat.chats()]
        open_chat = known[0] if known and generator.random() < 0.5 else None
        for question in ("who is it?", "and then?"):
            asked = f"{question} {number}-{step}"
            documents = () if open_chat else (document.id,)
            for event in chat.ask(
                asked, chat=open_chat, documents=documents, generation=GenerationConfig(max_new_tokens=4)
            ):
                if isinstance(event, Done):
                    open_chat = event.chat
                    tell("turn", event.chat, asked)
        if len(known) > 3:
            tell("deleting", known[-1])
            chat.delete_chat(known[-1])
            tell("deleted", known[-1])
        documents = chat.documents()
        if len(documents) > 3:
            tell("forgetting", documents[-1].id)
            chat.delete_document(documents[-1].id)


class Promises:
    """What the killed processes said was kept."""

    def __init__(self) -> None:
        self.turns: dict[str, set[str]] = {}
        self.going: set[str] = set()
        self.gone: set[str] = set()
        self.read: dict[str, int] = {}

    def hear(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        key, _, text = rest.partition(" ")
        if word == "turn":
            self.turns.setdefault(key, set()).add(text)
        elif word == "deleting":
            self.going.add(key)
        elif word == "deleted":
            self.gone.add(key)
        elif word == "read":
            self.read[key] = int(text)
        elif word == "forgetting":
            self.read.pop(key, None)


def kill_once(home: Path, number: int, after: tuple[int, float], promises: Promises) -> str:
    """Fork a worker, kill it, hear what it said; returns what it was doing.

    Args:
        after: lines that it says, and seconds after the last of them: a busy machine must not shift the moments.
    """
    reading, writing = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "w") as said:
                work(home, number, lambda *words: print(*words, file=said, flush=True))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as heard:
        if heard.readline().strip() != "ready":
            raise RuntimeError(f"kill {number}: the worker did not start")
        lines = [line.rstrip("\n") for line in islice(heard, after[0])]
        time.sleep(after[1])
        os.kill(worker, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) != -signal.SIGKILL
        lines += heard.read().split("\n")[:-1]  # the last may be cut
    if ended:
        raise RuntimeError(f"kill {number}: the worker ended by itself, after {lines[-1:]}")
    for line in lines:
        promises.hear(line)
    return next((line.split()[0] for line in reversed(lines)), "starting")


def check(home: Path, promises: Promises, number: int) -> list[str]:
    """What is wrong with the library after a kill."""
    from app.chat import DocumentChat
    from app.settings import Settings
    from tests import tiny

    problems = []
    chat = DocumentChat.open(Settings(home=home), engine=tiny.engine())
    try:
        chat.store.collect_garbage()
        problems += [f"verify: {fault}" for fault in chat.store.verify().damaged]
        problems += [f"note: {note}" for note in chat.store.notes]
        known = {info.id for info in chat.chats()}
        for key, texts in promises.turns.items():
            if key in promises.gone:
                problems += [f"chat {key} was deleted and is back"] if key in known else []
            elif key in known:
                kept = {message.content for message in chat.messages(key)}
                problems += [f"chat {key}: lost {text!r}" for text in texts - kept]
            elif key not in promises.going:
                problems.append(f"chat {key} is lost")
        problems += _reread(chat, promises)
    finally:
        chat.close()
    return [f"kill {number}: {problem}" for problem in problems]


def _reread(chat: Any, promises: Promises) -> list[str]:
    """Documents of which more than two segments have to be read again."""
    problems = []
    group = chat.engine().shape.attention.group_tokens
    documents = {info.id for info in chat.documents()}
    for key, said in promises.read.items():
        if key not in documents:
            continue
        with closing(chat.read(key)) as readings:
            first = next(readings)
        lost = said - first.reused
        if lost > 2 * SEGMENT_GROUPS * group:
            problems.append(f"document {key}: {lost} tokens read again, {2 * SEGMENT_GROUPS * group} may be")
    return problems


def run(kills: int, seed: int = 0, minutes: float = 60) -> dict[str, Any]:
    """Kill so often; returns the result."""
    import torch

    torch.set_num_threads(1)  # a forked worker has no other threads
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    generator = random.Random(seed)
    problems: list[str] = []
    moments: dict[str, int] = {}
    promises = Promises()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        for number in range(kills):
            if time.time() - started > 60 * minutes:
                kills = number
                break
            after = generator.randrange(LINES), generator.uniform(0, PAUSE_S)
            moment = kill_once(home, number, after, promises)
            moments[moment] = moments.get(moment, 0) + 1
            problems += check(home, promises, number)
    return {
        "kills": kills,
        "problems": problems,
        "after": moments,
        "turns_promised": sum(map(len, promises.turns.values())),
        "seconds": round(time.time() - started, 1),
    }


def main() -> int:
    """Parse flags, run, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how often (100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "kill.json")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long, with fewer kills (60)")
    args = parser.parse_args()
    from benchmarks import machine

    result = {"benchmark": "kill", **run(args.kills, args.seed, minutes=args.minutes), **machine.describe()}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("kills", "problems", "after", "turns_promised", "seconds")}))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
