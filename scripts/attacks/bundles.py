"""A library that is gone, and bundles that claim what is not so, each on a store of its own.

Run as a program it tries one of them on the checkout that PYTHONPATH names, and prints what was reached as JSON.
"""

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHA256 = "cd" * 32
STORE_BYTES = 1 << 30
Change = Callable[[dict[str, Any]], None]


def opened(folder: Path) -> Any:
    """A store at a folder."""
    from app.store.store import Store

    return Store(folder, disk_budget_bytes=STORE_BYTES)


def changed(folder: Path, change: Change) -> Path:
    """A chat about a document as it is exported, with entries changed and a manifest that fits them."""
    from app.records import Document, Evidence, Part
    from app.store import bundle, transfer

    store = opened(folder / "from")
    id = store.add_document(Document("Book", "text", "ab" * 32, (Part(1, "1", "The text of the file."),)))
    chat = store.create_chat([id], "m", "A chat")
    store.save_turn(chat, "q", "a", {}, [Evidence("", id, "Book", "1", 1, 0, 3, "The", 0.5)], None)
    transfer.export_chat(store, chat, folder / "chat.lectern", "r")
    store.close()
    with zipfile.ZipFile(folder / "chat.lectern") as file:
        entries = {name: json.loads(file.read(name)) for name in file.namelist() if name != bundle.MANIFEST}
    change(entries)
    with bundle.writing(folder / "changed.lectern") as out:
        for name, value in entries.items():
            out.add(name, json.dumps(value).encode())
        out.finish({"recipe": "r", "parts": {}})
    return folder / "changed.lectern"


def lost(folder: Path) -> str:
    """A start without library.db, beside a copy that is due to be made again."""
    from app.errors import LecternError
    from app.records import Document, Part

    home = folder / "home"
    for _ in range(2):  # the second opening copies what the first stored
        store = opened(home)
        store.add_document(Document("Book", "text", "ab" * 32, (Part(1, "1", "The text of the file."),)))
        store.finish()
        store.close()
    for path in home.glob("library.db*"):
        path.unlink()
    copy = home / "library.backup.db"
    before = copy.read_bytes()
    os.utime(copy, (0, 0))
    try:
        store = opened(home)
        store.finish()
        store.close()
    except LecternError:
        return "" if copy.read_bytes() == before else "the copy was replaced"
    return "it opened empty" + (" and replaced the copy" if copy.read_bytes() != before else "")


def claimed(folder: Path) -> str:
    """Another text under the SHA-256 of a file that is added afterwards."""
    from app.records import Document, Part
    from app.store import transfer

    def change(entries: dict[str, Any]) -> None:
        for name in [name for name in entries if name.startswith("documents/")]:
            value = entries.pop(name)
            value["sha256"], value["parts"][0]["text"] = SHA256, "A claimed text."
            entries[f"documents/{SHA256[:12]}.json"] = value

    path, store = changed(folder, change), opened(folder / "to")
    transfer.import_chat(store, path, None)
    id = store.add_document(Document("Real", "text", SHA256, (Part(1, "1", "What the file says."),)))
    text = store.parts(id)[0].text
    store.close()
    return "" if text == "What the file says." else f"the file reads as {text!r}"


def no_number(folder: Path) -> str:
    """A weight that is no number."""
    from app.errors import LecternError
    from app.store import transfer

    def change(entries: dict[str, Any]) -> None:
        entries["chat.json"]["messages"][1]["evidence"][0]["weight"] = float("nan")

    path, store = changed(folder, change), opened(folder / "to")
    try:
        transfer.import_chat(store, path, None)
    except LecternError:
        return "something was taken" if store.documents("r") or store.chats() else ""
    finally:
        store.close()
    return "a weight that is no number was taken"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir()
    print(json.dumps({"lost": lost, "claimed": claimed, "no_number": no_number}[sys.argv[2]](place)))
