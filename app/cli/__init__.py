"""The command line of Lectern; `python launch.py` hands its arguments here."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from app import privacy
from app.cli.flags import parser, settings_flags, with_default
from app.cli.output import Output
from app.cli.session import Session
from app.errors import CancelledError, ConfigError, LecternError
from app.settings import Settings, fill

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130
STOPPED = "Stopped. What was finished is kept."


def _open_chat(settings: Settings, *, load: bool = True) -> Any:
    from app.chat import DocumentChat

    return DocumentChat.open(settings, load=load)


def main(argv: Sequence[str] | None = None, *, open_chat: Callable[..., Any] = _open_chat) -> int:
    """Run one command.

    Returns:
        0, or 2 for bad usage, 130 after Ctrl-C, 1 for any other failure.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output(as_json="--json" in words)
    settings: Settings | None = None
    try:
        args = parser().parse_args(with_default(words))
        settings = fill(Settings, flags=settings_flags(args))
        privacy.apply(download=settings.download)
        return args.run(Session(settings, out, open_chat), args) or 0
    except SystemExit as end:  # argparse printed its help
        return int(end.code or 0)
    except (KeyboardInterrupt, CancelledError):
        return out.fail(STOPPED, INTERRUPTED)
    except ConfigError as error:
        return out.fail(str(error), BAD_USAGE)
    except LecternError as error:
        return out.fail(str(error), FAILED)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 (no traceback reaches a user)
        return out.fail(_logged(error, settings), FAILED)


def _logged(error: Exception, settings: Settings | None) -> str:
    """Write the traceback to the log of the data folder; returns the line for the user."""
    line = f"Something went wrong inside Lectern ({type(error).__name__}: {error})"
    if settings is None:
        return line
    try:
        path = settings.folder / "lectern.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except (OSError, ImportError) as problem:  # platformdirs, which knows the folder, comes with the set-up
        return f"{line}; the log cannot be written: {problem}"
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "command failed", (), sys.exc_info())
    handler.emit(record)
    handler.close()
    return f"{line}. {path} has the details."
