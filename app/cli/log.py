"""The log file of the data folder: where tracebacks go, so that no user meets one."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from app.settings import Settings

MOST_BYTES = 1 << 20
UNEXPECTED = ("command failed", "unexpected error in the page", "request failed")
ENTRY = re.compile(r"(?P<moment>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ [A-Z]+ [\w.]+: (?P<said>.*)")


class LogFile(RotatingFileHandler):
    """Made when there is something to log.

    Attributes:
        failure: why it could not be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.failure: BaseException | None = None

    def _open(self):
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:
        self.failure = sys.exc_info()[1]


@contextmanager
def log_file(settings: Settings) -> Iterator[LogFile | None]:
    """Send what our modules log to `lectern.log` of the data folder; None before the set-up, when nobody knows it."""
    try:
        file = LogFile(settings.folder / "lectern.log")
    except ImportError:  # platformdirs comes with the set-up; doctor runs without
        yield None
        return
    ours = logging.getLogger("app")
    ours.addHandler(file)
    try:
        yield file
    finally:
        ours.removeHandler(file)
        file.close()


def unexpected(folder: Path) -> list[tuple[str, str]]:
    """(moment, cause) of every error in the log that nobody foresaw, the oldest first."""
    found: list[tuple[str, str]] = []
    inside = False
    for name in ("lectern.log.1", "lectern.log"):
        path = folder / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            if begins := ENTRY.match(line):
                inside = begins["said"] in UNEXPECTED
                if inside:
                    found.append((begins["moment"], "not told"))
            elif inside and line and not line[0].isspace():
                found[-1] = found[-1][0], line  # the last line of a traceback says why
    return found


def log_unexpected(error: Exception, file: LogFile | None) -> str:
    """Log a traceback; returns the line for the user."""
    line = f"Something went wrong inside Lectern ({type(error).__name__}: {error})"
    if file is None:
        return line
    logging.getLogger(__name__).error("command failed", exc_info=error)
    if file.failure:
        return f"{line}; the log cannot be written: {file.failure}"
    return f"{line}. {file.baseFilename} has the details."
