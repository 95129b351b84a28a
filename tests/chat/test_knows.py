"""How an answer says where it knows from."""

import pytest

from app.chat.knows import Unasked, known, looked_beyond
from app.records import FROM_MEMORY
from app.runtime.evidence import Shares
from app.store.checked import stats as checked
from app.tasks.scoring import FROM_MODEL, HARDLY, knows
from tests.chat.opened import SHORT, Open, finish, open_chat, write  # noqa: F401


def test_what_gained_most_over_an_empty_question_counts() -> None:
    assert looked_beyond([0.1, 0.3, 0.2], [0.1, 0.1, 0.3]) == pytest.approx(0.2)
    assert looked_beyond([0.1, 0.3], ()) == 0.3  # nothing is known of the empty question
    assert looked_beyond((), ()) == 0


def test_an_answer_that_looks_nowhere_more_than_for_nothing_is_from_memory() -> None:
    nothing = Unasked((), Shares((0.2, 0.1)))
    same = known(Shares((0.15, 0.1), 0.0, 0.3), nothing)
    assert same["source"] == FROM_MEMORY and same["on_documents"] == 0.25 and same["looked_beyond"] == 0
    assert known(Shares((0.1, 0.2), 0.0, 0.3), nothing)["source"] == "text"
    assert known(Shares((), 0.1, 0.3), Unasked())["source"] == ""  # there is no document


def test_the_line_tells_shares_and_what_they_mean() -> None:
    stats = {"on_documents": 0.31, "on_chat": 0.02, "on_question": None, "source": "text", "held": 2.0}
    assert knows(stats) == "Attention: 31% on the documents, 2% on the chat."
    assert knows(stats | {"source": FROM_MEMORY}).endswith(FROM_MODEL)
    assert knows(stats | {"held": -0.5}).endswith(HARDLY)
    assert knows(stats | {"source": ""}) == knows({}) == ""


def test_answers_keep_how_they_know(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path))
    first = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    second = finish(chat.ask("and then?", chat=first.chat, generation=SHORT))
    plain = finish(chat.ask("who?", generation=SHORT))
    assert first.stats.on_chat == 0 < first.stats.on_documents < 1 and second.stats.on_chat > 0
    assert first.stats.source in ("text", FROM_MEMORY) and isinstance(first.stats.held, float)
    assert plain.stats.source == "" and plain.stats.on_documents == 0 and plain.stats.held is None
    kept = chat.saved.messages(first.chat)[1].stats
    assert {name: kept[name] for name in ("source", "held", "on_question")} == {
        name: getattr(first.stats, name) for name in ("source", "held", "on_question")
    }
    again = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    assert again.stats.held == first.stats.held and again.answer == first.answer  # the chat is as it was


@pytest.mark.parametrize("held", [True, "2", float("nan"), [1.0]])
def test_a_chat_from_elsewhere_brings_figures_or_is_refused(held) -> None:
    assert checked({"held": -1.5, "on_chat": None}) == {"held": -1.5, "on_chat": None}
    with pytest.raises(TypeError):
        checked({"held": held})
