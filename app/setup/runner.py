"""Runs the commands of a set-up: a live line while they work, a log, the next step when they fail."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.setup import SetupError
from app.system import size_text

TAIL_LINES = 12
SIZE_EVERY_S = 4.0  # a walk over tens of thousands of files
PLAIN_EVERY_S = 15.0  # between progress lines when there is no terminal
_WORDS_OF_PIP = ("Collecting", "Downloading", "Processing", "Building", "Installing")  # shown while it works
_NEXT_STEPS = (
    ("No space left on device|Errno 28", "Free disk space (and in the temporary folder, TMPDIR), then start again."),
    ("Permission denied|Errno 13|Access is denied", "Make the checkout writable for you, then start again."),
    ("externally-managed-environment", "Leave out --no-venv: this Python refuses packages outside a venv."),
    (
        "name resolution|getaddrinfo|Network is unreachable|ConnectionError|NewConnectionError|timed out|ProxyError",
        "Check the network (behind a proxy set HTTPS_PROXY), then start again; what was fetched is kept.",
    ),
    ("CERTIFICATE_VERIFY_FAILED", "Point pip at your organisation's certificate (pip config set global.cert FILE)."),
    (
        "No matching distribution|Could not find a version|ResolutionImpossible",
        "pip's configuration offers no such package for this Python: look at `python -m pip config list`, "
        "or try another Python from 3.11 to 3.13.",
    ),
    ("unrecognized arguments|No module named pip", "Run `python launch.py setup --reinstall`."),
)


def folder_bytes(folder: Path) -> int:
    """Bytes of the files under a folder; files that vanish meanwhile count as nothing."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += folder_bytes(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    except OSError:
        pass
    return total


def _clock(elapsed_s: float) -> str:
    return f"{int(elapsed_s) // 60}:{int(elapsed_s) % 60:02d}"


class Console:
    """Progress on stderr: one live line per step on a terminal, plain lines otherwise."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._heading = ""
        self._started = self._shown = 0.0

    def say(self, text: str) -> None:
        """Print a line of its own, above the live line."""
        if self.live and self._heading:
            self._rewrite("")
        print(text, file=sys.stderr, flush=True)

    def begin(self, number: int, steps: int, title: str) -> None:
        self._heading = f"[{number}/{steps}] {title}"
        self._started = self._shown = time.monotonic()
        if self.live:
            self._rewrite(self._heading)
        else:
            self.say(self._heading)

    def tick(self, detail: str) -> None:
        now = time.monotonic()
        text = f"{self._heading}  {_clock(now - self._started)}  {detail}"
        if self.live:
            self._rewrite(text)
        elif now - self._shown >= PLAIN_EVERY_S:
            self._shown = now
            self.say(text)

    def end(self, detail: str) -> None:
        text = f"{self._heading}: {detail} ({_clock(time.monotonic() - self._started)})"
        self._heading = "" if not self.live else self._heading
        self.say(text)
        self._heading = ""

    def _rewrite(self, text: str) -> None:
        """Replace the live line; spaces rather than escape codes, which older Windows consoles print."""
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r" + text[:width].ljust(width) + ("\r" if not text else ""))
        sys.stderr.flush()


class Runner:
    """Runs commands one after the other, into one log.

    Args:
        log: rewritten by each set-up.
        lock: descriptor that children keep open, so that the lock lives as long as they do.
        size: bytes installed so far, or None where that cannot be measured.
    """

    def __init__(self, console: Console, log: Path, lock: int, size: Callable[[], int] | None) -> None:
        self.console = console
        self._path = log
        self._log = log.open("w", encoding="utf-8", errors="replace")
        self._writing = threading.Lock()
        self._lock = lock
        self._size = size

    def close(self) -> None:
        with self._writing:
            self._log.close()

    def note(self, text: str) -> None:
        """Write a line to the log alone; what a child that was stopped says after the end is left out."""
        with self._writing:
            if not self._log.closed:
                self._log.write(text + "\n")
                self._log.flush()

    def run(self, command: Sequence[str], environment: dict[str, str]) -> list[str]:
        """Run a command to its end, showing what it does.

        Returns:
            The lines it printed.

        Raises:
            SetupError: it failed; the message holds its last lines and the next step.
            KeyboardInterrupt: the user stopped it; the command is gone by then.
        """
        self.note("\n$ " + " ".join(command))
        try:
            process = self._popen(command, environment)
        except OSError as error:
            raise SetupError(f"cannot run {command[0]}: {error}") from error
        lines: list[str] = []
        reader = threading.Thread(target=self._drain, args=(process, lines), daemon=True)
        reader.start()
        try:
            self._watch(process, reader, lines)
        except KeyboardInterrupt:
            _stop(process)
            raise
        finally:
            reader.join(timeout=5)
        if process.returncode:
            raise SetupError(self._failure(command, process.returncode, lines))
        return lines

    def _popen(self, command: Sequence[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
        keep = {} if os.name == "nt" else {"pass_fds": (self._lock,)}
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            encoding="utf-8",
            errors="replace",
            **keep,
        )

    def _drain(self, process: "subprocess.Popen[str]", lines: list[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            self.note(lines[-1])

    def _watch(self, process: "subprocess.Popen[str]", reader: threading.Thread, lines: list[str]) -> None:
        held, measured = 0, 0.0
        while process.poll() is None:
            if self._size and time.monotonic() - measured > SIZE_EVERY_S:
                held, measured = self._size(), time.monotonic()
            doing = next((line for line in reversed(lines) if line.lstrip().startswith(_WORDS_OF_PIP)), "")
            doing = " ".join(doing.split()[:3])
            self.console.tick(f"{size_text(held)} installed  {doing}" if held else doing)
            reader.join(timeout=0.3)
            if not reader.is_alive():
                process.wait()

    def _failure(self, command: Sequence[str], code: int, lines: list[str]) -> str:
        tail = [line for line in lines if line.strip()][-TAIL_LINES:]
        text = "\n".join(lines)
        step = next((step for pattern, step in _NEXT_STEPS if re.search(pattern, text)), None)
        step = step or "Read the log, then start again: the set-up continues where it stopped."
        shown = "\n".join(f"    {line}" for line in tail)
        name = Path(command[0]).name
        return f"{name} ended with code {code}. Its last lines:\n{shown}\nLog: {self._path}\nNext: {step}"


def _stop(process: "subprocess.Popen[str]") -> None:
    """End a child politely, so that pip can undo what it was doing, then by force."""
    try:
        if os.name != "nt":
            process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
