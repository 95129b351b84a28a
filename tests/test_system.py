import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from app import system

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
