"""The Ask tab's generators over a fake chat."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api.reading import BackgroundReading
from app.chat.focus import Sight
from app.errors import StoreError
from app.memory.config import GenerationConfig
from app.records import AnswerStats, Delta, Done
from app.ui import asking, leafing
from tests.fake_chat import FakeDocumentChat, model_state


def ticking(step: float):
    """A clock that moves by `step` at every look."""
    counter = itertools.count(1)
    return lambda: next(counter) * step


def ask(
    chat: FakeDocumentChat, question: str, chat_id: str | None = None, documents=(), **options
) -> list[asking.View]:
    return list(asking.answer(chat, question, chat_id, documents, clock=ticking(1.0), **options))


@pytest.fixture
def document(chat: FakeDocumentChat, book: Path) -> str:
    return chat.library.add_document(book).id


def test_first_question_reads_then_answers(chat: FakeDocumentChat, document: str) -> None:
    views = ask(chat, " Who kept the harbour lantern? ", documents=[document])
    assert views[0].messages == ({"role": "user", "text": "Who kept the harbour lantern?"},)
    assert views[0].running and "Thinking" in views[0].status
    readings = [view for view in views if "Reading" in view.status]
    assert readings and "tokens/s" in readings[0].status and "%" in readings[0].status
    growing = [view.messages[-1]["text"] for view in views if view.messages[-1].get("role") == "assistant"]
    assert len(growing) > 3 and all(b.startswith(a) for a, b in itertools.pairwise(growing))
    last = views[-1]
    assert not last.running and last.status == "" and last.chat == "c1"
    assert [set(message) for message in last.messages] == [{"role", "text"}, {"role", "text", "marks"}, {"foot"}]
    assert last.messages[1]["text"] == growing[-1].strip()
    assert 'data-do="passage"' in last.messages[2]["foot"] and "lines 2-3<" in last.messages[2]["foot"]


def test_second_question_keeps_the_chat_and_reads_nothing(chat: FakeDocumentChat, document: str) -> None:
    key = ask(chat, "Who kept the harbour lantern?", documents=[document])[-1].chat
    views = ask(chat, "And the cliffs?", key, documents=["something else"])
    assert not any("Reading" in view.status for view in views)
    assert chat.asked[-1]["chat"] == key and chat.asked[-1]["documents"] == ()
    assert len(views[-1].messages) == 6


def test_updates_are_batched(chat: FakeDocumentChat) -> None:
    """With a clock that stands still only the first piece, the start and the end are shown."""
    words = "one two three four five six seven eight nine ten eleven twelve"
    views = list(asking.answer(chat, words, None, [], clock=lambda: 100.0))
    assert len([view for view in views if view.running]) == 2


def test_settings_reach_the_model(chat: FakeDocumentChat) -> None:
    ask(chat, "x y z", generation=GenerationConfig(temperature=0.7, max_new_tokens=3))
    assert chat.asked[-1]["generation"].temperature == 0.7
    assert len(chat.saved.messages("c1")[1].content.split()) == 3


def test_why_an_answer_ended_is_kept_and_told(chat: FakeDocumentChat) -> None:
    view = ask(chat, "x y z", generation=GenerationConfig(max_new_tokens=3))[-1]
    assert "Cut off at the longest answer, 3 tokens." in view.messages[-1]["foot"]
    view = ask(chat, "and again and again?", view.chat)[-1]
    assert "Stopped because the answer repeated itself." in view.messages[-1]["foot"]
    assert "Cut off" in asking.show(chat, view.chat).messages[2]["foot"]


def test_a_refusal_says_so(chat: FakeDocumentChat, document: str) -> None:
    view = ask(chat, "What is unsaid of the harbour?", documents=[document])[-1]
    assert "without finding an answer" in view.messages[-1]["foot"]
    assert "may say so although" in view.messages[-1]["foot"]


def test_empty_question_asks_for_one(chat: FakeDocumentChat) -> None:
    (view,) = ask(chat, "  \n ")
    assert "Type a question" in view.status and not chat.asked


def test_error_keeps_the_question_and_the_chat(chat: FakeDocumentChat, document: str) -> None:
    key = ask(chat, "First?", documents=[document])[-1].chat
    chat.state = model_state(state="failed", detail="models/x: no config.json; choose another with --model")
    view = ask(chat, "Second?", key)[-1]
    assert "models/x: no config.json" in view.status and view.draft == "Second?"
    assert len(view.messages) == 3 and view.chat == key and not view.running


@pytest.mark.parametrize("error", [StoreError("disk full: free some space"), RuntimeError("boom")])
def test_error_in_the_middle_of_an_answer(chat: FakeDocumentChat, monkeypatch, error: Exception) -> None:
    def broken(*args, **options):
        yield Delta("Half an ans")
        raise error

    monkeypatch.setattr(chat, "ask", broken)
    view = ask(chat, "Why?")[-1]
    assert ("disk full" in view.status) == isinstance(error, StoreError)
    assert "boom" not in view.status and "Traceback" not in view.status
    assert view.draft == "Why?" and not view.running


def test_stop_keeps_what_was_said(chat: FakeDocumentChat) -> None:
    for view in asking.answer(chat, "one two three four five six", None, [], clock=ticking(1.0)):
        if view.running and view.messages[-1].get("role") == "assistant":
            chat.jobs.stop()
    assert "You stopped it." in view.messages[-1]["foot"]
    assert view.messages[-2]["text"] == "You…"


def test_closing_the_page_closes_the_answer(chat: FakeDocumentChat, monkeypatch) -> None:
    closed = []

    def endless(*args, **options):
        try:
            while True:
                yield Delta("and ")
        finally:
            closed.append(True)

    monkeypatch.setattr(chat, "ask", endless)
    views = asking.answer(chat, "Why?", None, [], clock=ticking(1.0))
    for _ in range(5):
        next(views)
    views.close()
    assert closed == [True]


def test_trouble_while_the_page_is_closed_is_only_logged(chat: FakeDocumentChat, monkeypatch, caplog) -> None:
    """A generator that yields after it was closed is a RuntimeError."""

    def troubled(*args, **options):
        try:
            while True:
                yield Delta("and ")
        finally:
            raise StoreError("the store is closed")

    monkeypatch.setattr(chat, "ask", troubled)
    views = asking.answer(chat, "Why?", None, [], clock=ticking(1.0))
    next(views), next(views)
    views.close()
    assert "the store is closed" in caplog.text


def test_retry_answers_the_last_question_again(chat: FakeDocumentChat, document: str) -> None:
    key = ask(chat, "Who kept the harbour lantern?", documents=[document])[-1].chat
    ask(chat, "And why?", key)
    views = list(asking.again(chat, key, clock=ticking(1.0)))
    assert [message.get("text") for message in views[0].messages][-1] == "And why?"
    assert len(views[0].messages) == 4 and len(views[-1].messages) == 6
    assert len(chat.saved.messages(key)) == 4


@pytest.mark.parametrize("key", [None, "c1"])
def test_retry_without_a_question(chat: FakeDocumentChat, key: str | None) -> None:
    chat.saved.new_chat()
    (view,) = asking.again(chat, key)
    assert "no question" in view.status


def test_passage_opens_and_turns(chat: FakeDocumentChat, document: str) -> None:
    ask(chat, "Who kept the harbour lantern?", documents=[document])
    evidence = chat.saved.messages("c1")[1].evidence[0]
    assert "harbour master kept a lantern" in leafing.passage(chat, evidence.id).split("<mark")[1]
    assert "<mark" not in leafing.passage(chat, f"{evidence.id}@1")


def test_passage_of_a_deleted_document_says_so(chat: FakeDocumentChat, document: str) -> None:
    ask(chat, "Who kept the harbour lantern?", documents=[document])
    chat.library.delete_document(document)
    assert "not here any more" in leafing.passage(chat, "e2-1")
    assert "This passage is not here any more" in leafing.passage(chat, "e99-1")


def test_an_answer_that_is_not_kept_stays_on_the_page(chat: FakeDocumentChat, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(question: str, **_: object) -> Iterator[Delta | Done]:
        yield Delta("an answer")
        yield Done("an answer", "c1", (), AnswerStats(saved=False, note="library.db: the disk is full"))

    chat.saved.new_chat()
    monkeypatch.setattr(chat, "ask", full)
    view = ask(chat, "Who?")[-1]
    assert [message["text"] for message in view.messages] == ["Who?", "an answer"]
    assert "the disk is full" in view.status and view.chat == "c1" and not view.running


def test_answer_without_a_passage(chat: FakeDocumentChat, document: str) -> None:
    ask(chat, "Who kept the harbour lantern?", documents=[document])
    warm = GenerationConfig(temperature=0.7, max_new_tokens=9)
    shown = list(asking.without(chat, "e2-1", warm, clock=ticking(1.0)))
    assert chat.asked[-1]["generation"] == warm
    assert "Testing the answer" in shown[0] and "Answering without" in shown[1]
    assert "the answer changes" in shown[-1] and "Read 9 new tokens; 100 came from memory. 0.4 s" in shown[-1]
    assert "falls by 3.25 nats; without another of this size it falls by 0.12 (median of 5)." in shown[-1]
    assert len(chat.saved.messages("c1")) == 2
    assert "not here any more" in list(asking.without(chat, "e99-1"))[-1]


def test_focus_and_mute_reach_the_model_and_are_told(chat: FakeDocumentChat, document: str) -> None:
    view = ask(chat, "Who?", documents=[document], sight=Sight((f"{document}#Chapter I",), (f"{document}#2",)))[-1]
    assert chat.asked[-1]["focus"] == (f"{document}#Chapter I",) and chat.asked[-1]["mute"] == (f"{document}#2",)
    line = "Looked only in A Quiet Coast#Chapter I, did not look in A Quiet Coast#2."
    assert line in view.messages[-1]["foot"]
    again = list(asking.again(chat, view.chat, sight=Sight(mute=(document,)), clock=ticking(1.0)))[-1]
    assert "Did not look in A Quiet Coast.<" in again.messages[-1]["foot"]


def test_places_follow_the_picked_documents(chat: FakeDocumentChat, document: str, tmp_path: Path) -> None:
    code = tmp_path / "tool.zip"
    code.write_text("def harbour(): ...\n", encoding="utf-8")
    other = chat.library.add_document(code).id
    offered, focus = asking.places(chat, [document], [f"{document}#2", "A Quiet Coast#1-2", other])
    assert offered == [("A Quiet Coast", document)]  # one chapter holds it all
    assert focus == [f"{document}#2", "A Quiet Coast#1-2"]
    offered, *_ = asking.places(chat, [document, other])
    assert ("tool › src/", f"{other}#src/") in offered


def test_documents_change_in_the_middle_of_a_chat(chat: FakeDocumentChat, document: str, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("Another text.", encoding="utf-8")
    other = chat.library.add_document(more).id
    assert asking.attach(chat, None, [document]) == ""
    key = ask(chat, "Who?", documents=[document])[-1].chat
    assert "From the next question on" in asking.attach(chat, key, [document, other])
    assert chat.saved.chat(key).documents == (document, other)
    assert asking.attach(chat, key, [document, other]) == ""
    assert "not here any more" in asking.attach(chat, "c9", [])


def test_sample_book_is_added_and_read_before_others(
    chat: FakeDocumentChat, book: Path, document: str, tmp_path: Path, reading: BackgroundReading
) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_text("A sample.", encoding="utf-8")
    reading.add(document)
    key, status = asking.read_sample(chat, reading, sample)
    assert status == "" and reading.documents() == (key, document)


def test_sample_book_that_is_missing_says_so(chat: FakeDocumentChat, reading: BackgroundReading) -> None:
    assert asking.read_sample(chat, reading, None) == ("", asking.format.notice(
        "This copy of Lectern has no sample book (folder samples); add a file in Library."))  # fmt: skip


def test_a_question_counts_what_is_read_so_far(chat: FakeDocumentChat, document: str) -> None:
    steps = chat.read(document)
    for _ in range(20):
        next(steps)
    steps.close()
    *_, last = asking.answer(chat, "Who kept a lantern?", None, [document], so_far=[document])
    assert "nswered from the first " in last.messages[-1]["foot"]
    assert chat.library.document(document).state == "new"


def test_what_an_answer_waits_for_is_said(chat: FakeDocumentChat) -> None:
    with chat.jobs.claim("reading A Quiet Coast"):
        assert "reading A Quiet Coast goes on meanwhile, slower" in asking.thinking(chat)
    with chat.jobs.claim("testing passkeys"):
        assert "Waiting for the model: testing passkeys" in asking.thinking(chat)
    assert "Thinking" in asking.thinking(chat)


def test_a_sample_book_ships() -> None:
    book = asking.sample_book()
    assert book is not None and 20_000 < book.stat().st_size < 2_000_000


def test_picker_marks_unread_documents(chat: FakeDocumentChat, document: str) -> None:
    assert asking.choices(chat) == [("A Quiet Coast (not read yet)", document)]
    list(chat.read(document))
    assert asking.choices(chat) == [("A Quiet Coast", document)]


def test_welcome_names_what_is_asked(chat: FakeDocumentChat, document: str) -> None:
    assert "A Quiet Coast" in asking.welcome(chat, [document])
    assert "A Quiet Coast" not in asking.welcome(chat, [])


def test_nothing_answered_gives_the_question_back(chat: FakeDocumentChat, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(question, **options):
        yield Done("", "c-gone", (), AnswerStats(stopped=True))

    monkeypatch.setattr(chat, "ask", stopped)
    *_, last = asking.answer(chat, "Who?", None, [])
    assert (last.chat, last.draft, last.messages) == (None, "Who?", ()) and "Stopped before" in last.status


def test_trying_again_and_stopping_at_once_keeps_the_question(
    chat: FakeDocumentChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, asked = asking.answer(chat, "Who kept the light?", None, [])

    def stopped(key, **options):
        chat._kept(key).messages.clear()
        yield Done("", key, (), AnswerStats(stopped=True))

    monkeypatch.setattr(chat, "retry", stopped)
    *_, last = asking.again(chat, asked.chat)
    assert (last.chat, last.draft, last.messages) == (asked.chat, "Who kept the light?", ())


def test_another_answer_that_is_stopped_leaves_the_old_one(
    chat: FakeDocumentChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, asked = asking.answer(chat, "Who kept the light?", None, [])

    def stopped(key, **options):
        yield Done("The kee", key, (), AnswerStats(stopped=True, saved=False, note="Stopped; it stays."))

    monkeypatch.setattr(chat, "retry", stopped)
    *_, last = asking.again(chat, asked.chat)
    assert last.messages == asked.messages and "Stopped; it stays." in last.status and "lt-bad" not in last.status


def test_a_stop_before_the_first_step_counts(chat: FakeDocumentChat) -> None:
    views = asking.answer(chat, "Who kept the light?", None, [])
    assert next(views).running
    chat.jobs.stop()
    *_, last = views
    assert last.draft == "Who kept the light?" and "Stopped before" in last.status and chat.saved.chats() == []
    *_, kept = asking.answer(chat, "Who kept the light?", None, [])
    views = asking.again(chat, kept.chat)
    next(views)
    chat.jobs.stop()
    *_, last = views
    assert last.messages == kept.messages and "Stopped before" in last.status


def test_an_answer_that_was_cut_ends_in_an_ellipsis(chat: FakeDocumentChat) -> None:
    *_, cut = asking.answer(chat, "Who kept the light?", None, [], GenerationConfig(max_new_tokens=3))
    *_, whole = asking.answer(chat, "Who kept the light?", None, [])
    assert cut.messages[1]["text"] == "You asked: Who…" and not whole.messages[1]["text"].endswith("…")


def test_a_reloaded_page_goes_on_with_its_chat(chat: FakeDocumentChat) -> None:
    assert asking.reopened(chat, "") is None
    before = asking.before_first_answer(chat)
    assert asking.reopened(chat, before) is None
    *_, first = asking.answer(chat, "Who?", None, [])
    assert asking.reopened(chat, before) == first.chat == asking.reopened(chat, first.chat)
    assert asking.reopened(chat, asking.before_first_answer(chat)) is None
    assert asking.reopened(chat, "c-deleted") is None
