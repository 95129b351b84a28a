"""Opening a chat brings the index; keys and values follow when they are selected, and are never wrong."""

import json
import sqlite3

import pytest

from app.memory.groups import PagesLost
from app.runtime.recover import read_again
from tests.chat.opened import SHORT, finish, open_chat, write

__all__ = ["open_chat"]

CODECS = ("raw", "int8", "int4")
WORDS = 120  # about 90 groups of the tiny recipe


def asked(open_chat, tmp_path, **changes):
    """(chat, document, the answer to a second question of an unbroken chat, a chat that has the first one)."""
    chat = open_chat(**changes)
    document = chat.library.add_document(write(tmp_path, words=WORDS))
    first, twin = (finish(chat.ask("who?", documents=[document.id], generation=SHORT)) for _ in range(2))
    unbroken = finish(chat.ask("and then?", chat=first.chat, generation=SHORT))
    return document, unbroken.answer, twin.chat


def memory_of(chat):
    (memory,) = chat.model.sessions().reader.memories
    return memory


@pytest.mark.parametrize("codec", CODECS)
def test_a_resumed_chat_fetches_what_it_selects_and_answers_the_same(open_chat, tmp_path, codec):
    document, expected, twin = asked(open_chat, tmp_path, codec=codec)
    chat = open_chat(codec=codec)
    list(chat.read(document.id))
    opened = memory_of(chat).pages.held_groups()[0]
    resumed = finish(chat.ask("and then?", chat=twin, generation=SHORT))
    memory = memory_of(chat)
    assert resumed.answer == expected and resumed.stats.tokens_read < 40 and not resumed.stats.note
    assert 0 < opened < memory.pages.held_groups()[0] < memory.groups


@pytest.mark.parametrize("codec", CODECS)
def test_a_text_larger_than_the_room_for_it_gives_the_same_answer(open_chat, tmp_path, codec):
    _, expected, _ = asked(open_chat, tmp_path, codec=codec)
    chat = open_chat("other", codec=codec, hot_groups=30)
    document = chat.library.add_document(write(tmp_path, words=WORDS))
    finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    done = finish(chat.ask("and then?", chat=chat.saved.chats()[0].id, generation=SHORT))
    memory = memory_of(chat)
    assert done.answer == expected
    assert memory.pages.held_groups()[0] <= 30 < memory.groups
    assert all(len(pool.tables) <= 50 for pool in memory.shape.tiers.hot)


BLOCKS = "block IN (SELECT id FROM block WHERE key IN (SELECT value FROM json_each(?)))"
DAMAGE = {
    "zeroed": f"UPDATE block_kv SET data = zeroblob(length(data)) WHERE {BLOCKS}",
    "cut": f"UPDATE block_kv SET data = substr(data, 1, 100) WHERE {BLOCKS}",
    "gone": f"DELETE FROM block_kv WHERE {BLOCKS}",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_rows_damaged_after_opening_are_read_again_in_the_answer(open_chat, tmp_path, damage, codec):
    document, expected, twin = asked(open_chat, tmp_path, codec=codec)
    chat = open_chat(codec=codec)
    list(chat.read(document.id))  # every check that is made at opening has passed
    keys = memory_of(chat).pages.source._keys
    with sqlite3.connect(tmp_path / "home" / "kv.db", timeout=10) as db:
        db.execute(DAMAGE[damage], [json.dumps(keys)])
    resumed = finish(chat.ask("and then?", chat=twin, generation=SHORT))
    assert resumed.answer == expected
    assert "read again: their stored memory was damaged" in resumed.stats.note
    later = finish(chat.ask("and now?", chat=twin, generation=SHORT))
    assert later.stats.tokens_read < 60  # the damage that it finds is as small


def test_what_can_be_neither_fetched_nor_read_again_is_left_out(open_chat, tmp_path, monkeypatch):
    def out_of_memory(*args):
        raise RuntimeError("out of memory")

    document, _, twin = asked(open_chat, tmp_path)
    chat = open_chat()
    list(chat.read(document.id))
    pages = memory_of(chat).pages
    with sqlite3.connect(tmp_path / "home" / "kv.db", timeout=10) as db:
        db.execute(DAMAGE["zeroed"], [json.dumps(pages.source._keys)])
    monkeypatch.setattr("app.runtime.recover._read_groups", out_of_memory)
    done = finish(chat.ask("and then?", chat=twin, generation=SHORT))
    assert done.stats.new_tokens and pages.left_out
    assert f"{len(pages.left_out) * pages.group_tokens:,} tokens are left out" in done.stats.note


def test_what_is_read_again_is_what_was_lost(open_chat, tmp_path):
    document, _, _ = asked(open_chat, tmp_path)
    chat = open_chat()
    list(chat.read(document.id))
    memory, engine = memory_of(chat), chat.model.engine()
    cache = engine.open_chat([memory])
    for lost in ([70], [20, 21, 70]):
        before = [memory.export_group(group) for group in lost]
        read_again(cache, PagesLost(memory.pages, lost), engine._hidden)
        assert [memory.export_group(group)[1] for group in lost] != []
        for group, (index, _) in zip(lost, before, strict=True):
            assert memory.export_group(group)[0] == index
    assert memory.pages.source.read_again == 4
    assert memory.tokens == len(memory.token_ids) == chat.library.document(document.id).tokens


def test_blocks_of_an_open_memory_are_not_evicted(open_chat, tmp_path):
    document, _, _ = asked(open_chat, tmp_path)
    chat = open_chat()
    list(chat.read(document.id))
    chat.store.blocks.disk_budget_bytes = 1
    memory = memory_of(chat)
    chat.store.blocks.enforce_budget(set())
    assert memory.pages.source.fetch([0, 5], range(1)) != [None, None]
    del memory
    chat.model.forget(document.id)
    assert chat.store.blocks.stats()["blocks"] > 0 and chat.store.blocks.enforce_budget(set())
