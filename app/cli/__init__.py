"""The command line of Lectern; `python launch.py` hands its arguments here."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app import system
from app.cli.flags import parser, settings_flags, with_default
from app.cli.log import log_file, log_unexpected
from app.cli.output import Output
from app.cli.session import Session
from app.errors import CancelledError, ConfigError, LecternError, refusal
from app.settings import FILES, Settings, fill
from app.wellformed import whole

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130
OTHER_FILES = ("folder", "copy")
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
    try:
        args = _whole(parser().parse_args(with_default(words)))
        settings = fill(Settings, flags=settings_flags(args))
        system.keep_private(download=settings.download)
        system.keep_freed_memory()
        return _run(args, Session(settings, out, open_chat))
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


def _whole(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with every text in them whole; names of files stay as the system gave them."""
    for name, value in vars(args).items():
        mend = _name if name in (*FILES, *OTHER_FILES) else whole
        mended = [_mended(item, mend) for item in value] if isinstance(value, list) else _mended(value, mend)
        setattr(args, name, mended)
    return args


def _mended(value: Any, mend: Callable[[str], str]) -> Any:
    if isinstance(value, Path):
        return Path(_name(str(value)))
    return mend(value) if isinstance(value, str) else value


def _name(text: str) -> str:
    """A file's name as it is, unless no system has such names."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return whole(text)
    return text


def _run(args: argparse.Namespace, session: Session) -> int:
    with log_file(session.settings) as log:
        try:
            return args.run(session, args) or 0
        except (LecternError, BrokenPipeError):
            raise
        except Exception as error:  # no traceback reaches a user
            if told := refusal(error):
                return session.out.fail(told, FAILED)
            return session.out.fail(log_unexpected(error, log), FAILED)
