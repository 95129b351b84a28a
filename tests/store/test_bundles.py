"""Chats from elsewhere: what they claim is checked field by field, and nothing that they claim stands in for a file."""

import json
import math
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.errors import InputError
from app.records import Document, Evidence, Part, Tail
from app.store import bundle
from app.store.documents import IMPORTED
from app.store.store import Store
from app.store.transfer import Fit, export_chat, from_json, import_chat, to_json
from tests.store.test_store import GROUP, RECIPE, open_store, put, read_document

TOKENS = list(range(20))
SHA256 = "ab" * 32


def fit(store: Store, check: Callable[..., None] = lambda *_: None) -> Fit:
    def blocks(root, token_ids, count, *, whole):
        keys = store.blocks.chain_keys(root, token_ids, GROUP)
        return [(key, token_ids[i * GROUP : (i + 1) * GROUP]) for i, key in enumerate(keys)]

    def texts(parts):
        from app.records import MemoryText, Span

        return [MemoryText(TOKENS, (Span(1, 1, len(TOKENS)),))]

    return Fit(RECIPE, {}, blocks, texts, check, 1000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A chat about Emma with its memory."""
    store = open_store(tmp_path / "from")
    id, _ = read_document(store, "Emma", TOKENS)
    chat = store.create_chat([id], "m", "Who?")
    keys = store.blocks.chain_keys("tail", TOKENS, GROUP)
    put(store, keys, TOKENS)
    store.blocks.flush()
    passage = Evidence("", id, "Emma", "1", 1, 0, 4, "text", 0.5, ((0, 1),))
    tail = Tail(RECIPE, tuple(TOKENS), tuple(keys), (len(TOKENS),), ((id, 0),))
    store.save_turn(chat, "q", "a", {"tokens_read": 3, "ended": "stop"}, [passage], tail)
    path = tmp_path / "chat.lectern"
    counts = export_chat(store, chat, path, RECIPE)
    assert counts == {"documents": 1, "messages": 2, "blocks": 6, "blocks_missing": 0}
    store.close()
    return path


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(tmp_path / "to")
    store.catch_up()
    yield store
    store.close()


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Any], dict[str, bytes]], None]) -> Path:
    """The file with its chat, its document or its entries changed, and a manifest that says so."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    facts = json.loads(entries.pop(bundle.MANIFEST))
    name = next(name for name in entries if name.startswith("documents/") and name.endswith(".json"))
    chat, document = json.loads(entries["chat.json"]), json.loads(entries[name])
    change(chat, document, entries)
    entries |= {"chat.json": json.dumps(chat).encode(), name: json.dumps(document).encode()}
    target = path.with_name("changed.lectern")
    with bundle.writing(target) as out:
        for entry, data in entries.items():
            out.add(entry, data)
        out.finish({"recipe": facts["recipe"], "parts": facts["parts"]})
    return target


def take(store: Store, path: Path) -> str:
    return import_chat(store, path, lambda policy: fit(store))


def test_a_chat_comes_in_whole_and_its_document_is_marked(file: Path, store: Store) -> None:
    chat = take(store, file)
    (info,) = store.documents(RECIPE)
    assert (info.title, info.state, info.notes) == ("Emma", "read", (IMPORTED,))
    assert store.chat(chat).documents == (info.id,)
    message = store.messages(chat)[1]
    assert message.evidence[0].document == info.id and message.stats == {"tokens_read": 3, "ended": "stop"}
    tail = store.tail(chat)
    assert tail.memories == ((info.id, 0),) and store.blocks.known_prefix(tail.keys) == 3
    assert store.collect_garbage() == 0
    assert store.documents(RECIPE)[0].notes == (IMPORTED,) and take(store, file) != chat
    assert len(store.documents(RECIPE)) == 1, "the same document again is the same one"


def test_what_a_file_claims_does_not_stand_in_for_the_document(file: Path, store: Store) -> None:
    def claim(chat, document, entries) -> None:
        document["sha256"] = SHA256
        document["parts"][0]["text"] = "Another text altogether."

    chat = take(store, changed(file, claim))
    real = Document("Real", "text", SHA256, (Part(1, "1", "What the file says."),))
    id = store.add_document(real)
    assert store.parts(id) == list(real.parts) and store.document(id, RECIPE).notes == ()
    assert store.document(id, RECIPE).state == "new" and store.root(id, RECIPE) == RECIPE
    keys = store.blocks.chain_keys(RECIPE, TOKENS, GROUP)
    assert store.blocks.known_prefix(keys) == 0, "no memory that was claimed is found by the tokens of a file"
    assert store.parts(store.chat(chat).documents[0])[0].text == "Another text altogether."


def test_adding_its_file_takes_the_mark_and_the_memory_that_came(file: Path, store: Store) -> None:
    take(store, file)
    (came,) = store.documents(RECIPE)
    id = store.add_document(Document("Emma, the file", "text", SHA256, tuple(store.parts(came.id))))
    info = store.document(id, RECIPE)
    assert (id, info.notes, info.state, store.sha256(id)) == (came.id, (), "new", SHA256)
    assert store.memories(id, RECIPE) is None and store.collect_garbage() == 3
    assert store.add_document(Document("Again", "text", SHA256, ())) == id


def test_what_comes_in_is_no_garbage_before_it_is_named(file: Path, store: Store, monkeypatch) -> None:
    """Another thread collects while the names of blocks are written, but not yet committed."""
    named, collected = store.import_messages, []

    def meanwhile(*values) -> None:
        with ThreadPoolExecutor(1) as other:
            collected.append(other.submit(store.collect_garbage).result())
        named(*values)

    monkeypatch.setattr(store, "import_messages", meanwhile)
    tail = store.tail(take(store, file))
    assert collected == [0] and store.blocks.known_prefix(tail.keys) == 3
    assert store.blocks.known_prefix(store.blocks.chain_keys(RECIPE, TOKENS, GROUP)) == 0  # of a document not proven
    assert store.stats()["blocks"] == 6 and store.collect_garbage() == 0


def test_a_document_that_is_here_serves_with_its_own_memory(file: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "from")
    store.catch_up()
    before = store.stats()["blocks"]
    chat = take(store, file)
    (info,) = store.documents(RECIPE)
    assert info.notes == () and store.chat(chat).documents == (info.id,)
    store.collect_garbage()
    assert store.stats()["blocks"] == before + 3, "the tail alone"
    store.close()


BROKEN: dict[str, Callable[[dict[str, Any], dict[str, Any], dict[str, bytes]], None]] = {
    "weight NaN": lambda c, d, e: c["messages"][1]["evidence"][0].update(weight=math.nan),
    "weight infinite": lambda c, d, e: c["messages"][1]["evidence"][0].update(weight=math.inf),
    "weight text": lambda c, d, e: c["messages"][1]["evidence"][0].update(weight="0.5"),
    "weight 7": lambda c, d, e: c["messages"][1]["evidence"][0].update(weight=7),
    "place backwards": lambda c, d, e: c["messages"][1]["evidence"][0].update(char_start=9, char_end=3),
    "part 0": lambda c, d, e: c["messages"][1]["evidence"][0].update(part=0),
    "region negative": lambda c, d, e: c["messages"][1]["evidence"][0].update(regions=[[0, -1]]),
    "statistics text": lambda c, d, e: c["messages"][1]["stats"].update(tokens_read="many"),
    "statistics NaN": lambda c, d, e: c["messages"][1]["stats"].update(seconds=math.nan),
    "statistics list": lambda c, d, e: c["messages"][1].update(stats=[]),
    "ended unknown": lambda c, d, e: c["messages"][1]["stats"].update(ended="so"),
    "content number": lambda c, d, e: c["messages"][0].update(content=3),
    "content empty": lambda c, d, e: c["messages"][0].update(content=" "),
    "two answers": lambda c, d, e: c["messages"].append(c["messages"][1]),
    "no turns": lambda c, d, e: c["tail"].update(turns=[]),
    "turns beyond": lambda c, d, e: c["tail"].update(turns=[21]),
    "turns more than answers": lambda c, d, e: c["tail"].update(turns=[3, 20]),
    "token beyond": lambda c, d, e: c["tail"].update(token_ids=[*range(19), 1000]),
    "token true": lambda c, d, e: c["tail"].update(token_ids=[*range(19), True]),
    "memory of another": lambda c, d, e: c["tail"].update(memories=[["ffffffffffff", 0]]),
    "tail text": lambda c, d, e: c.update(tail="x"),
    "no parts": lambda c, d, e: d.update(parts=[]),
    "empty parts": lambda c, d, e: d["parts"][0].update(text=""),
    "part twice": lambda c, d, e: d["parts"].append(d["parts"][0]),
    "part true": lambda c, d, e: d["parts"][0].update(index=True),
    "place outside": lambda c, d, e: d["parts"][0].update(places=[[99, "x"]]),
    "box NaN": lambda c, d, e: d["parts"][0].update(boxes=[[0, 1, math.nan, 0, 0, 0, 0]]),
    "kind unknown": lambda c, d, e: d.update(kind="film"),
    "title number": lambda c, d, e: c["info"].update(title=1),
    "block cut": lambda c, d, e: e.update({"chat/0.block": e["chat/0.block"][:-1]}),
    "block row too large": lambda c, d, e: e.update(
        {"chat/0.block": bundle.pack_block(bundle.unpack_block(e["chat/0.block"])[0], b"", [bytes(2 << 20)], "raw")}
    ),
    "codec unknown": lambda c, d, e: e.update(
        {"chat/0.block": bundle.pack_block(bundle.unpack_block(e["chat/0.block"])[0], b"", [b"x"], "zip")}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_no_lectern_writes_is_refused_and_nothing_is_left(file: Path, store: Store, name: str) -> None:
    with pytest.raises(InputError, match="changed.lectern"):
        take(store, changed(file, BROKEN[name]))
    store.blocks.flush()
    assert store.documents(RECIPE) == [] and store.chats() == [] and store.stats()["blocks"] == 0


def test_tensors_are_checked_by_the_model_and_nothing_is_left(file: Path, store: Store) -> None:
    seen: list[int] = []

    def check(start, ids, index, kv) -> None:
        seen.append(len(ids))
        if len(seen) == 5:
            raise ValueError("keys and values that are no finite numbers")

    with pytest.raises(InputError, match="no finite numbers; nothing of it was taken"):
        import_chat(store, file, lambda policy: fit(store, check))
    store.blocks.flush()
    assert store.documents(RECIPE) == [] and store.chats() == [] and store.stats()["blocks"] == 0


def test_a_failure_half_way_leaves_nothing(file: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("half way")

    monkeypatch.setattr(store, "import_messages", fail)
    with pytest.raises(RuntimeError):
        take(store, file)
    store.blocks.flush()
    assert store.documents(RECIPE) == [] and store.chats() == [] and store.stats()["blocks"] == 0


def test_half_characters_and_control_characters_are_replaced(file: Path, store: Store) -> None:
    def break_text(chat, document, entries) -> None:
        chat["info"]["title"] = "Who\x00 \u202eis\n\ud83d?"
        chat["messages"][1]["content"] = "smile \ud83d"
        chat["messages"][1]["stats"]["note"] = "\udfff"
        document["title"] = "Em\x1bma"

    path = changed(file, break_text)
    chat = import_chat(store, path, None)
    assert store.chat(chat).title == "Who   is \ufffd?"
    message = store.messages(chat)[1]
    assert message.content == "smile \ufffd" and message.stats["note"] == "\ufffd"
    assert store.documents(RECIPE)[0].title == "Em ma"
    to_json(store, chat).encode()


@pytest.mark.parametrize("entry", ["chat/0.block", "documents/0.tokens"])
def test_packed_blocks_are_refused_before_they_are_unpacked(file: Path, store: Store, entry: str) -> None:
    path = file.with_name("packed.lectern")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(entry, bytes(50 << 20))
        out.writestr(bundle.MANIFEST, "{}")
    with pytest.raises(InputError, match="is packed"):
        take(store, path)


def test_json_that_grows_in_memory_is_refused(file: Path, store: Store) -> None:
    path = file.with_name("grown.lectern")
    with bundle.writing(path) as out:
        out._entries["chat.json"] = {}  # what a writer of ours would not add
        data = b"[" + b"[]," * 4_000_000 + b"[]]"
        import hashlib

        out._entries["chat.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        out._file.writestr("chat.json", data, zipfile.ZIP_DEFLATED)
        out.finish({"recipe": RECIPE, "parts": {}})
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="holds more than a chat does"):
        take(store, path)


def test_a_json_chat_is_checked_as_closely(file: Path, store: Store) -> None:
    chat = import_chat(store, file, None)
    value = json.loads(to_json(store, chat))
    path = file.with_name("chat.json")
    value["messages"][1]["content"] = "smile \ud83d"
    path.write_text(json.dumps(value))
    assert store.messages(from_json(store, path))[1].content == "smile \ufffd"
    for wrong in ({"weight": math.nan}, {"regions": 3}):
        broken = json.loads(to_json(store, chat))
        broken["messages"][1]["evidence"][0] |= wrong
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match="not a chat exported as JSON"):
            from_json(store, path)
