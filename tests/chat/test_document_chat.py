"""DocumentChat over a real store and a tiny random model."""

import sqlite3
import threading
from dataclasses import replace

import pytest
import torch

from app.chat import DocumentChat, evidence
from app.chat.focus import Sight
from app.errors import BusyError, CancelledError, InputError, LecternError, ModelError, NotFoundError, StoreError
from app.memory.config import GenerationConfig
from app.records import Delta, Done, Reading
from app.settings import Settings
from app.store.database import FullDisk
from tests import tiny

NO_ANSWER = "The text does not say."
SHORT = GenerationConfig(max_new_tokens=6)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def open_chat(home):
    opened = []

    def start(**changes) -> DocumentChat:
        chat = DocumentChat.open(Settings(home=home), engine=tiny.engine(**changes))
        opened.append(chat)
        return chat

    yield start
    for chat in opened:
        chat.close()


def restart(chat, open_chat, **changes):
    chat.close()
    return open_chat(**changes)


def write(tmp_path, name="book.txt", words=40):
    path = tmp_path / name
    path.write_text(" ".join(f"{name[:2]}{i} word" for i in range(words)) + "\n", encoding="utf-8")
    return path


def finish(events):
    events = list(events)
    assert isinstance(events[-1], Done)
    return events[-1], events


