"""launch.py on copies of the checkout whose packages are tiny wheels made here: no network, no real torch."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from app.setup import SetupError, builds, commands, install, lock, runner, state

ROOT = Path(launch.__file__).resolve().parent
PYTHON = getattr(sys, "_base_executable", None) or sys.executable
posix = pytest.mark.skipif(os.name == "nt", reason="signals and inherited locks are POSIX")

FAKE_CLI = """
import json, os, sys
import leaf
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "prefix": sys.prefix, "app": __file__}))
sys.exit(7)
"""
FAKE_TORCH = """
__version__ = "{}"
class cuda:
    is_available = staticmethod(lambda: False)
"""
FAKE_PYTEST = "import os, sys\nprint('fake pytest', os.getcwd(), *sys.argv[1:])\nsys.exit(3)\n"


def wheel(folder: Path, name: str, version: str, source: str) -> None:
    """Write a wheel of one module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


class Checkout:
    """A copy of what launch.py needs, with small lists of packages and pip confined to our wheels."""

    def __init__(self, root: Path) -> None:
        self.root = root / "checkout"
        self.target = state.Target(self.root)
        self.wheels = root / "wheels"
        self.wheels.mkdir(parents=True)
        for name in ("app/__init__.py", "app/system.py", "launch.py"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        shutil.copytree(ROOT / "app/setup", self.root / "app/setup", ignore=shutil.ignore_patterns("__pycache__"))
        (self.root / "app/cli.py").write_text(FAKE_CLI)
        (self.root / "constraints.txt").write_text("torch==2.13.0\nleaf==1.0\n")
        (self.root / "requirements.txt").write_text("torch>=2.11,<2.14\nleaf\n")
        (self.root / "requirements-test.txt").write_text("pytest\n")
        wheel(self.wheels, "torch", "2.13.0+cpu", FAKE_TORCH.format("2.13.0+cpu"))
        wheel(self.wheels, "leaf", "1.0", "")
        wheel(self.wheels, "leaf", "2.0", "")
        wheel(self.wheels, "pytest", "9.9", FAKE_PYTEST)

    def start(self, *arguments: str, python: str = PYTHON, cwd: Path | None = None, **extra: str) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull} | extra
        return subprocess.Popen(
            [python, str(self.root / "launch.py"), *arguments],
            cwd=cwd or self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **options) -> tuple[int, str, str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=180)
        return process.returncode, out, err

    def packages(self) -> Path:
        return next(self.target.venv.rglob("site-packages"))

    def forget_torch(self) -> None:
        """As if the set-up had stopped before torch was installed."""
        for path in self.packages().glob("torch*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.target.stamp.unlink(missing_ok=True)
        self.target.unfinished.touch()


@pytest.fixture
def bare(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("launch"))
    # --torch cpu: a torch that the base Python happens to have must not be taken.
    code, _, err = checkout.run("setup", "--torch", "cpu")
    assert code == 0, err
    assert "[1/5]" in err and "[5/5]" in err and "Lectern is set up" in err and "to download" in err
    return checkout


@pytest.fixture
def ready(made: Checkout) -> Iterator[Checkout]:
    yield made
    made.run("setup")
    assert state.is_ready(made.target), "a test left the shared checkout broken"


class TestBeforeSetup:
    def test_parses_under_python_3_9(self):
        ast.parse((ROOT / "launch.py").read_text(), feature_version=(3, 9))

    def test_needs_only_the_standard_library(self):
        for path in (
            ROOT / "launch.py",
            ROOT / "app/system.py",
            *(ROOT / "app/setup").glob("*.py"),
        ):
            tree = ast.parse(path.read_text())
            # What system.py imports within functions is for the running app.
            for node in tree.body if path.name == "system.py" else ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    assert name.split(".")[0] in {*sys.stdlib_module_names, "app"}, f"{path.name} imports {name}"

    @pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 18), (3, 10, 13), (3, 14, 0)])
    def test_another_python_gets_one_line(self, version):
        complaint = launch.wrong_python(version)
        assert complaint and "\n" not in complaint
        assert "3.11 to 3.13" in complaint and f"{version[0]}.{version[1]}" in complaint

    @pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 4), (3, 13, 1)])
    def test_the_right_python_goes_on(self, version):
        assert launch.wrong_python(version) is None

    def test_help_lists_every_command_and_installs_nothing(self, bare):
        code, out, err = bare.run("--help")
        assert code == 0 and not err
        for name, text in commands.COMMANDS.items():
            assert name in out and text in out
        assert not bare.target.venv.exists() and not bare.target.work.exists()

    def test_help_names_only_commands_that_exist(self):
        from app.cli.flags import parser

        for name in set(commands.COMMANDS) - {"setup", "test"}:
            assert parser().format_help().count(f"\n    {name} "), f"app.cli has no command {name}"

    def test_help_of_a_command_and_doctor_need_no_setup(self, bare):
        (bare.root / "app/cli.py").write_text(FAKE_CLI.replace("import leaf", ""))
        for arguments in (["ask", "--help"], ["doctor"]):
            code, out, _ = bare.run(*arguments)
            assert code == 7 and json.loads(out)["argv"] == arguments
        assert not bare.target.venv.exists()

    def test_the_whole_suite_runs_in_three_processes(self):
        parallel = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", "-m"]
        assert commands.test_arguments([]) == [*parallel, "not bench"]
        assert commands.test_arguments(["--quick", "-x"]) == [*parallel, "not bench and not slow", "-x"]
        assert commands.test_arguments(["tests/store", "--quick"]) == ["-m", "not slow", "tests/store"]
        assert commands.test_arguments(["tests/store", "-k", "key"]) == ["tests/store", "-k", "key"]

    @pytest.mark.parametrize("arguments", [["--torch", "gpu"], ["--torch"], ["setup", "now"], ["setup", "--home", "x"]])
    def test_a_wrong_option_of_the_setup_is_named(self, bare, arguments):
        code, _, err = bare.run(*arguments)
        assert code == 2 and arguments[0].strip("-") in err
        assert not bare.target.venv.exists()


