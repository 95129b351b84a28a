"""The chat half of the library."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import NotFoundError
from app.records import AnswerSettings, Evidence, Tail, Versions
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


def test_a_turn_can_take_the_place_of_earlier_ones(store: Store) -> None:
    chat = store.create_chat([], "m")
    store.save_turn(chat, "one", "1", {}, [], TAIL)
    _, answered = store.save_turn(chat, "two", "2", {}, [EVIDENCE], replace(TAIL, keys=("k1", "k2", "k3")))
    store.save_turn(chat, "two!", "2!", {}, [], TAIL, after=1)
    assert [m.content for m in store.messages(chat)] == ["one", "1", "two!", "2!"] and store.tail(chat) == TAIL
    assert store.evidence(f"e{answered.id}-1")[1:] == (chat, answered.id)  # of a version that is not shown
    _, again = store.save_turn(chat, "three", "3", {}, [], None, after=0)
    assert [m.content for m in store.messages(chat)] == ["three", "3"] and store.tail(chat) is None
    assert again.id > answered.id and store.chats("two") == []
    assert store.chat(chat).messages == 2


def turns(store: Store) -> str:
    """A chat of three turns with 10, 20 and 30 tokens on blocks of 8."""
    chat = store.create_chat(["d0c"], "m", "Emma")
    keys = tuple(f"k{n}" for n in range(4))
    for number, name in enumerate(keys):
        store.blocks.put(name, list(range(8 * number, min(30, 8 * number + 8))), b"", [], "raw")
    for n in (1, 2, 3):
        tail = Tail(
            "aa", tuple(range(10 * n)), keys[: -(-10 * n // 8)], tuple(range(10, 10 * n + 1, 10)), (("d0c", 0),)
        )
        store.save_turn(chat, f"q{n}", f"a{n}", {"n": n}, [EVIDENCE], tail)
    store.blocks.flush()
    return chat


def test_versions_stay_and_can_be_shown_again(store: Store) -> None:
    chat = turns(store)
    questions = [m.id for m in store.messages(chat) if m.role == "user"]
    whole = store.tail(chat)
    assert whole is not None and store.versions(chat) == {}
    asked, answered = store.save_turn(chat, "q2!", "b2", {"n": 9}, [EVIDENCE], replace(whole, turns=(10, 18)), after=1)
    edited = store.tail(chat)
    assert store.versions(chat) == {answered.id: Versions((questions[1], asked.id), 2)}
    store.show_version(chat, questions[1])
    assert [m.content for m in store.messages(chat)] == ["q1", "a1", "q2", "a2", "q3", "a3"]
    (found,) = store.versions(chat).values()
    assert found.number == 1 and store.chats("b2") == [] and len(store.chats("a3")) == 1
    held = store.tail(chat)
    assert held is not None and held.turns == (10,) and held.keys == ("k0", "k1")  # what both versions share
    store.show_version(chat, asked.id)
    assert store.tail(chat) == edited and [m.content for m in store.messages(chat)][2:] == ["q2!", "b2"]
    again, _ = store.save_turn(chat, "q2!", "c2", {}, [], None, after=1)
    store.show_version(chat, questions[1])
    store.show_version(chat, again.id)
    assert [v.number for v in store.versions(chat).values()] == [3] and store.messages(chat)[-1].content == "c2"
    for wrong in (questions[1] + 1, 10**6):
        with pytest.raises(NotFoundError, match=f"version {wrong}"):
            store.show_version(chat, wrong)


def test_a_fork_copies_the_versions_that_are_shown(store: Store) -> None:
    chat = turns(store)
    first = store.messages(chat)[0].id
    store.save_turn(chat, "other", "b1", {}, [], None, after=0)
    store.show_version(chat, first)
    twin = store.fork(chat, 2)
    assert [m.content for m in store.messages(twin)] == ["q1", "a1", "q2", "a2"] and store.versions(twin) == {}
    last, _ = store.save_turn(twin, "q2?", "b2", {}, [], None, after=1)
    assert [v.turns[1] for v in store.versions(twin).values()] == [last.id]


def test_a_fork_takes_over_turns_and_shares_their_blocks(store: Store) -> None:
    chat = turns(store)
    fork = store.fork(chat, 2)
    info = store.chat(fork)
    assert (info.title, info.documents, info.messages, info.parent) == ("Emma (fork)", ("d0c",), 4, chat)
    taken = store.messages(fork)
    assert [m.content for m in taken] == ["q1", "a1", "q2", "a2"] and taken[3].stats == {"n": 2}
    assert replace(taken[1].evidence[0], id="") == EVIDENCE
    assert store.evidence(taken[1].evidence[0].id)[1] == fork
    tail = store.tail(fork)
    assert tail.turns == (10, 20) and tail.keys == ("k0", "k1", "k2") and tail.token_ids == tuple(range(24))
    assert store.tail(store.fork(chat, 3)) == store.tail(chat)
    assert len(store.messages(chat)) == 6
    assert {c.id for c in store.chats("q2")} == {chat, fork, *(c.id for c in store.chats() if c.messages == 6)}


def test_a_fork_from_just_read_holds_the_documents_alone(store: Store) -> None:
    fork = store.fork(turns(store), 0)
    assert store.chat(fork).documents == ("d0c",) and store.chat(fork).title == "New chat"
    assert store.messages(fork) == [] and store.tail(fork) is None


def test_a_fork_of_turns_whose_memory_is_gone_keeps_the_text(store: Store) -> None:
    chat = turns(store)
    store.blocks.delete(["k0"])
    store.blocks.flush()
    fork = store.fork(chat, 1)
    assert store.tail(fork) is None and len(store.messages(fork)) == 2


def test_a_turn_that_is_not_there_cannot_be_forked_from(store: Store) -> None:
    chat = turns(store)
    with pytest.raises(NotFoundError, match="3 turns; turn 4"):
        store.fork(chat, 4)
    with pytest.raises(NotFoundError):
        store.fork("none", 0)
    assert len(store.chats()) == 1


def test_children_stay_whole_when_the_parent_is_deleted(store: Store) -> None:
    chat = turns(store)
    fork, other = store.fork(chat, 1), store.fork(chat, 3)
    tail, messages = store.tail(other), store.messages(other)
    store.delete_chat(chat)
    store.collect_garbage()
    assert store.blocks.known_prefix(["k0", "k1", "k2", "k3"]) == 4
    assert (store.tail(other), store.messages(other)) == (tail, messages)
    assert store.chat(fork).parent == chat
    store.delete_chat(other)
    store.collect_garbage()
    assert store.blocks.known_prefix(["k0", "k1"]) == 2 and store.blocks.known_prefix(["k2"]) == 0
    store.delete_chat(fork)
    store.collect_garbage()
    assert store.stats()["blocks"] == 0


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


def test_a_search_marks_words_in_titles_and_messages(store: Store) -> None:
    chat = store.create_chat([], "m", "A green lantern")
    store.save_turn(chat, "Who kept it?", "The master kept the lantern green.", {}, [], None)
    store.save_turn(chat, "And?", "A lantern of green glass.", {}, [], None)
    other = store.create_chat([], "m", "Other")
    store.save_turn(other, "What?", "No lantern, nothing green here.", {}, [], None)
    store.save_turn(other, "What?", "No light.", {}, [], None, after=0)
    (hit,) = store.search_chats("green lantern", 9)
    assert (hit.chat, hit.title, hit.messages) == (chat, "A \x02green\x03 \x02lantern\x03", 2)
    assert hit.text == "The master kept the \x02lantern\x03 \x02green\x03."
    assert store.search_chats('"', 9) == [] and store.search_chats("light", 9)[0].chat == other


def test_a_chat_keeps_its_policy_and_a_fork_takes_it_over(store: Store) -> None:
    chat, older = store.create_chat([], "m", policy="h2o"), store.create_chat([], "m")
    fork = store.fork(chat, 0)
    store.set_chat_policy(chat, "streaming")
    assert [store.chat(id).policy for id in (chat, older, fork)] == ["streaming", "", "h2o"]
    with pytest.raises(NotFoundError):
        store.set_chat_policy("gone", "h2o")


def test_a_chat_keeps_how_it_is_answered(store: Store) -> None:
    chat, warm = store.create_chat([], "m", system="S"), AnswerSettings(0.7, 0.9, 32, "S")
    assert store.answer_settings(chat) == AnswerSettings(system="S")
    store.save_turn(chat, "q", "a", {}, [], TAIL)
    store.set_answer_settings(chat, warm)
    assert store.answer_settings(chat) == warm and store.tail(chat) == TAIL
    store.set_answer_settings(None, AnswerSettings(0.2))
    assert store.answer_settings(store.create_chat([], "m")) == store.answer_settings(None) == AnswerSettings(0.2)
    assert store.answer_settings(chat) == store.answer_settings(store.fork(chat, 1)) == warm
    store.set_answer_settings(chat, replace(warm, system="T"))
    assert store.chat(chat).system == "T" and store.tail(chat) is None  # it began with the other words


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
    assert store.chat(chat).title == "t\ufffd" and asked.content == "q\ufffd"
    assert [m.content for m in store.messages(chat)] == ["q\ufffd", "a\0b"]
