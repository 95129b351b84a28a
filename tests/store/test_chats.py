"""The chat half of the library."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import NotFoundError
from app.records import Evidence, Tail
from app.store.store import Store

EVIDENCE = Evidence("", "d0c", "Emma", "12", 3, 10, 25, "a fine morning", 0.5, ((0, 7), (1, 2)))
TAIL = Tail("aa" * 32, (1, 2, 70000), ("k1", "k2"), (2, 3), (("d0c", 0), ("d0c", 1)))


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path, disk_budget_bytes=1 << 30)
    yield store
    store.close()


def test_a_turn_comes_back_with_its_evidence_and_tail(store: Store) -> None:
    chat = store.create_chat(["d0c"], "lectern-small")
    assert store.tail(chat) is None and store.messages(chat) == []
    evidence = [EVIDENCE, replace(EVIDENCE, label="13", regions=())]
    asked, answered = store.save_turn(chat, "Who?", "Emma.", {"tokens_read": 9}, evidence, TAIL)
    assert (asked.role, asked.content, asked.evidence) == ("user", "Who?", ())
    assert (answered.role, answered.content, answered.stats) == ("assistant", "Emma.", {"tokens_read": 9})
    assert [item.id for item in answered.evidence] == [f"e{answered.id}-1", f"e{answered.id}-2"]
    assert store.messages(chat) == [asked, answered]
    assert store.evidence(f"e{answered.id}-2") == (answered.evidence[1], chat, answered.id)
    assert replace(answered.evidence[0], id="") == EVIDENCE
    assert store.tail(chat) == TAIL


def test_unknown_ids_are_named(store: Store) -> None:
    for id in ("e1-1", "e1", "x", "", "e9999999999999999999999-1", "e١-1", "\udcff"):
        with pytest.raises(NotFoundError):
            store.evidence(id)
    for call in (store.chat, store.messages, store.tail, store.delete_chat):
        with pytest.raises(NotFoundError, match="none"):
            call("none")
    with pytest.raises(NotFoundError, match="none"):
        store.save_turn("none", "q", "a", {}, [], None)
    with pytest.raises(NotFoundError):
        store.rename_chat("none", "x")
    with pytest.raises(NotFoundError):
        store.set_chat_documents("none", [])


def test_a_turn_is_kept_whole_or_not_at_all(store: Store) -> None:
    chat = store.create_chat([], "m")
    store.save_turn(chat, "one", "1", {}, [], TAIL)
    with pytest.raises(TypeError):
        store.save_turn(chat, "two", "2", {}, [replace(EVIDENCE, regions=(object(),))], None)  # type: ignore[arg-type]
    assert [m.content for m in store.messages(chat)] == ["one", "1"]
    assert store.tail(chat) == TAIL


def test_the_last_turn_can_be_dropped_until_none_is_left(store: Store) -> None:
    chat = store.create_chat([], "m")
    store.save_turn(chat, "one", "1", {}, [], TAIL)
    _, answered = store.save_turn(chat, "two", "2", {}, [EVIDENCE], replace(TAIL, keys=("k1", "k2", "k3")))
    assert store.drop_last_turn(chat, TAIL) == "two"
    assert [m.content for m in store.messages(chat)] == ["one", "1"] and store.tail(chat) == TAIL
    with pytest.raises(NotFoundError):
        store.evidence(f"e{answered.id}-1")
    assert store.drop_last_turn(chat, None) == "one"
    assert store.tail(chat) is None
    with pytest.raises(NotFoundError, match="no question"):
        store.drop_last_turn(chat, None)
    assert store.save_turn(chat, "three", "3", {}, [], None)[1].id > answered.id


def test_chats_are_listed_last_used_first(store: Store) -> None:
    first, second = (store.create_chat([], "m", title) for title in ("First", "Second"))
    assert [c.id for c in store.chats()] == [second, first]
    store.save_turn(first, "q", "a", {}, [], None)
    assert [(c.id, c.messages) for c in store.chats()] == [(first, 2), (second, 0)]


def test_chats_are_found_by_title_question_and_answer(store: Store) -> None:
    first = store.create_chat([], "m", "Tax law")
    second = store.create_chat([], "m")
    store.save_turn(second, "Who is Emma?", "A young lady.", {}, [], None)
    assert [c.id for c in store.chats("tax")] == [first]
    assert [c.id for c in store.chats("emma")] == [second]
    assert [c.id for c in store.chats("lady")] == [second]
    assert len(store.chats("")) == len(store.chats(" ")) == 2
    assert store.chats("!?") == [] and store.chats("absent") == []
    store.rename_chat(second, "Novel")
    assert [c.id for c in store.chats("nov")] == [second]
    store.delete_chat(second)
    assert store.chats("emma") == [] and store.chats("novel") == []


def test_attached_documents_keep_their_order(store: Store) -> None:
    chat = store.create_chat(["b", "a", "b"], "m")
    assert store.chat(chat).documents == ("b", "a")
    store.set_chat_documents(chat, ["c", "a"])
    assert store.chat(chat[:8]).documents == ("c", "a")
    store.set_chat_documents(chat, [])
    assert store.chat(chat).documents == ()


def test_a_deleted_chat_is_gone_with_messages_evidence_and_tail(store: Store) -> None:
    chat = store.create_chat(["d0c"], "m")
    _, answered = store.save_turn(chat, "q", "a", {}, [EVIDENCE], TAIL)
    store.delete_chat(chat)
    assert store.chats() == [] and store.stats()["messages"] == 0
    with pytest.raises(NotFoundError):
        store.evidence(answered.evidence[0].id)


def test_text_that_sqlite_cannot_hold(store: Store) -> None:
    chat = store.create_chat([], "m", "t\udcff")
    asked, answered = store.save_turn(chat, "q\udc80", "a\0b", {}, [replace(EVIDENCE, label="\udcff")], None)
    assert store.chat(chat).title == "t?" and asked.content == "q?"
    assert [m.content for m in store.messages(chat)] == ["q?", "a\0b"]