class TestSplit:
    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            ([], commands.Request(None, ())),
            (["--port", "8000"], commands.Request(None, ("--port", "8000"))),
            (["ask", "-d", "x", "setup"], commands.Request("ask", ("ask", "-d", "x", "setup"))),
            (["test", "-k", "name", "--help"], commands.Request("test", ("-k", "name", "--help"))),
            (["--no-venv", "test"], commands.Request("test", (), no_venv=True)),
            (["--torch=cuda", "serve"], commands.Request("serve", ("serve",), torch="cuda")),
            (["setup", "--reinstall", "--torch", "cpu"], commands.Request("setup", (), torch="cpu", reinstall=True)),
            (["help"], commands.Request(None, (), help=True)),
            (["setup", "--help"], commands.Request(None, (), help=True)),
        ],
    )
    def test_split(self, argv, expected):
        assert commands.split(argv) == expected


class TestChecks:
    """Each stops before anything is made."""

    def prepare(self, checkout: Checkout, capsys) -> str:
        assert install.prepare(checkout.target) == 1
        assert not checkout.target.python.exists()
        return capsys.readouterr().err

    def test_disk_space(self, bare, capsys, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**6))
        err = self.prepare(bare, capsys)
        assert "5.0 MB free" in err and "Next:" in err

    def test_write_permission(self, bare, capsys):
        bare.target.work.write_text("a file where the folder should be")
        assert f"cannot write to {bare.root}" in self.prepare(bare, capsys)

    def test_missing_ensurepip_names_the_debian_package(self, bare, capsys, monkeypatch):
        monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
        err = self.prepare(bare, capsys)
        assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in err

    def test_a_foreign_venv_is_left_alone(self, bare, capsys):
        precious = bare.target.venv / "precious"
        precious.parent.mkdir()
        precious.write_text("mine")
        assert "not made by this set-up" in self.prepare(bare, capsys)
        assert precious.read_text() == "mine"


class TestBuilds:
    def test_pip_decides_unless_asked(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "linux")
        both = ["2.13.0+cpu", "2.13.0"]
        assert builds.choose(both, "2.13.0", None) == builds.Build("torch==2.13.0", "cpu")
        assert builds.choose(["2.13.0"], "2.13.0", None) == builds.Build("torch==2.13.0", "cuda")
        assert builds.choose([], "2.13.0", None).flavour == "cuda"
        assert builds.choose(both, "2.13.0", "cuda") == builds.Build("torch===2.13.0", "cuda")
        assert builds.choose(["2.13.0+cu130", "2.13.0+cpu"], "2.13.0", "cpu").requirement == "torch===2.13.0+cpu"
        monkeypatch.setattr(sys, "platform", "darwin")
        assert builds.choose(["2.13.0"], "2.13.0", None).flavour == "cpu"

    def test_a_build_that_is_not_offered(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "linux")
        with pytest.raises(SetupError, match=r"--torch cpu: .*offers: 2\.13\.0"):
            builds.choose(["2.13.0"], "2.13.0", "cpu")

    def test_cuda_wheels_are_announced_loudly(self, monkeypatch):
        monkeypatch.setattr(builds, "nvidia_seen", lambda: False)
        text = builds.announcement(builds.Build("torch==2.13.0", "cuda"), test=False)
        assert text.startswith("***") and "GB to download" in text and "--torch cpu" in text

    def test_cpu_torch_on_a_gpu_computer_is_noted(self, monkeypatch):
        build = builds.Build("torch==2.13.0", "cpu")
        monkeypatch.setattr(builds, "nvidia_seen", lambda: False)
        assert "NOTE" not in builds.announcement(build, test=False)
        monkeypatch.setattr(builds, "nvidia_seen", lambda: True)
        assert "--torch cuda" in builds.announcement(build, test=False)

    @pytest.mark.parametrize(
        ("version", "expected"),
        [("2.10.1", False), ("2.11.0", True), ("2.13.1+cu130", True), ("2.13.0a0+git1", True), ("2.14.0", False)],
    )
    def test_range_of_torch(self, version, expected):
        assert builds.usable(version) is expected

    def test_range_agrees_with_the_lists(self):
        (low, high), text = builds.TORCH_RANGE, (ROOT / "requirements.txt").read_text()
        assert f"torch>={low[0]}.{low[1]},<{high[0]}.{high[1]}\n" in text
        assert builds.usable(install._pins(ROOT / "constraints.txt")["torch"])

    def test_torch_command_uses_the_environments_pip(self, monkeypatch):
        monkeypatch.setenv("TORCH_COMMAND", "pip install 'torch==2.13.0' --pre")
        assert builds.command_from_environment(Path("py")) == ["py", "-m", "pip", "install", "torch==2.13.0", "--pre"]
        monkeypatch.delenv("TORCH_COMMAND")
        assert builds.command_from_environment(Path("py")) is None


