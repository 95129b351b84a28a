"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell that runs the tests in the background has children ignore Ctrl-C; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party test data beside the checkout; tests that need it skip without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared test data is not here")
    return folder


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    folder = ROOT / "models" / "lectern-small"
    if not (folder / "model.safetensors").exists():
        pytest.skip("models/lectern-small has no weights yet")
    return folder
