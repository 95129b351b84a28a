"""The kernels compile for the GPUs that they are made for, and fit their shared memory. No GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_BYTES = {"sm_80": 163 << 10, "sm_90": 227 << 10}  # of one block, at most


@pytest.mark.slow
@pytest.mark.parametrize("module, count", [("compiled", 12), ("compiled_decode", 18)])
def test_every_kernel_compiles_large_ones_for_both_gpus(module: str, count: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-m", f"tests.kernels.{module}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    made = json.loads(answer.stdout.splitlines()[-1])
    assert len(made) == count
    for name, size in made.items():
        assert size <= SHARED_BYTES[name.split()[0]], name