class TestLists:
    def test_every_direct_requirement_is_pinned(self):
        pins = {name.lower().replace("_", "-") for name in install._pins(ROOT / "constraints.txt")}
        for name in ("requirements.txt", "requirements-test.txt"):
            for line in (ROOT / name).read_text().splitlines():
                package = line.split("#")[0].split(";")[0].strip().split(">")[0].split("<")[0].lower()
                # triton: each CUDA build of torch demands one version of its own
                assert not package or package in pins | {"triton"}, f"{name}: {package} is not in constraints.txt"

    def test_no_pin_is_a_local_build(self):
        assert "+" not in (ROOT / "constraints.txt").read_text()


class TestStart:
    def test_arguments_folder_and_exit_code(self, made, tmp_path):
        (tmp_path / "app").mkdir()
        (tmp_path / "app/__init__.py").write_text("raise RuntimeError('the app of another project')")
        code, out, err = made.run("ask", "-d", "a b", "Who?", cwd=tmp_path, PYTHONPATH=str(tmp_path))
        told = json.loads(out)
        assert (code, err) == (7, "")
        assert told["argv"] == ["ask", "-d", "a b", "Who?"] and told["cwd"] == str(tmp_path)
        assert Path(told["prefix"]) == made.target.venv and Path(told["app"]).parent.parent == made.root

    def test_an_unchanged_stamp_touches_nothing(self, made):
        before = made.target.log.stat().st_mtime_ns, made.target.stamp.stat().st_mtime_ns
        # pip could not even start: its configuration points nowhere
        code, _, err = made.run("serve", PIP_FIND_LINKS="/nowhere", PIP_PROXY="http://127.0.0.1:9")
        assert (code, err) == (7, "")
        assert (made.target.log.stat().st_mtime_ns, made.target.stamp.stat().st_mtime_ns) == before

    def test_the_lists_the_python_and_the_schema_are_in_the_stamp(self, bare, monkeypatch):
        seen = {state.fingerprint(bare.target), state.fingerprint(bare.target, test=True)}
        assert len(seen) == 2
        for name in state.RUN_FILES:
            with (bare.root / name).open("a") as file:
                file.write("# changed\n")
            seen.add(state.fingerprint(bare.target))
        monkeypatch.setattr(state, "SCHEMA", state.SCHEMA + 1)
        seen.add(state.fingerprint(bare.target))
        monkeypatch.setattr(sys, "version_info", (3, 99, 0))
        seen.add(state.fingerprint(bare.target))
        assert len(seen) == 6

    def test_a_changed_list_is_installed_once(self, ready):
        (ready.root / "constraints.txt").write_text("torch==2.13.0\nleaf==2.0\n")
        assert not state.is_ready(ready.target)
        code, out, err = ready.run("text")
        assert code == 7 and "Lectern is set up" in err and json.loads(out)["argv"] == ["text"]
        assert list(ready.packages().glob("leaf-2.0.dist-info"))
        assert ready.run("text")[2] == ""

    def test_tests_get_their_packages_and_pass_the_exit_code_on(self, ready, tmp_path):
        code, out, err = ready.run("test", "-k", "one", cwd=tmp_path)
        assert code == 3 and "[6/6]" in err
        assert out == f"fake pytest {ready.root} -k one\n"
        code, out, err = ready.run("test")
        assert (code, err) == (3, "")

    def test_no_venv_uses_the_running_python(self, made):
        python = str(made.target.python)
        code, out, err = made.run("--no-venv", "text", python=python)
        assert code == 7 and "this Python" in err
        assert made.run("--no-venv", "text", python=python) == (7, out, "")


