"""A chat without a model, with a small library."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.api.reading import BackgroundReading
from app.ui.uploads import FOLDER, Uploads
from tests.fake_chat import FakeDocumentChat


@pytest.fixture
def chat(tmp_path: Path) -> FakeDocumentChat:
    return FakeDocumentChat(tmp_path / "home")


@pytest.fixture
def reading(chat: FakeDocumentChat) -> Iterator[BackgroundReading]:
    """A queue that is paused: its documents wait."""
    made = BackgroundReading(chat)
    made.pause()
    yield made
    made.close()


@pytest.fixture
def uploads(chat: FakeDocumentChat) -> Uploads:
    return Uploads(chat.settings.folder / FOLDER, set())


@pytest.fixture
def send(uploads: Uploads) -> Callable[[Path], str]:
    """Upload a file as a browser does; returns the path that the page then names."""

    def sent(file: Path) -> str:
        folder = uploads.folder / f"of{len(uploads.received)}-{file.stem}"
        folder.mkdir(parents=True)
        path = str(shutil.copy(file, folder))
        uploads.received.add(path)
        return path

    return sent


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text of three sections; the harbour stands in the second one only."""
    path = tmp_path / "A Quiet Coast.txt"
    filler = "The road went on along the cliffs. " * 170
    path.write_text(f"{filler}\n{filler}The harbour master kept a lantern.\n{filler}", encoding="utf-8")
    return path