def test_the_second_question_reads_only_its_own_tokens(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first, events = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    tokens = chat.library.document(document.id).tokens
    assert any(isinstance(e, Reading) for e in events)
    assert first.stats.tokens_read > tokens and first.stats.tokens_reused == 0
    second, _ = finish(chat.ask("what?", chat=first.chat, generation=SHORT))
    assert second.stats.tokens_read < 30
    assert second.stats.tokens_reused >= tokens
    assert chat.library.document(document.id).state == "read"


def test_freed_bytes_are_told_at_once(open_chat, tmp_path):
    chat = open_chat()
    ids = [chat.library.add_document(write(tmp_path, name, words=1500)).id for name in ("one.txt", "two.txt")]
    for id in ids:
        list(chat.read(id))
    chat.store.finish()
    both = chat.library.disk_space()
    assert min(both.documents[id] for id in ids) > 100_000
    chat.library.evict(ids[0])
    one = chat.library.disk_space()
    assert ids[0] not in one.documents and both.used_bytes - one.used_bytes > both.documents[ids[0]] / 2
    chat.library.delete_document(ids[1])
    none = chat.library.disk_space()
    assert none.documents == {} and one.used_bytes - none.used_bytes > both.documents[ids[1]] / 2


def test_why_an_answer_ended_is_kept_with_it(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    assert first.stats.ended == "length" and first.evidence[0].label == "line 1"
    monkeypatch.setattr("app.runtime.decode.Sampler.__call__", lambda self, logits: torch.tensor(70))
    second, _ = finish(chat.ask("why?", chat=first.chat))
    assert second.stats.ended == "repetition" and second.stats.new_tokens == 1 + GenerationConfig().repeat_tokens
    chat = restart(chat, open_chat)
    assert [message.stats["ended"] for message in chat.saved.messages(first.chat)[1::2]] == ["length", "repetition"]
    text = chat.transfers.export_chat(first.chat)
    assert "*Cut off at the longest answer, 6 tokens.*" in text
    assert "*Stopped because the answer repeated itself.*" in text
    finish(chat.ask("and then?", chat=first.chat, generation=SHORT))


def test_the_blank_that_begins_a_quotation_is_not_shown(open_chat, monkeypatch):
    said = iter([" ", " the ", "old king "])
    monkeypatch.setattr("app.runtime.engine.Engine.stream_text", lambda self, tokens, stop: said)
    *shown, done = open_chat().ask("who?", generation=SHORT)
    assert "".join(event.text for event in shown if isinstance(event, Delta)) == "the old king "
    assert done.answer == "the old king"


def test_a_refusal_without_a_document_says_that_none_is_attached(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    with_text, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    plain, _ = finish(chat.ask("who?", generation=SHORT))
    monkeypatch.setattr("app.runtime.engine.Engine.stream_text", lambda self, tokens, stop: iter([NO_ANSWER]))
    said, _ = finish(chat.ask("who?", generation=SHORT))
    assert "no document is attached" in said.stats.note
    assert "no document" not in plain.stats.note + finish(chat.ask("why?", chat=with_text.chat))[0].stats.note


def test_after_a_restart_nothing_is_read_and_the_answer_is_the_same(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    other, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    unbroken, _ = finish(chat.ask("and then?", chat=first.chat, generation=SHORT))
    chat = restart(chat, open_chat)
    resumed, _ = finish(chat.ask("and then?", chat=other.chat, generation=SHORT))
    assert resumed.answer == unbroken.answer
    assert resumed.stats.tokens_read == unbroken.stats.tokens_read < 40
    assert resumed.stats.tokens_reused == unbroken.stats.tokens_reused
    assert [m.role for m in chat.saved.messages(other.chat)] == ["user", "assistant"] * 2


def test_a_chat_outlives_its_deleted_document(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    chat.library.delete_document(document.id)
    second, _ = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert "deleted" in second.stats.note and second.evidence == ()


def test_the_same_text_under_another_name_reads_nothing(open_chat, tmp_path):
    """Blocks are found by content: a file that differs only in a byte order mark is another document, same tokens."""
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    list(chat.read(document.id))
    twin = tmp_path / "twin.txt"
    twin.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "book.txt").read_bytes())
    other = chat.library.add_document(twin)
    assert other.id != document.id
    events = list(chat.read(other.id))
    assert events[-1].reused == events[-1].tokens_total > 0


def test_a_stopped_reading_goes_on(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    steps = chat.read(document.id)
    for _ in range(4):
        reading = next(steps)
    chat.jobs.stop()
    with pytest.raises(CancelledError, match=f"after {reading.tokens_done:,} of {reading.tokens_total:,} tokens"):
        list(steps)
    stopped = chat.library.document(document.id)
    percent = 100 * reading.tokens_done // reading.tokens_total
    assert stopped.state == "new" and stopped.detail == f"stopped at {percent}%" and 0 < percent < 100
    assert chat.jobs.busy() is None
    chat = restart(chat, open_chat)
    events = list(chat.read(document.id))
    assert events[0].reused >= reading.tokens_done > 0
    assert chat.library.document(document.id).state == "read"


def test_a_reading_that_breaks_says_why_and_goes_on(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr(chat.model.engine(), "read_steps", lambda *_, **__: _raise(ModelError("out of memory")))
        with pytest.raises(ModelError):
            list(chat.read(document.id))
    failed = chat.library.document(document.id)
    assert (failed.state, failed.detail) == ("failed", "out of memory")
    list(chat.read(document.id))
    assert chat.library.document(document.id).state == "read" and chat.library.document(document.id).detail == ""


def _raise(error):
    raise error


def test_one_claim_at_a_time_and_stop_reaches_it(open_chat):
    chat = open_chat()
    with chat.jobs.claim("testing passkeys") as job:
        assert chat.jobs.busy() == "testing passkeys"
        with pytest.raises(LecternError, match="busy: testing passkeys"):
            list(chat.ask("hello"))
        assert not job.cancelled
        chat.jobs.stop()
        assert job.cancelled
    assert chat.jobs.busy() is None


def test_a_model_that_cannot_be_loaded_keeps_its_name(home, tmp_path):
    chat = DocumentChat.open(Settings(home=home, model=str(tmp_path / "no-such-model")), load=False)
    with pytest.raises(LecternError):
        chat.model.engine()
    state = chat.model.model_state()
    chat.close()
    assert (state.state, state.name) == ("failed", "no-such-model") and "no-such-model" in state.detail


def test_files_set_aside_are_told(home, open_chat):
    home.mkdir()
    (home / "kv.db").write_bytes(b"not a database at all" * 500)
    assert any("kv.db" in note for note in open_chat().notes())


def test_a_damaged_block_is_told_after_reading_alone(home, open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path, words=400))
    list(chat.read(document.id))
    chat.close()
    with sqlite3.connect(home / "kv.db") as db:
        db.execute("UPDATE block_index SET data = zeroblob(length(data)) WHERE block = 2")
    chat = open_chat()
    list(chat.read(document.id))
    assert any("is read again" in note for note in chat.notes())


def test_closing_an_answer_keeps_what_came(open_chat, tmp_path):
    chat = open_chat()
    events = chat.ask("hello", generation=GenerationConfig(max_new_tokens=200))
    while not isinstance(event := next(events), Delta):
        pass
    events.close()
    (info,) = chat.saved.chats()
    question, answer = chat.saved.messages(info.id)
    assert answer.content.startswith(event.text.strip()) and answer.stats["stopped"]
    assert chat.jobs.busy() is None
    done, _ = finish(chat.ask("again", chat=info.id, generation=SHORT))
    assert done.stats.tokens_reused > 0


def test_a_stop_while_the_model_is_awaited_counts(open_chat, monkeypatch):
    chat = open_chat()
    engine = chat.model.engine()

    def awaited():
        chat.jobs.stop()
        return engine

    with monkeypatch.context() as waiting:
        waiting.setattr(chat.model, "engine", awaited)
        done, _ = finish(chat.ask("hello", generation=SHORT))
    assert done.stats.stopped and done.answer == "" and chat.saved.chats() == []
    assert finish(chat.ask("hello", generation=SHORT))[0].answer


def test_a_question_stopped_before_its_answer_leaves_nothing(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    events = chat.ask("who?", documents=[document.id], generation=SHORT)
    next(events)
    chat.jobs.stop()
    with pytest.raises(CancelledError):
        list(events)
    assert chat.saved.chats() == []
    first, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    tokens = chat.model.memory_line(first.chat).tokens
    events = chat.ask("a long question " * 20, chat=first.chat, generation=SHORT)
    next(events)
    chat.jobs.stop()
    done, _ = finish(events)
    assert done.answer == "" and len(chat.saved.messages(first.chat)) == 2
    assert chat.model.memory_line(first.chat).tokens == tokens


def test_retry_replaces_the_last_answer(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first, _ = finish(chat.ask("one?", documents=[document.id], generation=SHORT))
    second, _ = finish(chat.ask("two?", chat=first.chat, generation=SHORT))
    again, _ = finish(chat.retry(first.chat, generation=SHORT))
    assert again.answer == second.answer
    assert len(chat.saved.messages(first.chat)) == 4
    assert [(v.number, len(v.turns)) for v in chat.saved.versions(first.chat).values()] == [(2, 2)]
    chat = restart(chat, open_chat)
    once_more, _ = finish(chat.retry(first.chat, generation=SHORT))
    assert once_more.answer == second.answer


def test_evidence_points_into_the_text_and_can_be_removed(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path, words=80))
    done, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    assert done.evidence
    for item in done.evidence:
        part = chat.store.part(document.id, item.part)
        assert part.text[item.char_start :].startswith(item.text)
        assert 0 < item.weight <= 1
    before = chat.saved.messages(done.chat)
    without, _ = finish(chat.answer_without(done.evidence[0].id, generation=SHORT))
    gone = set(done.evidence[0].regions)
    assert not any(gone & set(item.regions) for item in without.evidence)
    assert chat.saved.messages(done.chat) == before
    again, _ = finish(chat.ask("next?", chat=done.chat, generation=SHORT))
    assert again.stats.tokens_reused > 0


def test_each_token_of_an_answer_says_where_it_looked(open_chat, tmp_path):
    chat = open_chat()
    one, two = (
        chat.library.add_document(write(tmp_path, "aa.txt", 60)),
        chat.library.add_document(write(tmp_path, "bb.txt", 60)),
    )
    done, _ = finish(chat.ask("who?", documents=[one.id, two.id], generation=SHORT))
    assert len(done.looks) == done.stats.new_tokens and done.answer.startswith(done.looks[0].text.strip())
    for look in done.looks:
        assert {document for document, *_ in look.places} <= {one.id, two.id}
        assert all(number == 0 and 0 <= region < 100 and 0 < share <= 1 for _, number, region, share in look.places)
    done, _ = finish(chat.ask("who?", chat=done.chat, focus=["bb"], generation=SHORT))
    assert {document for look in done.looks for document, *_ in look.places} == {two.id}


def test_an_answer_says_what_became_of_the_tokens_behind_it(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    done, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    line = chat.model.memory_line(done.chat)
    assert done.stats.tokens_kept == line.tokens_kept == line.tokens > chat.library.document(document.id).tokens
    assert chat.saved.messages(done.chat)[1].stats["tokens_evicted"] == 0 == line.tokens_evicted


def test_removal_scores_the_same_answer_without_a_passage(open_chat, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "always_looked_at", lambda *_: set())  # a random model always looks there
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path, words=80))
    first, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    second, _ = finish(chat.ask("what?", chat=first.chat, generation=SHORT))
    before = chat.saved.messages(first.chat), chat.model.memory_line(first.chat)
    for done in (first, second):
        *readings, found = chat.removal(done.evidence[0].id)
        assert all(isinstance(event, Reading) for event in readings)
        assert len(found.pieces) == len(found.before) == len(found.after) == done.stats.new_tokens
        assert found.fall == pytest.approx(sum(found.before) - sum(found.after)) != 0
        assert found.controls == 5 and found.control != found.fall
        assert list(chat.removal(done.evidence[0].id))[-1] == found
    assert (chat.saved.messages(first.chat), chat.model.memory_line(first.chat)) == before
    chat = restart(chat, open_chat)
    *_, resumed = chat.removal(second.evidence[0].id)
    assert resumed.before == pytest.approx(found.before) and resumed.after == pytest.approx(found.after)


def test_removal_keeps_what_the_answer_could_not_see(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    one, two = (
        chat.library.add_document(write(tmp_path, "aa.txt", 60)),
        chat.library.add_document(write(tmp_path, "bb.txt", 60)),
    )
    done, _ = finish(chat.ask("who?", documents=[one.id, two.id], mute=["aa"], generation=SHORT))
    masks, score = [], chat.model.engine().score
    monkeypatch.setattr(
        chat.model.engine(), "score", lambda cache, *ids: (masks.append(cache.allowed.tolist()), score(cache, *ids))[1]
    )
    list(chat.removal(done.evidence[0].id))
    seen, hidden, *others = masks
    assert not any(seen[: chat.library.document(one.id).tokens // 8]) and any(seen)
    assert sum(seen) - sum(hidden) == len(done.evidence[0].regions) and len(others) == 5
    assert all(sum(mask) == sum(hidden) for mask in others)  # only what could be seen is worth hiding
    monkeypatch.undo()
    without, _ = finish(chat.answer_without(done.evidence[0].id, generation=SHORT))
    assert {item.document for item in without.evidence} <= {two.id}
    assert (without.stats.mute, without.stats.without) == (("aa",), done.evidence[0].id)


def test_removal_after_a_second_look_sees_what_the_answer_saw(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    chat.model.engine().draft_tokens = 4
    document = chat.library.add_document(write(tmp_path, words=200))
    done, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    assert 0 < done.stats.second_look < chat.library.document(document.id).tokens // 8
    masks, score = [], chat.model.engine().score
    monkeypatch.setattr(
        chat.model.engine(), "score", lambda cache, *ids: (masks.append(cache.allowed.tolist()), score(cache, *ids))[1]
    )
    *_, found = chat.removal(done.evidence[0].id)
    seen, hidden, *others = map(sum, masks)
    assert seen == done.stats.second_look and seen - hidden == len(done.evidence[0].regions)
    assert all(other == hidden for other in others) and found.fall != 0
    monkeypatch.undo()
    without, _ = finish(chat.answer_without(done.evidence[0].id, generation=SHORT))
    assert without.stats.second_look and not {r for e in without.evidence for r in e.regions} & set(
        done.evidence[0].regions
    )


@pytest.mark.parametrize("policy", ["h2o", "bounded"])
def test_evidence_where_tokens_were_dropped(open_chat, tmp_path, policy):
    chat = open_chat(policy=policy, attention=replace(tiny.SMALL, budget_tokens=128))
    one, two = (
        chat.library.add_document(write(tmp_path, "aa.txt", 200)),
        chat.library.add_document(write(tmp_path, "bb.txt", 60)),
    )
    done, _ = finish(chat.ask("who?", documents=[one.id, two.id], generation=SHORT))
    stats, read = done.stats, chat.model.memory_line(done.chat).tokens
    assert stats.tokens_kept + stats.tokens_compressed + stats.tokens_evicted == read
    assert done.evidence and all(
        0 <= region <= chat.library.document(item.document).tokens // 8
        for item in done.evidence
        for _, region in item.regions
    )
    with pytest.raises(InputError, match=f"policy {policy} drops"):
        finish(chat.ask("and?", chat=done.chat, mute=["aa"], generation=SHORT))


def test_what_drops_tokens_cannot_be_muted(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    sessions = chat.model.sessions()
    monkeypatch.setattr(chat.model.engine(), "shape", replace(chat.model.engine().shape, compaction=object()))
    with pytest.raises(InputError, match="policy keep-all drops some"):
        sessions.see(sessions.session, Sight(mute=("book",)))
    sessions.see(sessions.session, Sight())


def test_removal_of_a_detached_document_is_refused(open_chat, tmp_path):
    chat = open_chat()
    one, two = (
        chat.library.add_document(write(tmp_path, "aa.txt", 60)),
        chat.library.add_document(write(tmp_path, "bb.txt", 60)),
    )
    done, _ = finish(chat.ask("who?", documents=[one.id], generation=SHORT))
    chat.saved.set_chat_documents(done.chat, [two.id])
    with pytest.raises(InputError, match="attach it again"):
        list(chat.removal(done.evidence[0].id))


def test_places_are_offered_as_they_can_be_given(open_chat, tmp_path):
    chat = open_chat()
    path = tmp_path / "tales.md"
    path.write_text("# The Harbour\n\n" + "sea " * 260 + "\n\n# The Hill\n\n" + "wind " * 20, encoding="utf-8")
    document = chat.library.add_document(path)
    offered = chat.library.places([document.id])
    assert offered[0] == (document.title, document.id) and len(offered) == 3
    for _, spec in offered:
        done, _ = finish(chat.ask("who?", documents=[document.id], focus=[spec], generation=SHORT))
        assert done.stats.focus[0].startswith(document.title)
    assert done.stats.focus == (f"{document.title}#The Hill",)


def test_focus_and_mute(open_chat, tmp_path):
    chat = open_chat()
    one, two = (
        chat.library.add_document(write(tmp_path, "aa.txt", 60)),
        chat.library.add_document(write(tmp_path, "bb.txt", 60)),
    )
    done, _ = finish(chat.ask("who?", documents=[one.id, two.id], mute=["aa"], generation=SHORT))
    assert {item.document for item in done.evidence} == {two.id}
    done, _ = finish(chat.ask("who?", chat=done.chat, focus=[one.id], generation=SHORT))
    assert {item.document for item in done.evidence} <= {one.id}
    with pytest.raises(InputError, match="no attached document"):
        finish(chat.ask("who?", chat=done.chat, focus=["cc"], generation=SHORT))
    with pytest.raises(InputError, match="no page"):
        finish(chat.ask("who?", chat=done.chat, focus=["aa#99"], generation=SHORT))


def test_documents_attach_in_any_order_without_reading_again(open_chat, tmp_path):
    chat = open_chat()
    one, two = (
        chat.library.add_document(write(tmp_path, "aa.txt")),
        chat.library.add_document(write(tmp_path, "bb.txt")),
    )
    first, _ = finish(chat.ask("who?", documents=[one.id, two.id], generation=SHORT))
    turned, _ = finish(chat.ask("who?", documents=[two.id, one.id], generation=SHORT))
    assert turned.stats.tokens_read < 30
    chat.saved.set_chat_documents(first.chat, [two.id])
    changed, _ = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert "earlier turns stay" in changed.stats.note
    assert changed.stats.tokens_read < 30
    chat.saved.set_chat_documents(first.chat, [one.id, two.id, one.id])
    chat = restart(chat, open_chat)
    back, _ = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert "earlier turns stay" in back.stats.note and back.stats.tokens_read < 30
    same, _ = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert same.stats.note == "" and chat.saved.chat(first.chat).documents == (one.id, two.id)


def test_turns_are_run_again_when_the_last_document_goes(open_chat, tmp_path):
    """They would have no BOS before them; a chat that began without documents has its own."""
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    chat.saved.set_chat_documents(first.chat, [])
    alone, _ = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert "no document any more" in alone.stats.note and alone.stats.tokens_reused == 0
    assert 20 < alone.stats.tokens_read < 80 < chat.library.document(document.id).tokens
    chat.saved.set_chat_documents(first.chat, [document.id])
    joined, _ = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert joined.stats.tokens_read < 30 and joined.evidence
    chat.saved.set_chat_documents(first.chat, [])
    left, _ = finish(chat.ask("and?", chat=first.chat, generation=SHORT))
    assert "earlier turns stay" in left.stats.note and left.stats.tokens_read < 30


def test_another_recipe_reads_again_and_says_so(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    done, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    chat = restart(chat, open_chat, codec="int8")
    assert chat.library.document(document.id).state == "new"
    again, _ = finish(chat.ask("who?", chat=done.chat, generation=SHORT))
    assert "the chat's memory was made with codec raw (now int8 by channel)" in again.stats.note
    assert "the memory of book was made with codec raw" in again.stats.note
    assert again.stats.tokens_read > chat.library.document(document.id).tokens


def test_damaged_memory_is_read_again_and_said_so(open_chat, home, tmp_path):
    import sqlite3

    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    done, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    chat.close()
    with sqlite3.connect(home / "kv.db") as db:
        db.execute("UPDATE block_kv SET data = zeroblob(length(data))")
    chat = open_chat()
    again, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    assert again.answer == done.answer
    assert "read again" in again.stats.note


def test_chats_can_be_listed_renamed_exported_deleted(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    done, _ = finish(chat.ask("  Who is\nit?  ", documents=[document.id], generation=SHORT))
    assert chat.saved.chats()[0].title == "Who is it?"
    text = chat.transfers.export_chat(done.chat)
    assert "Who is" in text and document.title in text
    chat.saved.rename_chat(done.chat, " Mine ")
    assert chat.saved.chat(done.chat).title == "Mine"
    with pytest.raises(InputError):
        chat.saved.rename_chat(done.chat, "  ")
    chat.saved.delete_chat(done.chat)
    with pytest.raises(NotFoundError):
        chat.saved.messages(done.chat)


def test_memory_line_counts_what_is_attached(open_chat, tmp_path):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    done, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    line = chat.model.memory_line(done.chat)
    assert line.tokens > chat.library.document(document.id).tokens
    assert line.host_bytes > 0 and line.disk_bytes > 0 and line.policy == "keep-all"


def test_a_second_process_is_told_who_holds_the_folder(open_chat, home):
    chat = open_chat()
    chat.lock.set_url("http://127.0.0.1:7860")
    with pytest.raises(BusyError) as refused:
        DocumentChat.open(Settings(home=home))
    assert refused.value.url == "http://127.0.0.1:7860"


def test_a_missing_model_fails_with_a_message(home):
    chat = DocumentChat.open(Settings(home=home, model=str(home / "nothing")))
    try:
        with pytest.raises(LecternError, match="no such folder"):
            chat.model.engine()
        assert chat.model.model_state().state == "failed"
        assert chat.library.documents() == []
    finally:
        chat.close()


def test_stop_from_another_thread(open_chat):
    chat = open_chat()
    threading.Timer(0.2, chat.jobs.stop).start()
    done, _ = finish(chat.ask("hello", generation=GenerationConfig(max_new_tokens=100_000)))
    assert done.stats.stopped and done.stats.new_tokens < 100_000


def test_when_the_library_is_full_the_chat_goes_on_without_the_turn(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    twin, _ = finish(chat.ask("who?", documents=[document.id], generation=SHORT))

    def full(*_, **__):
        raise StoreError("library.db: the disk is full")

    with monkeypatch.context() as disk:
        disk.setattr(chat.store, "save_turn", full)
        lost, _ = finish(chat.ask("why?", chat=first.chat, generation=SHORT))
        new, _ = finish(chat.ask("why?", documents=[document.id], generation=SHORT))
    for done in (lost, new):
        assert done.answer and not done.stats.saved
        assert done.stats.note == "library.db: the disk is full. This answer is not kept."
    assert [message.content for message in chat.saved.messages(first.chat)] == ["who?", first.answer]
    assert chat.saved.messages(new.chat) == []  # the chat is there to be asked again
    second, _ = finish(chat.ask("what?", chat=first.chat, generation=SHORT))
    unbroken, _ = finish(chat.ask("what?", chat=twin.chat, generation=SHORT))
    assert second.answer == unbroken.answer and second.stats.tokens_read == unbroken.stats.tokens_read


def test_a_read_document_answers_when_not_a_word_can_be_written(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    first, _ = finish(chat.ask("who?", documents=[chat.library.add_document(write(tmp_path)).id], generation=SHORT))
    chat.close()

    def full(*_, **__):
        raise FullDisk("library.db: the disk is full")

    chat = open_chat()
    for name in ("save_turn", "set_state"):
        monkeypatch.setattr(chat.store, name, full)
    done, _ = finish(chat.ask("why?", chat=first.chat, generation=SHORT))
    assert done.answer and done.stats.note == "library.db: the disk is full. This answer is not kept."


class Panic(BaseException):
    """As a native library raises it: no Exception."""


@pytest.mark.parametrize("error", [Panic("no Exception"), ValueError("odd text")])
def test_a_tokenizer_that_fails_ends_the_document_with_a_reason(error, open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    real = chat.model.engine().text_tokenizer

    class Broken:
        encode_special_tokens = True

        def encode_batch_fast(self, texts, add_special_tokens):
            raise error

    monkeypatch.setattr(chat.model.engine(), "text_tokenizer", Broken())
    with pytest.raises(InputError, match=str(error)):
        chat.library.add_document(write(tmp_path))
    (document,) = chat.library.documents()
    assert document.state == "failed" and str(error) in document.detail
    monkeypatch.setattr(chat.model.engine(), "text_tokenizer", real)
    list(chat.read(document.id))
    assert chat.library.document(document.id).state == "read"  # the next try goes on


def test_a_reading_that_breaks_ends_the_document_with_a_reason(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))

    def panic(*args, **options):
        raise Panic("no Exception")

    monkeypatch.setattr(type(chat.model.engine()), "read_steps", panic)
    with pytest.raises(Panic):
        list(chat.read(document.id))
    found = chat.library.document(document.id)
    assert (found.state, found.detail) == ("failed", "Panic: no Exception")


def test_adding_is_stopped_and_leaves_nothing(open_chat, tmp_path, monkeypatch):
    chat = open_chat()
    loading, asked = threading.Event(), threading.Event()

    def endless(path, *, cancelled, **options):
        loading.set()
        while not cancelled():
            asked.set()
        raise CancelledError("cancelled")

    monkeypatch.setattr("app.ingest.load.load_document", endless)
    steps = chat.library.adding(write(tmp_path))
    assert next(steps).words == "opening it"
    loading.wait()
    chat.jobs.stop()  # an answer may be stopped while a file is added
    asked.clear()
    asked.wait()
    chat.library.stop_adding()
    with pytest.raises(CancelledError):
        list(steps)
    assert chat.library.documents() == []
