"""The steps of a set-up: check, make .venv, install torch, install the rest, try it, write the stamp."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from app.setup import SetupError, builds, lock, state
from app.setup.runner import Console, Runner, folder_bytes
from app.system import size_text

_PROBE = """
import importlib.metadata, json, pip, sysconfig
try:
    torch = importlib.metadata.version("torch")
except importlib.metadata.PackageNotFoundError:
    torch = None
print(json.dumps({"torch": torch, "packages": sysconfig.get_path("purelib")}))
"""
_FIND_TORCH = """
import importlib.metadata, torch
print(torch.__version__)
print(importlib.metadata.distribution("torch").locate_file(""))
"""
_TRY_TORCH = "import torch; print('CUDA seen' if torch.cuda.is_available() else 'no CUDA seen')"


def prepare(
    target: state.Target,
    *,
    torch: str | None = None,
    reinstall: bool = False,
    test: bool = False,
    extras: Sequence[str] = (),
) -> int:
    """Bring the environment up to date, or say why that cannot be done.

    Args:
        torch: "cpu" or "cuda": install this build even where another torch would do.
        reinstall: remove .venv first.
        test: install the test packages too.
        extras: install these too ("ocr"); a later set-up keeps them up to date.

    Returns:
        Exit code: 0 when the environment is ready, 130 when the user stopped it.
    """
    console = Console()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _check_writable(target)
        with lock.held(target.work / "lock", lambda pid: console.say(_waiting(target, pid))) as descriptor:
            extras = sorted({*extras, *state.extras(target)})
            if not torch and not reinstall and state.is_ready(target, test=test, extras=extras):
                console.say("Lectern is set up; nothing to install.")
                return 0
            size = None if target.no_venv else lambda: folder_bytes(target.venv)
            runner = Runner(console, target.log, descriptor, size)
            try:
                _Setup(target, runner, torch, reinstall, test, extras).run()
            finally:
                runner.close()
        return 0
    except SetupError as error:
        console.say(f"\nSet-up failed: {error}")
        return 1
    except OSError as error:
        console.say(f"\nSet-up failed: {error}")
        console.say(f"Next: check the disk and the permissions of {target.root}, then start again.")
        return 1
    except KeyboardInterrupt:
        console.say("\nSet-up stopped. Start the same command again to continue where it stopped.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _waiting(target: state.Target, pid: str) -> str:
    return f"Another set-up of {target.root} is running (process {pid}); waiting for it. Ctrl-C to leave."


def _check_writable(target: state.Target) -> None:
    try:
        target.work.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=target.work), tempfile.TemporaryFile(dir=target.root):
            pass
    except OSError as error:
        raise SetupError(
            f"cannot write to {target.root}: {error.strerror or error}.\n"
            "Next: make the folder writable for you, or copy the checkout to a folder of your own."
        ) from error


class _Setup:
    """One run of the steps. Each returns what its line should say when it is done."""

    def __init__(
        self,
        target: state.Target,
        runner: Runner,
        torch: str | None,
        reinstall: bool,
        test: bool,
        extras: Sequence[str],
    ) -> None:
        self.target = target
        self.runner = runner
        self.wanted = torch
        self.reinstall = reinstall
        self.test = test
        self.extras = extras
        self.continued = target.unfinished.exists()
        self.torch_version = ""
        self.environment = _pip_environment(target)

    def run(self) -> None:
        started = time.monotonic()
        say = self.runner.console.say
        say(f"Setting Lectern up in {'this Python' if self.target.no_venv else self.target.venv}, once.")
        if self.continued:
            say("An earlier set-up did not finish; continuing it.")
        self.target.unfinished.touch()
        steps = self._steps()
        for number, (title, step) in enumerate(steps, start=1):
            self.runner.note(f"\n# {title}")
            self.runner.console.begin(number, len(steps), title)
            self.runner.console.end(step())
        state.write_stamp(self.target, test=self.test, extras=self.extras)
        self.target.unfinished.unlink()
        held = "" if self.target.no_venv else f"; .venv holds {size_text(folder_bytes(self.target.venv))}"
        say(f"Lectern is set up, in {time.monotonic() - started:.0f} s{held}.")

    def _steps(self) -> list[tuple[str, Callable[[], str]]]:
        steps = [
            ("checking this computer", self._check),
            ("making the environment", self._make_venv),
            ("installing torch", self._install_torch),
            ("installing the other packages", self._install_packages),
            ("trying torch", self._try_torch),
        ]
        if self.test:
            steps.insert(4, ("installing the test packages", self._install_test_packages))
        for extra in self.extras:
            steps.insert(-1, (f"installing {extra.upper()}", partial(self._install_extra, extra)))
        return steps

    def _check(self) -> str:
        self._check_room(None)
        if not self.target.no_venv and not self.target.python.exists() and not importlib.util.find_spec("ensurepip"):
            raise SetupError(_ensurepip_missing())
        free = size_text(shutil.disk_usage(self.target.root).free)
        return f"Python {sys.version.split()[0]}, {free} free"

    def _check_room(self, flavour: builds.Flavour | None) -> None:
        """Raise unless the checkout's disk, and the one pip downloads to, have room."""
        download, disk = builds.cost(flavour, self.test)
        root, scratch = self.target.root, Path(tempfile.gettempdir())
        needs = {root: max(disk - folder_bytes(self.target.venv), 100e6)}
        shared = root.stat().st_dev == scratch.stat().st_dev
        needs[root if shared else scratch] = needs.get(root if shared else scratch, 0.0) + download
        for folder, need in needs.items():
            free = shutil.disk_usage(folder).free
            if free < need:
                raise SetupError(
                    f"{folder} has {size_text(free)} free; the set-up needs {size_text(need)} there.\n"
                    "Next: free some space" + ("." if folder == root else ", or point TMPDIR at a larger disk.")
                )

    def _make_venv(self) -> str:
        target = self.target
        if target.no_venv:
            if self._probe() is None:
                raise SetupError(f"{sys.executable} has no pip.\nNext: install pip for it, or leave out --no-venv.")
            return "not needed (--no-venv)"
        if self._keep_venv():
            removed = _remove_half_installed(Path(self._probed()["packages"]))
            return "kept what was there" + (f", {removed} half-installed packages removed" if removed else "")
        torch = None if self.wanted or os.environ.get("TORCH_COMMAND") else self._torch_of_this_python()
        base = getattr(sys, "_base_executable", None) or sys.executable
        command = [base, "-m", "venv", "--clear", str(target.venv)]
        if torch:
            command.insert(-1, "--system-site-packages")
        self.runner.run(command, self.environment)
        if not torch:
            return ".venv made"
        packages = self._probed()
        if packages["torch"] is None:  # this Python is itself a venv, whose packages .venv does not inherit
            (Path(packages["packages"]) / "lectern-torch.pth").write_text(torch[1] + "\n", encoding="utf-8")
        return f".venv made, with the torch {torch[0]} that this Python has"

    def _keep_venv(self) -> bool:
        """Whether .venv can be used as it is; removes it where it must be made again."""
        venv = self.target.venv
        if not venv.exists() and not venv.is_symlink():
            return False
        ours = self.continued or self.reinstall or bool(state.read_stamp(self.target))
        version = _venv_version(venv)
        if version == sys.version_info[:2] and not self.reinstall and self._probe() is not None:
            return True
        if not ours:
            what = f"made with Python {version[0]}.{version[1]}" if version else "no virtual environment"
            raise SetupError(
                f"{venv} is there already, was not made by this set-up and cannot be used ({what}).\n"
                "Next: move it away, or run `python launch.py setup --reinstall` to replace it."
            )
        if venv.is_symlink():
            raise SetupError(f"{venv} is a link and cannot be made again.\nNext: remove the link, then start again.")
        self.target.stamp.unlink(missing_ok=True)
        shutil.rmtree(venv)
        return False

    def _torch_of_this_python(self) -> tuple[str, str] | None:
        """Version and folder of a torch in the running Python that can be used; tried, not only looked at."""
        if Path(sys.prefix).resolve() == self.target.venv.resolve() or not importlib.util.find_spec("torch"):
            return None
        try:
            answer = subprocess.run(
                [sys.executable, "-c", _FIND_TORCH],
                cwd=self.target.work,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        self.runner.note(answer.stdout + answer.stderr)
        lines = answer.stdout.splitlines()
        return (lines[-2], lines[-1]) if answer.returncode == 0 and builds.usable(lines[-2]) else None

    def _install_torch(self) -> str:
        found = self._probed()["torch"]
        if found and builds.usable(found) and not self.wanted:
            self.torch_version = found
            self._check_room(None)
            self.runner.console.say(f"torch {found} is there; up to {builds.cost_text(None, self.test)}")
            return f"kept torch {found}"
        pin = _pins(self.target.root / "constraints.txt")["torch"]
        command = None if self.wanted else builds.command_from_environment(self.target.python)
        if command:
            self.runner.console.say(f"TORCH_COMMAND installs torch: {' '.join(command)}")
        else:
            build = builds.choose(builds.visible(self.target.python, pin, self.environment), pin, self.wanted)
            self.runner.console.say(builds.announcement(build, self.test))
            self._check_room(build.flavour)
            command = self._pip_install("--constraint", str(self.target.root / "constraints.txt"), build.requirement)
        self.runner.run(command, self.environment)
        found = self._probed()["torch"]
        if not builds.usable(found):
            raise SetupError(
                f"`{' '.join(command)}` left torch {found or 'out'}; Lectern works with 2.11 to 2.13.\n"
                "Next: correct or unset TORCH_COMMAND, then start again."
            )
        self.torch_version = found
        return f"torch {found}"

    def _install_packages(self) -> str:
        self._install_list("requirements.txt")
        return "done"

    def _install_test_packages(self) -> str:
        self._install_list("requirements-test.txt")
        return "done"

    def _install_extra(self, name: str) -> str:
        self._install_list(f"requirements-{name}.txt")
        return "done"

    def _install_list(self, name: str) -> None:
        """Install a list of packages, held to constraints.txt but for torch, which stays what it is."""
        lines = (self.target.root / "constraints.txt").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("torch==")] + [f"torch=={self.torch_version}"]
        constraints = self.target.work / "constraints.txt"
        constraints.write_text("\n".join(kept) + "\n", encoding="utf-8")
        wanted = str(self.target.root / name)
        self.runner.run(self._pip_install("--constraint", str(constraints), "--requirement", wanted), self.environment)

    def _try_torch(self) -> str:
        seen: list[str] = self.runner.run([str(self.target.python), "-c", _TRY_TORCH], self.environment)
        return f"torch {self.torch_version} works, {seen[-1]}"

    def _pip_install(self, *arguments: str) -> list[str]:
        quiet = ("--no-input", "--disable-pip-version-check", "--progress-bar", "off")
        return [str(self.target.python), "-m", "pip", "install", *quiet, *arguments]

    def _probe(self) -> dict[str, Any] | None:
        """Ask the environment's Python for its torch and its packages folder; None when it or its pip is broken."""
        try:
            answer = subprocess.run(
                [str(self.target.python), "-c", _PROBE],
                cwd=self.target.work,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            return json.loads(answer.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def _probed(self) -> dict[str, Any]:
        answer = self._probe()
        if answer is None:
            raise SetupError(
                f"{self.target.python} or its pip is broken.\nNext: run `python launch.py setup --reinstall`."
            )
        return answer


def _pip_environment(target: state.Target) -> dict[str, str]:
    """The user's environment, proxies and pip's configuration included, without what misleads a venv."""
    values = dict(os.environ)
    if not target.no_venv:
        for name in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__"):
            values.pop(name, None)
        values["PIP_USER"] = "0"
    values["PYTHONUNBUFFERED"] = "1"
    values["PYTHONUTF8"] = "1"
    return values


def _pins(path: Path) -> dict[str, str]:
    """name -> version of the lines "name==version"."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==", 1) for line in lines if "==" in line)


def _venv_version(venv: Path) -> tuple[int, int] | None:
    """Python version that a venv was made with, or None when it is none."""
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
        line = next(line for line in text.splitlines() if line.replace(" ", "").startswith("version="))
        major, minor = line.split("=")[1].strip().split(".")[:2]
        return int(major), int(minor)
    except (OSError, StopIteration, ValueError):
        return None


def _remove_half_installed(packages: Path) -> int:
    """Drop what a killed pip left: packages without RECORD, which pip writes last, would count as installed."""
    removed = 0
    for folder in [*packages.glob("*.dist-info"), *packages.glob("~*")]:
        if folder.name.startswith("~") or not (folder / "RECORD").exists():
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _ensurepip_missing() -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if shutil.which("apt-get"):
        step = f"sudo apt-get install python{version}-venv"
    else:
        step = f"install the package of your system that has ensurepip for Python {version}"
    return f"this Python cannot make a virtual environment (ensurepip is missing).\nNext: {step}, then start again."
