"""kill -9 at random moments of reading, answering and deleting, in turn: what was promised is there afterwards.

    python scripts/kill_test.py --kills 100

Every time: the library opens, `store verify` is clean, at most two segments are read again, no turn is lost whose
answer was complete, no document or chat is lost, and none that was deleted is back. Prints one JSON line and writes
benchmarks/results/kill.json; the exit code is 1 on any failure.
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
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WORDS = 80
PHASES = {
    "reading": ("adding", "added", "read"),
    "answering": ("asking", "delta", "turn"),
    "deleting": ("deleting", "deleted", "forgetting", "forgotten"),
}
LINES = {"reading": 24, "answering": 11, "deleting": 5}  # a kill comes after one of so many lines of its phase
PAUSE_S = {"reading": 0.05, "answering": 0.01, "deleting": 0.01}  # and at most so long after that line
CLEANING_S = 0.03  # between two deletions: what they leave behind goes in the background
KEPT = 2  # chats and documents beyond the newest are deleted
SEGMENT_GROUPS = 4  # tests.tiny reads four groups at a time


def work(home: Path, number: int, tell: Callable[..., None]) -> None:
    """What the killed process does, telling what a user saw: runs until it is killed."""
    from app.chat import DocumentChat
    from app.memory.config import GenerationConfig
    from app.records import Delta, Done
    from app.settings import Settings
    from tests import tiny

    chat = DocumentChat.open(Settings(home=home), engine=tiny.engine())
    generator = random.Random(number)
    tell("ready")
    for step in range(10_000):
        _delete(chat, tell)
        name = f"book-{number}-{step}"
        path = home.parent / f"{name}.txt"
        path.write_text(" ".join(f"{name} word{n}" for n in range(WORDS)), encoding="utf-8")
        tell("adding")
        document = chat.library.add_document(path)
        tell("added", document.id)
        for reading in chat.read(document.id):
            tell("read", document.id, reading.tokens_done)
        known = [info.id for info in chat.saved.chats()]
        open_chat = known[0] if known and generator.random() < 0.5 else None
        for question in (f"who is it? {name}", f"and then? {name}"):
            tell("asking")
            documents = () if open_chat else (document.id,)
            asked = chat.ask(
                question, chat=open_chat, documents=documents, generation=GenerationConfig(max_new_tokens=4)
            )
            for event in asked:
                if isinstance(event, Delta):
                    tell("delta")
                if isinstance(event, Done):
                    open_chat = event.chat
                    tell("turn", event.chat, json.dumps([question, event.answer]))
                    if any(words in event.stats.note for words in ("damaged", "not stored")):
                        tell("fault", event.chat, event.stats.note)


def _delete(chat: Any, tell: Callable[..., None]) -> None:
    """Delete all but the newest chats and documents."""
    for old in chat.saved.chats()[KEPT:]:
        tell("deleting", old.id)
        chat.saved.delete_chat(old.id)
        tell("deleted", old.id)
        time.sleep(CLEANING_S)
    for old in chat.library.documents()[KEPT:]:
        tell("forgetting", old.id)
        chat.library.delete_document(old.id)
        tell("forgotten", old.id)
        time.sleep(CLEANING_S)


class Promises:
    """What the killed processes said was kept.

    Attributes:
        turns: of each chat, its questions with their answers.
        read: of each document, the tokens that were read.
        going, gone: chats and documents whose deletion began, and ended.
        faults: what an answer said of a memory that was not whole.
    """

    def __init__(self) -> None:
        self.turns: dict[str, set[tuple[str, str]]] = {}
        self.read: dict[str, int] = {}
        self.going: set[str] = set()
        self.gone: set[str] = set()
        self.faults: list[str] = []

    def hear(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        key, _, text = rest.partition(" ")
        if word == "turn":
            self.turns.setdefault(key, set()).add(tuple(json.loads(text)))
        elif word in ("added", "read"):
            self.read[key] = int(text or 0)
        elif word in ("deleting", "forgetting"):
            self.going.add(key)
        elif word in ("deleted", "forgotten"):
            self.gone.add(key)
        elif word == "fault":
            self.faults.append(rest)


def phase_of(line: str) -> str:
    """The phase that a line belongs to; "" of none."""
    return next((phase for phase, words in PHASES.items() if line.split(" ")[0] in words), "")


def kill_once(home: Path, number: int, after: tuple[str, int, float], promises: Promises) -> str:
    """Fork a worker, kill it, hear what it said; returns the last line.

    Args:
        after: the phase, how many lines of it the worker says before, and seconds after the last of them: a busy
            machine must not shift the moments.
    """
    phase, count, pause_s = after
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
    lines: list[str] = []
    with os.fdopen(reading) as heard:
        for line in heard:
            lines.append(line.rstrip("\n"))
            count -= phase_of(lines[-1]) == phase
            if not count:
                break
        time.sleep(pause_s)
        os.kill(worker, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) != -signal.SIGKILL
        lines += heard.read().split("\n")[:-1]  # the last may be cut
    if ended:
        raise RuntimeError(f"kill {number}: the worker ended by itself, after {lines[-1:]}")
    for line in lines:
        promises.hear(line)
    return lines[-1]


def check(home: Path, promises: Promises, number: int) -> list[str]:
    """What is wrong with the library after a kill."""
    from app.chat import DocumentChat
    from app.settings import Settings
    from tests import tiny

    problems = []
    chat = DocumentChat.open(Settings(home=home), engine=tiny.engine())
    try:
        problems += [f"verify: {fault}" for fault in chat.store.verify().damaged]
        chat.store.collect_garbage()
        problems += [f"note: {note}" for note in chat.store.notes]
        problems += [f"answer in chat {fault}" for fault in promises.faults]
        promises.faults.clear()
        chats = {info.id for info in chat.saved.chats()}
        problems += _kept("chat", chats, set(promises.turns), promises)
        problems += _kept("document", {info.id for info in chat.library.documents()}, set(promises.read), promises)
        for key in chats & promises.turns.keys():
            said = [message.content for message in chat.saved.messages(key)]
            lost = promises.turns[key] - set(zip(said[::2], said[1::2], strict=False))
            problems += [f"chat {key}: lost {turn}" for turn in sorted(lost)]
        problems += _reread(chat, promises)
    finally:
        chat.close()
    return [f"kill {number}: {problem}" for problem in problems]


def _kept(kind: str, there: set[str], promised: set[str], promises: Promises) -> list[str]:
    """Chats or documents that are lost, or back."""
    lost = [f"{kind} {key} is lost" for key in sorted(promised - promises.going - there)]
    return lost + [f"{kind} {key} was deleted and is back" for key in sorted(promises.gone & there)]


def _reread(chat: Any, promises: Promises) -> list[str]:
    """Documents of which more than two segments have to be read again."""
    problems = []
    group = chat.model.engine().shape.attention.group_tokens
    documents = {info.id for info in chat.library.documents()}
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
    landed, lines = Counter[str](), Counter[str]()
    promises = Promises()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        for number in range(kills):
            if time.time() - started > 60 * minutes:
                kills = number
                break
            phase = list(PHASES)[number % len(PHASES)]
            after = phase, generator.randint(1, LINES[phase]), generator.uniform(0, PAUSE_S[phase])
            last = kill_once(home, number, after, promises)
            landed[phase_of(last)] += 1
            lines[last.split(" ")[0]] += 1
            problems += check(home, promises, number)
    return {
        "kills": kills,
        "problems": problems,
        "landed": dict(landed),
        "after": dict(lines),
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
    shown = ("kills", "problems", "landed", "after", "turns_promised", "seconds")
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in shown}))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
