"""Set Lectern up on the first start, then run it: python launch.py [command] ...

Needs nothing but Python. This file keeps to Python 3.9 syntax and imports the standard library alone at the
top, so that another Python gets one clear line instead of a SyntaxError; the rest of the work is in app/setup.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST, NEWEST = (3, 11), (3, 13)
WITHOUT_SETUP = ("doctor",)


def wrong_python(version: tuple[int, ...]) -> str | None:
    """One line that says which Python is needed, or None when `version` will do."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return None
    return "Lectern needs Python {}.{} to {}.{}; {} is {}.{}. Start it with one of those, for example: {}".format(
        *OLDEST, *NEWEST, sys.executable or "this", *version[:2], "python3.12 launch.py"
    )


def environment(own_packages: bool) -> dict[str, str]:
    """Environment of the app: it finds `app` wherever it is started, and a venv sees no foreign PYTHONPATH."""
    values = dict(os.environ)
    if own_packages:
        values.pop("PYTHONHOME", None)
        values["PYTHONPATH"] = str(ROOT)
    else:
        values["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), values.get("PYTHONPATH"))))
    values.setdefault("PYTHONUTF8", "1")
    return values


def become(command: list[str], values: dict[str, str]) -> int:
    """Replace this process by `command`; on Windows, where that detaches the terminal, wait for it instead."""
    if os.name != "nt":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(command[0], command, values)
    import subprocess

    process = subprocess.Popen(command, env=values)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the child got it too and leaves in its own way


def main(argv: list[str]) -> int:
    """Answer --help, set up what is missing, hand the rest to app.cli or pytest."""
    complaint = wrong_python(sys.version_info)
    if complaint:
        print(complaint, file=sys.stderr)
        return 1
    from app.setup import commands

    try:
        request = commands.split(argv)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if request.help:
        print(commands.help_text())
        return 0
    from app.setup import state

    target = state.Target(ROOT, no_venv=request.no_venv)
    python = str(target.python)
    test = request.command == "test"
    if request.command == "setup" or request.torch or not state.is_ready(target, test=test):
        if request.command in WITHOUT_SETUP or (request.asks_help and not test):
            if not state.read_stamp(target):
                python = sys.executable  # these need no package
        else:
            from app.setup import install

            wanted = {"torch": request.torch, "reinstall": request.reinstall, "extras": request.extras}
            code = install.prepare(target, test=test, **wanted)
            if code or request.command == "setup":
                return code
    values = environment(own_packages=not request.no_venv)
    if test:
        os.chdir(ROOT)
        return become([python, "-P", "-m", "pytest", *commands.test_arguments(request.rest)], values)
    return become([python, "-P", "-m", "app.cli", *request.rest], values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
