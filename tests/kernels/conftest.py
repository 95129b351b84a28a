"""Kernels run compiled where there is a GPU, else in Triton's interpreter on the CPU."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # counts before triton is first imported

from app.kernels.backend import VARIABLE, backend


@pytest.fixture
def device() -> str:
    """Where kernels are tested."""
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, or of the largest whole number."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def kernels(device: str, poisoned: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device, with public functions that run their kernels there."""
    monkeypatch.setenv(VARIABLE, "triton")
    backend.cache_clear()
    assert backend(device).kind == "triton"
    yield device
    backend.cache_clear()
