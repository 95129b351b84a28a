"""A disk without a free byte: what still works on it, with the real commands.

    python scripts/full_disk.py            # as root: mounts a small file system of its own
    python scripts/full_disk.py --folder F # on a small file system that is there already; it is filled and emptied
    python scripts/full_disk.py --inside   # all commands in this process: quicker, but nothing starts anew

Reads a text and asks about it, fills the disk to the last byte, then starts, lists, asks, deletes, evicts and compacts,
with the reserve and without it, and once more after room was made. Prints one JSON line and writes
benchmarks/results/full_disk.json; the exit code is 1 when a step did not do what it should.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MODEL = ROOT / "models" / "lectern-small"  # the other one would be made on the small disk
DISK_MB = 96
WORDS = 800
LONGEST_S = 900


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of its own, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def command(home: Path, *words: object, inside: bool = False) -> tuple[int, dict[str, Any], str]:
    """Run a command of ours, in a process of its own or in this one; (exit code, its JSON, what it said)."""
    line = [*map(str, words), "--home", str(home), "--model", str(MODEL), "--json"]
    if inside:
        code, said, errors = _inside(line)
    else:
        whole = [sys.executable, "-P", "-m", "app.cli", *line]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(whole, capture_output=True, text=True, timeout=LONGEST_S, env=environment, cwd=ROOT)
        code, said, errors = done.returncode, done.stdout, done.stderr
    lines = said.strip().splitlines()
    return code, json.loads(lines[-1]) if lines else {}, errors


def _inside(line: list[str]) -> tuple[int, str, str]:
    from app import cli

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(line)
    return code, out.getvalue(), err.getvalue()


def fill(disk: Path) -> None:
    """What another program does: take every byte."""
    with (disk / "other").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


class Steps:
    """Runs commands one after another and notes what came of each."""

    def __init__(self, disk: Path, inside: bool = False) -> None:
        self.disk, self.home, self.inside = disk, disk / "home", inside
        self.done: list[dict[str, Any]] = []

    def run(self, name: str, *words: object) -> dict[str, Any]:
        """One command, which has to end well without a traceback."""
        free, started = shutil.disk_usage(self.disk).free, time.time()
        code, values, said = command(self.home, *words, inside=self.inside)
        step = {
            "step": name,
            "right": code == 0 and "went wrong inside" not in said + str(values),
            "free_before": free,
            "free_after": shutil.disk_usage(self.disk).free,
            "seconds": round(time.time() - started, 1),
            "said": [line for line in said.splitlines() if "disk is full" in line][:2],
        }
        step |= {key: values[key] for key in ("freed_bytes", "error", "tokens_read", "tokens_reused") if key in values}
        self.done.append(step)
        print(json.dumps(step), file=sys.stderr, flush=True)
        return values


def measure(disk: Path, inside: bool = False) -> dict[str, Any]:
    """All steps on an empty file system."""
    steps = Steps(disk, inside)
    documents = []
    for name in ("first", "second", "third"):
        path = disk / f"{name}.txt"
        path.write_text(" ".join(f"{name} word{n % 97}." for n in range(WORDS)), encoding="utf-8")
        documents.append(steps.run(f"read {name}", "read", path)["document"])
        path.unlink()
    chat = steps.run("ask", "ask", "Which word is first?", "-d", documents[2], "--max-new-tokens", 8)["chat"]
    for label, reserve in (("with the reserve", True), ("without it", False)):
        if not reserve:
            (steps.home / "reserve").unlink(missing_ok=True)
        fill(disk)
        full = shutil.disk_usage(disk).free
        steps.run(f"start, list, {label}", "documents", "list")
        steps.run(f"show the chat, {label}", "chats", "show", chat)
        steps.run(f"ask, {label}", "ask", "And then?", "--chat", chat, "--max-new-tokens", 4)
        if reserve:
            steps.run(f"evict, {label}", "documents", "evict", documents[0])
        else:
            steps.run(f"delete, {label}", "documents", "delete", documents[1])
        steps.run(f"compact, {label}", "store", "compact")
        steps.done.append({"step": f"the disk was full, {label}", "right": full == 0, "free_before": full})
    (disk / "other").unlink()
    steps.run("ask with room again", "ask", "And now?", "--chat", chat, "--max-new-tokens", 4)
    damaged = steps.run("verify", "store", "verify").get("damaged")
    steps.done[-1]["right"] = steps.done[-1]["right"] and damaged == []
    return {"steps": steps.done, "wrong": [step["step"] for step in steps.done if not step["right"]]}


def main() -> int:
    """Parse flags, run, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a small, empty file system to fill; root mounts one without it")
    parser.add_argument("--megabytes", type=int, default=DISK_MB, help=f"size of the one that is mounted ({DISK_MB})")
    parser.add_argument("--inside", action="store_true", help="run the commands in this process")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "full_disk.json")
    args = parser.parse_args()
    from benchmarks import machine

    if args.folder:
        result = measure(args.folder, args.inside)
    else:
        with small_disk(args.megabytes) as disk:
            result = measure(disk, args.inside)
    values = {"benchmark": "full_disk", "inside": args.inside, **result, **machine.describe()}
    args.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"steps": len(result["steps"]), "wrong": result["wrong"]}))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