class TestTrouble:
    def test_a_failure_shows_its_last_lines_and_the_next_step(self, ready):
        before = (ready.root / "requirements.txt").read_text()
        (ready.root / "requirements.txt").write_text(before + "no-such-package\n")
        code, out, err = ready.run("serve")
        assert code == 1 and not out
        assert "No matching distribution found for no-such-package" in err
        assert str(ready.target.log) in err and "Next:" in err and "Traceback" not in err
        assert "no-such-package" in ready.target.log.read_text()
        assert ready.target.unfinished.exists() and not state.is_ready(ready.target)
        (ready.root / "requirements.txt").write_text(before)
        if state.is_ready(ready.target):  # the stamp of the older, unchanged environment
            assert ready.run("serve")[0] == 7

    def test_torch_command_that_installs_no_torch(self, ready):
        ready.forget_torch()
        code, _, err = ready.run("serve", TORCH_COMMAND="python -c pass")
        assert code == 1 and "TORCH_COMMAND" in err and "left torch out" in err

    @posix
    def test_ctrl_c_stops_and_the_next_start_continues(self, ready):
        ready.forget_torch()
        process, child = start_slowly(ready)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and "continue where it stopped" in err and "Traceback" not in err
        assert not alive(child)
        code, _, err = ready.run("serve")
        assert code == 7 and "did not finish; continuing" in err
        assert not ready.target.unfinished.exists()

    def test_what_a_child_says_after_the_end_is_left_out(self, tmp_path):
        """A child's child can hold the pipe for a while after a stop; the thread that reads it goes on."""
        made = runner.Runner(runner.Console(), tmp_path / "log", 0, None)
        made.note("before")
        made.close()
        made.note("after")
        assert (tmp_path / "log").read_text() == "before\n"

    @posix
    def test_a_child_that_outlives_a_killed_setup_keeps_the_lock(self, ready):
        ready.forget_torch()
        first, child = start_slowly(ready)
        first.kill()
        first.wait()
        second = ready.start("serve")
        try:
            assert "waiting for it" in second.stderr.readline()
            assert second.poll() is None and alive(child)
        finally:
            os.kill(child, signal.SIGKILL)
        second.communicate(timeout=60)
        assert second.returncode == 7

    def test_two_setups_do_not_collide(self, ready):
        ready.target.stamp.unlink()
        told: list[str] = []
        with lock.held(ready.target.work / "lock", told.append):
            process = ready.start("setup")
            line = process.stderr.readline()
            assert f"process {os.getpid()}" in line and process.poll() is None
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "Lectern is set up" in err and not told

    def test_half_installed_packages_are_installed_again(self, ready):
        next(ready.packages().glob("leaf-*.dist-info/RECORD")).unlink()
        (ready.packages() / "leaf.py").unlink()
        (ready.packages() / "~eaf").mkdir()
        ready.target.stamp.unlink()
        ready.target.unfinished.touch()
        code, _, err = ready.run("text")
        assert code == 7 and "2 half-installed packages removed" in err
        assert (ready.packages() / "leaf.py").exists()

    def test_a_broken_venv_is_made_again(self, ready):
        shutil.rmtree(ready.packages() / "pip")
        ready.target.unfinished.touch()
        ready.target.stamp.unlink()
        code, _, err = ready.run("setup", "--torch", "cpu")
        assert code == 0, err
        assert ".venv made" in err


def test_a_torch_of_the_running_python_is_reused(bare, tmp_path):
    """The running Python is itself a venv here, the harder case: .venv does not inherit its packages."""
    outer = tmp_path / "outer"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", outer], check=True)
    packages = next(outer.rglob("site-packages"))
    wheel(tmp_path, "torch", "2.12.1", FAKE_TORCH.format("2.12.1"))
    zipfile.ZipFile(tmp_path / "torch-2.12.1-py3-none-any.whl").extractall(packages)
    python = outer / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code, _, err = bare.run("serve", python=str(python))
    assert code == 7, err
    assert "torch 2.12.1 that this Python has" in err and "kept torch 2.12.1" in err
    assert not list(bare.packages().glob("torch-*"))


def start_slowly(checkout: Checkout) -> tuple[subprocess.Popen, int]:
    """A set-up whose torch takes a minute; returns it and the process id of that command."""
    mark = checkout.root / "slow.pid"
    mark.unlink(missing_ok=True)
    source = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid()) + chr(10)); time.sleep(60)"
    process = checkout.start("serve", TORCH_COMMAND=f'python -c "{source}"')
    deadline = time.monotonic() + 30
    while not (mark.exists() and mark.read_text().endswith("\n")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    return process, int(mark.read_text())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
