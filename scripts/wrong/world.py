"""What wrong inputs are tried on: a library with a book and a chat, a small random model, and the files of a user."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.chat import DocumentChat
from app.memory.config import GenerationConfig
from app.records import Done
from app.settings import Settings

BOOK = " ".join(f"word{number} and the harbour." for number in range(60)) + "\n"
RECIPE: dict[str, Any] = {
    "tune": {"base": "model", "tokens": 64, "steps": 1, "attention": "full", "save_steps": 1, "warmup_steps": 0},
    "lora": {"targets": "qk", "rank": 2, "embeddings": False, "norms": False},
    "data": {"files": ["talks.jsonl"], "form": "messages"},
}
TALK = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The harbour master."}]}
QUESTION = {
    "title": "Book",
    "text": BOOK[:600],
    "qas": [{"id": "q1", "question": "What word?", "answers": [{"text": "word1", "answer_start": 0}]}],
}


@dataclass(frozen=True)
class World:
    """Everything lies in `folder`.

    Attributes:
        home: a data folder; `fresh` gives it back as it was.
        chat, document, passage: ids in it.
    """

    folder: Path
    home: Path
    chat: str
    document: str
    passage: str

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def fresh(self) -> Path:
        """The data folder, with whatever the try before did to it undone."""
        old = Path(tempfile.mkdtemp(prefix="old-", dir=self.folder))
        self.home.rename(old / "home")  # a process that is still ending may write there
        shutil.copytree(self.folder / "kept", self.home, dirs_exist_ok=True)
        for path in self.files.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.files / "book.txt").write_text(BOOK, encoding="utf-8")
        return self.home

    def exported(self) -> dict[str, Any]:
        """The chat as JSON."""
        return json.loads((self.folder / "chat.json").read_text(encoding="utf-8"))


def asked(chat: DocumentChat, book: Path) -> Done:
    """Add a book and ask about it."""
    document = chat.library.add_document(book)
    *_, done = chat.ask("Which word?", documents=[document.id], generation=GenerationConfig(max_new_tokens=4))
    assert isinstance(done, Done)
    return done


@contextmanager
def opened(home: Path) -> Iterator[DocumentChat]:
    """The app on a data folder, over the small random model of the tests."""
    from tests import tiny

    with closing(DocumentChat.open(Settings(home=home), engine=tiny.engine())) as chat:
        yield chat


def make(folder: Path) -> World:
    """Make all of it."""
    from transformers import LlamaConfig

    from tests import checkpoints

    checkpoints.save(folder / "model", LlamaConfig(**checkpoints.SIZES))
    checkpoints.adapter(folder / "adapter", folder / "model")
    (folder / "files").mkdir()
    book = folder / "book.txt"
    book.write_text(BOOK, encoding="utf-8")
    with opened(folder / "kept") as chat:
        done = asked(chat, book)
        (folder / "chat.json").write_text(chat.transfers.export_json(done.chat), encoding="utf-8")
        document = chat.library.documents()[0].id
    shutil.copytree(folder / "kept", folder / "home")
    passage = done.evidence[0].id if done.evidence else "e1-1"
    return World(folder, folder / "home", done.chat, document, passage)
