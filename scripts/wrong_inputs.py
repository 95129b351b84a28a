"""Give every command, every event of the page and every route for programs wrong inputs: each has to be told in words.

    python scripts/wrong_inputs.py                      # 660 inputs, a few minutes
    python scripts/wrong_inputs.py --count 90 --seed 7  # others

Inputs are drawn with a seed: wrong types, ids, encodings, half characters, sizes, numbers that are none, files that
are not what their name says, JSON with wrong places. All run in this process over a small random model. An input fails
when a traceback is printed, logged or returned, when an answer says "Something went wrong", or when it takes too long.
Writes benchmarks/results/wrong_inputs.json; the exit code is 1 when any failed.
"""

import argparse
import contextlib
import io
import json
import logging
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LONGEST_S = 120
SHARES = {"commands": 0.2, "events": 0.4, "programs": 0.4}  # a command costs most
NEVER = ("Traceback (most recent call last)", "Something went wrong")


class Found(logging.Handler):
    """What came of the inputs.

    Attributes:
        causes: tracebacks that were logged since the last input.
        until: what is tried later is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Counter[str]] = {}
        self.problems: list[dict[str, Any]] = []
        self.causes: list[str] = []
        self.slowest_s = 0.0
        self.until = math.inf

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.causes.append(f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}")

    def attempt(self, where: str, work: Callable[[], tuple[str, int | str, str]], asked: str = "") -> None:
        """Run one input.

        Args:
            work: returns what was put in, what became of it, and everything that was said.
            asked: what is put in, where it is known before.
        """
        self.causes.clear()
        began, printed = time.monotonic(), io.StringIO()
        if began > self.until:
            return
        try:
            with contextlib.redirect_stderr(printed), _bounded():
                asked, outcome, said = work()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and time.monotonic() - began < LONGEST_S:
                raise
            outcome, said = "raised", "".join(traceback.format_exception(error))
        seconds = time.monotonic() - began
        self.slowest_s = max(self.slowest_s, seconds)
        self.counts.setdefault(where, Counter())[str(outcome)] += 1
        said += printed.getvalue()
        if self.causes or any(words in said for words in NEVER) or seconds > LONGEST_S:
            told = {"where": where, "input": asked[:500], "causes": [cause[:300] for cause in self.causes]}
            self.problems.append(told | {"said": said[-300:], "seconds": round(seconds)})
            print(json.dumps(self.problems[-1]), file=sys.stderr, flush=True)


@contextmanager
def _bounded() -> Iterator[None]:
    """Ctrl-C after the longest time that an input may take."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(count: int, seed: int = 0, minutes: float = 60) -> dict[str, Any]:
    """Try so many inputs, fewer when the time is over; returns counts and every failure."""
    from scripts.wrong import world

    found, started, rng = Found(), time.time(), random.Random(seed)
    found.until = time.monotonic() + 60 * minutes
    ours = logging.getLogger()
    ours.addHandler(found)
    try:
        with tempfile.TemporaryDirectory() as own:
            made = world.make(Path(own))
            _served(found, made, rng, round(count * SHARES["events"]), round(count * SHARES["programs"]))
            _commands(found, made, rng, round(count * SHARES["commands"]))
    finally:
        ours.removeHandler(found)
    return {
        "inputs": sum(counts.total() for counts in found.counts.values()),
        "seed": seed,
        "outcomes": {where: dict(counts) for where, counts in found.counts.items()},
        "tracebacks": sum(bool(problem["causes"]) or NEVER[0] in problem["said"] for problem in found.problems),
        "went_wrong": sum(NEVER[1] in problem["said"] for problem in found.problems),
        "problems": found.problems,
        "slowest_s": round(found.slowest_s, 1),
        "seconds": round(time.time() - started, 1),
    }


def _commands(found: Found, world: Any, rng: random.Random, count: int) -> None:
    from scripts.wrong import commands

    lines = commands.lines(world, rng)
    for number in range(count):
        if number % 20 == 19:
            words = commands.setup_line(rng)
            found.attempt("setup", lambda words=words: (repr(words), "told", commands.refused_setup(words)))
        else:
            line = next(lines)
            found.attempt("commands", lambda line=line: commands.run(world, *line), repr(line))


def _served(found: Found, world: Any, rng: random.Random, events: int, requests: int) -> None:
    from scripts.wrong import served
    from scripts.wrong.world import opened

    with opened(world.fresh()) as chat, served.serving(chat) as app:
        numbers = [number for number, event in app.blocks.fns.items() if event.fn]
        for count in range(events):
            found.attempt("events", lambda number=numbers[count % len(numbers)]: served.event(app, rng, number))
        for _ in range(requests):
            found.attempt("programs", lambda: served.request(app, rng))


def main() -> int:
    """Parse flags, run, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=660, help="inputs (660)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long, with fewer inputs (60)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "wrong_inputs.json")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks import machine

    result = {"benchmark": "wrong_inputs", **run(args.count, args.seed, args.minutes), **machine.describe()}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key in ("inputs", "tracebacks", "went_wrong")}))
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
