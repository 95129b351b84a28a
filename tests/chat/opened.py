"""DocumentChat over a real store and a tiny random model, for tests that open and close it."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.chat import DocumentChat
from app.memory.config import GenerationConfig
from app.records import Done
from app.settings import Settings
from tests import tiny

SHORT = GenerationConfig(max_new_tokens=6)
Open = Callable[..., DocumentChat]


@pytest.fixture
def open_chat(tmp_path: Path) -> Iterator[Open]:
    """Opens the data folder `home`; called again it closes the one before. Arguments go to `tiny.engine`."""
    opened: list[DocumentChat] = []

    def start(home: str = "home", disk_budget_gb: float = 50, **changes: Any) -> DocumentChat:
        for chat in opened:
            chat.close()
        settings = Settings(home=tmp_path / home, disk_budget_gb=disk_budget_gb)
        engine = tiny.engine(**changes)
        if "hot_groups" not in changes:  # a long text in few steps
            engine.segment_tokens = engine.most_segment_tokens = 16 * engine.shape.attention.group_tokens
        opened.append(DocumentChat.open(settings, engine=engine))
        return opened[-1]

    yield start
    for chat in opened:
        chat.close()


def write(folder: Path, name: str = "book.txt", words: int = 200) -> Path:
    """A text of its own for every name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(" ".join(f"{path.stem}{i} word" for i in range(words)) + "\n", encoding="utf-8")
    return path


def finish(events: Iterable[Any]) -> Done:
    """The end of an answer."""
    *_, done = events
    assert isinstance(done, Done)
    return done
