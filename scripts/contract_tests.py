"""Run the runtime's tests on several versions of transformers: `python scripts/contract_tests.py`. Not part of CI.

Each version gets a virtual environment of its own, thrown away at the end, with transformers and what it needs from the
package index; torch, pytest and the rest are taken from the Python that runs this. Prints a table; the exit code is 1
when something failed.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.eval.report import table  # noqa: E402

VERSIONS = ("5.10.*", "5.17.*", "newest")
TESTS = ("tests/runtime", "tests/kernels")
HEADINGS = ("asked for", "transformers", "passed", "failed", "skipped", "seconds", "result")


def main() -> int:
    args = arguments()
    rows, outputs = [], []
    for version in args.versions:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            row, output = try_version(version, Path(folder), args.pytest or TESTS)
            rows.append([version, *row[:-1], round(time.monotonic() - started), row[-1]])
            outputs.append(output)
            print(table(HEADINGS, rows[-1:]), flush=True)
    for version, output in zip(args.versions, outputs, strict=True):
        if output:
            print(f"\n== {version}\n{output}")
    print(f"\n{table(HEADINGS, rows)}")
    return 0 if all(row[-1] == "ok" for row in rows) else 1


def try_version(version: str, folder: Path, tests: list[str] | tuple[str, ...]) -> tuple[list[object], str]:
    """Make the environment and run the tests in it.

    Returns:
        ([version installed, passed, failed, skipped, result], what was printed when something went wrong).
    """
    wanted = "transformers" if version == "newest" else f"transformers=={version}"
    print(f"Installing {wanted}", flush=True)
    python = make_environment(folder / "venv")
    installed = run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted)
    if installed.returncode:
        return ["", 0, 0, 0, "not installed"], installed.stdout
    borrow_packages(python)
    found = run(python, "-c", "import transformers; print(transformers.__version__)")
    if found.returncode:
        return ["", 0, 0, 0, "not importable"], found.stdout
    report = folder / "report.xml"
    ran = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests)
    failed, counts = ran.returncode != 0, read_report(report)
    return [found.stdout.split()[-1], *counts, "failed" if failed else "ok"], ran.stdout if failed else ""


def make_environment(folder: Path) -> Path:
    """An empty virtual environment; returns its Python."""
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def borrow_packages(python: Path) -> None:
    """Let the environment find, after its own packages, those of the Python that runs this.

    Only now: pip would count them as installed already.
    """
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (Path(own) / "borrowed.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")


def run(*command: object) -> "subprocess.CompletedProcess[str]":
    """Run a command in the checkout; what it prints, errors too, is in `stdout`."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def read_report(path: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) of a JUnit report; zeros when pytest wrote none."""
    if not path.exists():
        return 0, 0, 0
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    tests, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return tests - failures - errors - skipped, failures + errors, skipped


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=lambda text: text.split(","), default=VERSIONS, metavar="V,V",
                        help=f"versions as pip writes them, and `newest` ({','.join(VERSIONS)})")  # fmt: skip
    parser.add_argument("pytest", nargs="*", help=f"tests and options for pytest ({' '.join(TESTS)})")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
