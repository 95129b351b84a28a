"""What a command prints: results on stdout, messages and progress on stderr."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from app.wellformed import whole, whole_values

TERMINAL_S = 0.1
PLAIN_S = 10.0


class Output:
    """Prints for a person, or one JSON object for a script.

    Attributes:
        json: the result is one JSON object, as the last line of stdout.
    """

    def __init__(self, *, as_json: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.json = as_json
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._terminal = self._err.isatty()
        self._drawn = 0
        self._next_s = 0.0

    def say(self, text: str) -> None:
        """A message for the user."""
        self.clear()
        print(whole(text), file=self._err, flush=True)

    def result(self, values: Mapping[str, Any], text: str = "") -> None:
        """The result of a command: `values` for a script, `text` for a person."""
        self.clear()
        if self.json:
            print(json.dumps(whole_values(values)), file=self._out, flush=True)
        elif text:
            print(whole(text), file=self._out, flush=True)

    def stream(self, text: str) -> None:
        """A piece of an answer, as it comes; scripts get the whole answer in the result."""
        if not self.json:
            self.clear()
            print(whole(text), end="", file=self._out, flush=True)

    def fail(self, message: str, code: int) -> int:
        """Print why a command failed; returns its exit code."""
        self.say(message)
        if self.json:
            print(json.dumps({"error": whole(message)}), file=self._out, flush=True)
        return code

    def progress(self, text: str) -> None:
        """Show how far long work is: one line drawn over on a terminal, a plain line now and then elsewhere."""
        now = time.monotonic()
        if now < self._next_s:
            return
        text = whole(text)
        self._next_s = now + (TERMINAL_S if self._terminal else PLAIN_S)
        if not self._terminal:
            print(text, file=self._err, flush=True)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        print("\r" + text.ljust(self._drawn), end="", file=self._err, flush=True)
        self._drawn = len(text)

    def clear(self) -> None:
        """Wipe the progress line from the terminal."""
        if self._drawn:
            print("\r" + " " * self._drawn + "\r", end="", file=self._err, flush=True)
            self._drawn = 0
