"""What is read and what is reused in each case that a store has to get right: a table, one JSON line and one file.

    python benchmarks/reuse.py

Every case says what it expects; the exit code is 1 when one reads more. A block holds `group_tokens`, so a reading
begins at most that many tokens before the first change, and a question may cost TURN_TOKENS of its own.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.chat import DocumentChat
from app.eval import report
from app.memory.config import GenerationConfig
from app.records import Done, Reading

if TYPE_CHECKING:
    from app.runtime.engine import Engine

SHORT = GenerationConfig(max_new_tokens=4)
TURN_TOKENS = 128
BOOK = Path(__file__).resolve().parent.parent / "tests" / "data" / "book.txt"


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        read, reused: tokens of documents and of the chat run through the model, and not run.
        most: tokens that may be read.
    """

    case: str
    read: int
    reused: int
    most: int

    @property
    def right(self) -> bool:
        return self.read <= self.most


class Cases:
    """Runs the cases in one data folder. `open_chat(variant)` opens it with the model, "model" or "recipe" changed."""

    def __init__(self, open_chat: Callable[[str], DocumentChat], folder: Path, text: str) -> None:
        self.open, self.folder, self.text = open_chat, folder, text
        self.chat = open_chat("")
        self.rows: list[Row] = []

    def run(self) -> list[Row]:
        """Every case, in an order in which each builds on the one before."""
        self.one_book()
        self.branches()
        self.repository()
        self.other_recipes()
        return self.rows

    @property
    def slack(self) -> int:
        """Tokens by which a reading may begin before the first change."""
        return self.chat.model.engine().shape.attention.group_tokens

    def one_book(self) -> None:
        """The same text again, under other names, changed at its end and in its middle."""
        book = self._write("book.txt", self.text)
        total = self._read("a book, the first time", book, None)
        self.first = self._ask("a first question about it", TURN_TOKENS, documents=[book.stem])
        self._ask("a second question", TURN_TOKENS, chat=self.first)
        self._ask("a second chat about the same book", TURN_TOKENS, documents=[book.stem])
        self.chat = self.open("")
        self._ask("the chat after a restart", TURN_TOKENS, chat=self.first)
        self._read("the same file under another name", self._write("renamed.txt", self.text), 0)
        self._read("the same text in another file", self._write("marked.txt", "\ufeff" + self.text), 0)
        half = self.text.rfind("\n", 0, len(self.text) // 2)
        self._read("a book with a longer end", self._write("longer.txt", self.text + "\nThe end.\n"), 16 + self.slack)
        middle = self.text[:half] + "\nA new line.\n" + self.text[half:]
        self._read("a book changed in its middle", self._write("middle.txt", middle), total * 6 // 10)

    def branches(self) -> None:
        """Forks and edits of a chat over the book."""
        for name, turn in (("a fork of the whole chat", None), ("a fork at the first turn", 1), ("from just read", 0)):
            self._ask(f"a question in {name}", TURN_TOKENS, chat=self.chat.saved.fork(self.first, turn))
        events = self.chat.edit(self.first, 1, "What is it?", generation=SHORT)
        self._add("the first question edited", events, TURN_TOKENS)
        parent = self.chat.saved.fork(self.first)
        child = self.chat.saved.fork(parent)
        self.chat.saved.delete_chat(parent)
        self.chat.store.collect_garbage()
        self._ask("a fork whose parent is deleted", TURN_TOKENS, chat=child)

    def repository(self) -> None:
        """Codebases: one memory per folder; a change costs its folder from there on."""
        quarter = len(self.text) // 4
        files = {
            "README.md": "# A tool\n",
            "core/first.py": _comment(self.text[:quarter]),
            "core/last.py": _comment(self.text[quarter : 2 * quarter]),
            "tests/test_all.py": _comment(self.text[2 * quarter :]),
        }
        root = self.folder / "v1" / "project"
        total = self._read("a repository, the first time", _files(root, files), None)
        self._read("the same repository elsewhere", _files(self.folder / "v2" / "project", files), 0)
        changed = files | {"core/last.py": files["core/last.py"] + "\nprint()\n"}
        self._read(
            "a changed line at the end of a file", _files(self.folder / "v3" / "project", changed), 32 + self.slack
        )
        changed = files | {"core/last.py": "import re\n" + files["core/last.py"]}
        most = total * 4 // 10  # a quarter of the text, and what code adds
        self._read("a changed line at the start of a file", _files(self.folder / "v4" / "project", changed), most)
        added = files | {"docs/new.md": "A new page.\n"}
        self._read("a new folder", _files(self.folder / "v5" / "project", added), 64)
        gone = {name: text for name, text in files.items() if not name.startswith("tests")}
        self._read("a folder deleted", _files(self.folder / "v6" / "project", gone), 0)

    def other_recipes(self) -> None:
        """What another model or recipe made serves nothing else, and is still there afterwards."""
        total = self.chat.library.document("book").tokens
        for variant, name in (("recipe", "another recipe"), ("model", "another model")):
            self.chat = self.open(variant)
            self._read(f"the book with {name}", self.folder / "book.txt", None)
            if self.rows[-1].read < total:
                raise AssertionError(f"{name} used {total - self.rows[-1].read} tokens that are not its own")
        self.chat = self.open("")
        self._read("the book with the first model again", self.folder / "book.txt", 0)

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def _read(self, case: str, path: Path, most: int | None) -> int:
        """Add and read; returns the tokens of the document. `most` None: all may be read."""
        info = self.chat.library.add_document(path)
        *_, last = self.chat.read(info.id)
        total = last.tokens_total
        self.rows.append(Row(case, total - last.reused, last.reused, total if most is None else most))
        return total

    def _ask(self, case: str, most: int, **about: Any) -> str:
        return self._add(case, self.chat.ask("Who is it?", generation=SHORT, **about), most)

    def _add(self, case: str, events: Iterable[Any], most: int) -> str:
        *_, done = (event for event in events if not isinstance(event, Reading))
        assert isinstance(done, Done)
        self.rows.append(Row(case, done.stats.tokens_read, done.stats.tokens_reused, most))
        return done.chat


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def _files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def main() -> int:
    """Run the cases on a checkpoint."""
    from app import system
    from app.settings import SMALL_MODEL, Settings
    from benchmarks import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SMALL_MODEL), help="checkpoint folder (the small model that ships)")
    parser.add_argument("--kilobytes", type=int, default=100, help="of text in the book (100)")
    parser.add_argument("--output", type=Path, default=machine.ROOT / "benchmarks" / "results" / "reuse.json")
    args = parser.parse_args()
    system.keep_private()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        engines: dict[str, Engine] = {}
        opened: list[DocumentChat] = []

        def open_chat(variant: str) -> DocumentChat:
            for chat in opened:
                chat.close()
            settings = Settings(
                home=root / "home", model=args.model, policy="streaming" if variant == "recipe" else "keep-all"
            )
            if variant not in engines:
                engines[variant] = _engine(settings, root / "model" if variant == "model" else None)
            opened.append(DocumentChat.open(settings, engine=engines[variant]))
            return opened[-1]

        text = BOOK.read_text(encoding="utf-8")[: args.kilobytes * 1000]
        rows = Cases(open_chat, root, text).run()
        opened[-1].close()
    table = report.table(["case", "read", "reused", "may read"], [[r.case, r.read, r.reused, r.most] for r in rows])
    print(table)
    right = all(row.right for row in rows)
    values = {"benchmark": "reuse", "right": right, "cases": [asdict(row) for row in rows], **machine.describe()}
    args.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"right": right, "cases": len(rows)}))
    return 0 if right else 1


def _engine(settings: Any, other: Path | None) -> "Engine":
    """The engine, or one of another model: the same with one weight changed."""
    from dataclasses import replace

    from app.runtime.load import load_engine

    if other is None:
        return load_engine(settings)
    from safetensors.torch import load_file, save_file

    shutil.copytree(settings.model, other)
    (file,) = other.glob("*.safetensors")
    weights = load_file(file)
    weights["model.norm.weight"][0] += 0.01
    save_file(weights, file, metadata={"format": "pt"})
    return load_engine(replace(settings, model=str(other)))


if __name__ == "__main__":
    sys.exit(main())
