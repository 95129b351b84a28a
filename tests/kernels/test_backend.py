"""Which code runs is decided by the device, by what is installed and by LECTERN_KERNELS, and said."""

import importlib.util
import logging
from collections.abc import Iterator

import pytest
import torch

from app.errors import ConfigError
from app.kernels import backend as module
from app.kernels.backend import backend, backend_name, use_triton


@pytest.fixture(autouse=True)
def undecided(monkeypatch) -> Iterator[None]:
    monkeypatch.delenv(module.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend.cache_clear()
    yield
    backend.cache_clear()


@pytest.fixture
def gpu(monkeypatch) -> None:
    """As if there were one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.fixture
def no_triton(monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))


def test_a_cpu_runs_the_reference():
    assert not use_triton(torch.zeros(1)) and backend_name("cpu") == "PyTorch reference"


def test_a_gpu_runs_triton_and_the_variable_can_forbid_it(gpu, monkeypatch):
    pytest.importorskip("triton")
    assert backend("cuda").kind == "triton" and backend_name().startswith("Triton 3.")
    assert backend("cpu").kind == "reference"
    backend.cache_clear()
    monkeypatch.setenv(module.VARIABLE, "reference")
    assert backend("cuda").kind == "reference"


def test_what_is_missing_is_said_once(gpu, no_triton, caplog):
    with caplog.at_level(logging.WARNING):
        assert backend("cuda").kind == backend("cuda").kind == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "attention runs the PyTorch reference, which is slower: triton is not installed"
    ]


def test_an_old_gpu_runs_the_reference(gpu, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert backend("cuda").kind == "reference" and "7.5" in backend("cuda").why


def test_the_interpreter_serves_the_cpu_when_asked_for(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not use_triton(torch.zeros(1))
    backend.cache_clear()
    monkeypatch.setenv(module.VARIABLE, "triton")
    assert use_triton(torch.zeros(1)) and use_triton(torch.zeros(1).half())
    assert not use_triton(torch.zeros(1).double()) and not use_triton(torch.zeros(1).bfloat16())


@pytest.mark.parametrize("value, complaint", [("fast", "choose one of auto, reference, triton"), ("triton", "CUDA")])
def test_what_cannot_be_is_refused(value, complaint, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this computer has what is asked for")
    monkeypatch.setenv(module.VARIABLE, value)
    with pytest.raises(ConfigError, match=f"LECTERN_KERNELS={value}.*{complaint}"):
        backend("cpu")
