"""What every released version stored opens in this one, whole."""

import sqlite3
from pathlib import Path

import pytest

from app.records import Evidence
from app.store.migrations import BLOCKS, LIBRARY
from app.store.store import Store
from scripts.store_fixture import GROUP, RECIPE, TEXT, TOKENS

DATA = Path(__file__).resolve().parent.parent / "data"
RELEASES = sorted(path.stem.removeprefix("store-") for path in DATA.glob("store-*.sql"))


def restore(version: str, home: Path) -> None:
    """The data folder as the release left it."""
    text = (DATA / f"store-{version}.sql").read_text(encoding="utf-8")
    library, _, blocks = text.partition("-- kv.db\n")
    home.mkdir()
    for name, statements in (("library.db", library), ("kv.db", blocks)):
        conn = sqlite3.connect(home / name)
        conn.executescript(statements)
        conn.close()


def test_the_first_release_is_among_them() -> None:
    assert "0.1.0" in RELEASES


@pytest.mark.parametrize("version", RELEASES)
def test_a_store_of_a_release_opens(version: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    restore(version, home)
    store = Store(home, disk_budget_bytes=1 << 30)
    assert store.notes == [] and store.verify().damaged == []
    for name, schema in (("library.db", LIBRARY), ("kv.db", BLOCKS)):
        conn = sqlite3.connect(home / name)
        applied = {row[0] for row in conn.execute("SELECT name FROM _sqlite_migrations")}
        assert applied == schema.migration_names()
        conn.close()
    (document,) = store.documents(RECIPE)
    assert (document.title, document.state, document.tokens, document.parts) == ("Emma", "read", 28, 2)
    assert document.notes and document.skipped[0].reason == "binary"
    assert store.part(document.id, 1).text == TEXT and store.part(document.id, 2).first_line == 0
    assert store.search_parts("handsome clever")[0][:2] == (document.id, 1)
    (chat,) = store.chats("young lady")
    assert chat.policy == ""
    assert (chat.title, chat.documents, chat.messages, chat.parent) == ("Who is Emma?", (document.id,), 4, None)
    messages = store.messages(chat.id)
    assert [m.content for m in messages] == ["Who is Emma?", "A young lady.", "Is she rich?", "She is."]
    assert isinstance(messages[1].evidence[0], Evidence) and messages[1].evidence[0].regions == ((0, 1),)
    assert store.memories(document.id, RECIPE)[0].token_ids == TOKENS
    keys = store.manifest(document.id, RECIPE, 0)
    groups = [TOKENS[i : i + GROUP] for i in range(0, len(TOKENS), GROUP)]
    assert keys == store.blocks.chain_keys(RECIPE, TOKENS, GROUP)
    assert [kv for _, kv in store.blocks.get_many(keys, groups)] == [
        [bytes([n]) * 40, bytes([n]) * 7] for n in range(4)
    ]
    tail = store.tail(chat.id)
    assert tail is not None and tail.turns == (4, 10) and store.blocks.known_prefix(tail.keys) == 2
    (run,) = store.passkey_runs()
    assert run["cells"] == [{"tokens": 2048, "depth": 0.5, "right": 3, "trials": 4}]
    everyday_use(store, chat.id, document.id)
    store.close()


def everyday_use(store: Store, chat: str, document: str) -> None:
    """What is new since then works on what is old."""
    fork = store.fork(chat, 1)
    assert store.chat(fork).parent == chat and len(store.messages(fork)) == 2
    store.pin(document)
    store.keep_recipe(RECIPE, {"policy": "keep-all"})
    assert store.pinned() == {document} and store.kept()[0].policy == "keep-all"
    store.save_turn(chat, "And Harriet?", "Her friend.", {}, [], None, after=1)
    store.collect_garbage()
    assert [m.content for m in store.messages(chat)][2:] == ["And Harriet?", "Her friend."]
    assert store.search_parts("comfortable") and store.verify().damaged == []
    store.delete_document(document)
    store.delete_chat(chat)
    assert store.documents(RECIPE) == [] and store.search_parts("comfortable") == []
