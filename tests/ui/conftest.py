"""A chat without a model, with a small library."""

from pathlib import Path

import pytest

from tests.fake_chat import FakeDocumentChat


@pytest.fixture
def chat(tmp_path: Path) -> FakeDocumentChat:
    return FakeDocumentChat(tmp_path / "home")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text of three sections; the harbour stands in the second one only."""
    path = tmp_path / "A Quiet Coast.txt"
    filler = "The road went on along the cliffs. " * 170
    path.write_text(f"{filler}\n{filler}The harbour master kept a lantern.\n{filler}", encoding="utf-8")
    return path
