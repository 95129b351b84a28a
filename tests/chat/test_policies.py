"""Chats under policies of their own over one model: what each reads, keeps, and says."""

from dataclasses import replace

import pytest

from app.chat import evidence
from app.errors import ConfigError, InputError
from app.settings import POLICIES
from tests.chat.opened import SHORT, Open, finish, open_chat, write  # noqa: F401
from tests.tiny import SMALL

WIDE = replace(SMALL, budget_tokens=256)


def test_each_policy_reads_for_itself_and_forgets_no_other(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat(attention=WIDE)
    document = chat.library.add_document(write(tmp_path)).id
    tokens, seen = chat.library.document(document).tokens, []
    for policy in POLICIES:
        assert chat.library.documents(policy)[0].state == "new"
        done = finish(chat.ask("who?", documents=[document], policy=policy, generation=SHORT))
        assert done.stats.policy == chat.saved.chat(done.chat).policy == policy
        assert chat.model.memory_line(done.chat).policy == policy
        assert done.stats.tokens_read > tokens and done.stats.tokens_reused == 0
        assert chat.library.documents(policy)[0].state == "read"
        seen.append(done.chat)
    chat = open_chat(attention=WIDE)
    for policy, key in zip(POLICIES, seen, strict=True):
        done = finish(chat.ask("and?", chat=key, generation=SHORT))
        assert done.stats.policy == policy and not done.stats.note
        assert done.stats.tokens_read < tokens <= done.stats.tokens_reused
    chat = open_chat(attention=WIDE, policy="streaming")  # the start changes new chats only
    assert finish(chat.ask("and?", chat=seen[0], generation=SHORT)).stats.policy == POLICIES[0]
    assert finish(chat.ask("who?", documents=[document], generation=SHORT)).stats.policy == "streaming"
    chat.store.set_chat_policy(seen[0], "")  # a chat of an older release
    assert finish(chat.ask("and?", chat=seen[0], generation=SHORT)).stats.policy == "streaming"


def test_another_policy_runs_the_turns_again_and_leaves_the_answers(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path)).id
    first = finish(chat.ask("who?", documents=[document], generation=SHORT))
    chat.saved.set_chat_policy(first.chat, "streaming")
    assert chat.saved.messages(first.chat)[1].stats["policy"] == "keep-all"
    done = finish(chat.ask("what?", chat=first.chat, generation=SHORT))
    assert "policy keep-all (now streaming); its turns are read again" in done.stats.note
    again = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert not again.stats.note and again.stats.tokens_reused > chat.library.document(document).tokens
    assert [m.content for m in chat.saved.messages(first.chat)[:2]] == ["who?", first.answer]
    chat.saved.set_chat_policy(first.chat, "keep-all")  # its memory of the document is still there
    back = finish(chat.ask("so?", chat=first.chat, generation=SHORT))
    assert back.stats.tokens_read < chat.library.document(document).tokens <= back.stats.tokens_reused


def test_a_passage_is_tested_under_the_policy_that_found_it(open_chat: Open, tmp_path, monkeypatch) -> None:  # noqa: F811
    """Regions of InfLLM have another size: the same number is another place."""
    monkeypatch.setattr(evidence, "always_looked_at", lambda *_: set())  # a random model always looks there
    chat = open_chat(attention=WIDE)
    document = chat.library.add_document(write(tmp_path, words=400)).id
    done = finish(chat.ask("who?", documents=[document], policy="infllm", generation=SHORT))
    passage = done.evidence[0]
    *_, before = chat.removal(passage.id)
    chat.saved.set_chat_policy(done.chat, "keep-all")
    *_, after = chat.removal(passage.id)
    assert after.fall == pytest.approx(before.fall, abs=1e-3) and before.fall != 0
    *_, other = chat.answer_without(passage.id, generation=SHORT)
    assert other.stats.policy == "infllm"
    with pytest.raises(InputError, match="found under policy infllm, and this chat is answered under keep-all"):
        list(chat.ask("who?", chat=done.chat, without=passage.id, generation=SHORT))


def test_a_policy_that_cannot_be_had_is_refused_and_leaves_nothing(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat(codec="int8")
    document = chat.library.add_document(write(tmp_path)).id
    key = chat.saved.new_chat([document])
    for policy in ("h2o", "hoarding"):
        with pytest.raises(ConfigError, match=policy):
            chat.saved.set_chat_policy(key, policy)
        with pytest.raises(ConfigError, match=policy):
            list(chat.ask("who?", documents=[document], policy=policy, generation=SHORT))
    assert [info.id for info in chat.saved.chats()] == [key] and chat.saved.chat(key).policy == "keep-all"
    assert chat.library.documents("h2o")[0].state == "new" and chat.jobs.busy() is None


def test_a_chat_comes_back_from_a_file_with_its_policy(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    done = finish(
        chat.ask("who?", documents=[chat.library.add_document(write(tmp_path)).id], policy="full", generation=SHORT)
    )
    chat.transfers.export_file(done.chat, tmp_path / "chat.lectern")
    (tmp_path / "chat.json").write_text(chat.transfers.export_json(done.chat), encoding="utf-8")
    chat = open_chat("other")
    for name, text_only in (("chat.lectern", True), ("chat.json", False), ("chat.lectern", False)):
        key = chat.transfers.import_chat(tmp_path / name, text_only=text_only)
        assert chat.saved.chat(key).policy == "full"
    again = finish(chat.ask("and?", chat=key, generation=SHORT))
    assert not again.stats.note and again.stats.tokens_reused > chat.library.documents("full")[0].tokens
