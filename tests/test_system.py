import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import system
from app.system import duration, size_text

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(sys.platform == "win32", reason="the platform does not tell")
def test_peak_counts_memory_that_was_given_back() -> None:
    script = (
        "from app.system import peak_bytes\n"
        "before = peak_bytes()\n"
        "data = bytearray(b'x') * (64 << 20)\n"
        "del data\n"
        "print(before, peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1 << 20 < before < after and after - before >= 60 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the platform cannot")
def test_a_peak_can_be_forgotten() -> None:
    script = (
        "from app.system import forget_peak, peak_bytes\n"
        "data = bytearray(b'x') * (64 << 20)\n"
        "del data\n"
        "before = peak_bytes()\n"
        "forget_peak()\n"
        "print(before - peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 60 << 20


def test_peak_on_cuda_is_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_allocated=lambda: 12345)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert system.peak_bytes() == 12345


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1024, "1 KB"), (1_450_000, "1.4 MB"), (9_960_000, "10 MB"), (41e6, "41 MB"),
     (999_600_000, "1.0 GB"), (80e9, "80 GB"), (5e12, "5.0 TB")],
)  # fmt: skip
def test_size(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_the_shell_exports_does_not_win():
    values = {"GRADIO_ANALYTICS_ENABLED": "True", "HF_HUB_OFFLINE": "0", "GRADIO_SHARE": "True"}
    system.keep_private(environment=values)
    assert values["GRADIO_ANALYTICS_ENABLED"] == values["GRADIO_SHARE"] == "False"
    assert values["HF_HUB_OFFLINE"] == values["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_a_download_opens_the_hub_alone():
    values: dict[str, str] = {}
    system.keep_private(download=True, environment=values)
    assert values.pop("HF_HUB_OFFLINE") == "0"
    closed: dict[str, str] = {}
    system.keep_private(environment=closed)
    closed.pop("HF_HUB_OFFLINE")
    assert values == closed


def test_the_libraries_read_it_so():
    """Against the libraries themselves: a renamed variable would otherwise go unnoticed."""
    script = """
from app import system
system.keep_private()
from gradio import analytics
from huggingface_hub import constants
print(analytics.analytics_enabled(), constants.is_offline_mode(), constants.HF_HUB_DISABLE_TELEMETRY)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "HF_"))}
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.split() == ["False", "True", "True"], answer.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    script = (
        "import resource, sys\n"
        "from app.system import keep_freed_memory\n"
        "keep_freed_memory() if sys.argv[1] == 'kept' else None\n"
        "for _ in range(2): data = bytearray(b'x') * (64 << 20); del data\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(4): data = bytearray(b'x') * (64 << 20); del data\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = {}
    for how in ("kept", "as it is"):
        done = subprocess.run([sys.executable, "-c", script, how], cwd=ROOT, capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["kept"] < faults["as it is"] / 10
