"""What stands under an answer."""

import re
from typing import Any

import pytest

from app.records import Evidence, Message, ModelState
from app.ui import foot
from tests.fake_chat import NO_ANSWER, model_state

TRICK = "<img src=x onerror=alert(1)>\"'"
OTHER = model_state(name="harbour-1b", demonstration=False)


def evidence(**changes: object) -> Evidence:
    values = dict(
        id="e2-1", document="d1", title="Book", label="12", part=3, char_start=0, char_end=5, text="words", weight=0.344
    )
    return Evidence(**(values | changes))


def under(content: str, loaded: ModelState | None = None, question: str = "", **stats: Any) -> str:
    message = Message(2, "assistant", content, stats, (evidence(), evidence(id="e2-2")))
    return foot.foot(message, {"d1": "pdf"}, question, loaded)


def test_a_passage_says_what_found_it() -> None:
    assert "found it" not in foot.chip(evidence(), "pdf")
    words = foot.chip(evidence(found_by="words"), "pdf")
    assert "The words of the question found it." in words and ">words</span>" in words


def test_cost_is_a_sentence_and_the_rest_is_folded() -> None:
    stats = {"tokens_reused": 21_973, "tokens_read": 12, "seconds": 1.42, "tokens_per_s": 31.2, "policy": "keep-all"}
    assert foot.cost(stats) == "Read 12 new tokens; 21,973 came from memory."
    assert foot.cost({"tokens_read": 1}) == "Read 1 new token."
    assert foot.details(stats) == "1.4 s · 31 tokens/s · policy keep-all"
    assert foot.details({"tokens_evicted": 1200, "tokens_quantized": 0}) == "1,200 evicted"
    assert foot.details({"second_look": 13}) == "second look at 13 passages"
    assert ">Read 12 new tokens; 21,973 came from memory.</summary>1.4 s · 31" in under("Yes.", **stats)


def test_what_the_user_should_know_is_not_folded() -> None:
    stats = {"stopped": True, "mute": ["Book#iv"], "note": "read again", "model": "lectern-small"}
    lines = ["You stopped it.", "Answered by lectern-small.", "Did not look in Book#iv.", "read again"]
    assert foot.remarks(stats, "harbour-1b") == lines
    assert foot.remarks({"model": "", "stopped": False}, "harbour-1b") == foot.remarks({}) == []
    assert re.findall("<p class=lt-remark>(.*?)</p>", under("Yes.", OTHER, **stats)) == lines


def test_why_an_answer_ended_is_told() -> None:
    assert foot.remarks({"ended": "stop", "new_tokens": 9}) == []
    assert foot.remarks({"ended": "repetition", "new_tokens": 99}) == ["Stopped because the answer repeated itself."]
    (line,) = foot.remarks({"ended": "length", "new_tokens": 256})
    assert line == "Cut off at the longest answer, 256 tokens. Answer settings allow a longer one."


def test_chip_carries_its_evidence_and_says_what_its_share_is() -> None:
    chip = foot.chip(evidence(), "pdf")
    assert 'data-do="passage" data-id="e2-1"' in chip
    assert [">Book<", ">p. 12<", ">34%<"] == re.findall(r">(?:Book|p\. 12|34%)<", chip)
    assert "34%, the share of the attention on the documents. Not a measure of how sure" in chip


def test_numbers_in_the_text_open_the_passages_of_the_same_numbers() -> None:
    message = Message(2, "assistant", "Yes.", {"cited": [[3, 2], [4, 9]]}, (evidence(), evidence(id="e2-2")))
    ((place, html),) = foot.marks(message)
    assert place == 3 and 'data-do="passage" data-id="e2-2"' in html and html.endswith(">2</button>")
    assert 'aria-label="Passage 2: Book, 12"' in html
    assert re.findall("<span class=lt-chip-number>(.)<", foot.foot(message, {})) == ["1", "2", "1", "2"]
    assert foot.marks(Message(2, "assistant", "Yes.", {}, message.evidence)) == ()  # of an older release


def test_foot_has_chips_cost_and_tools() -> None:
    html = under("Yes.", question="Really?", tokens_read=7)
    assert html.count('data-do="passage"') == html.count('data-do="without"') == 2
    assert "Looked at (share of attention)" in html and "Read 7 new tokens" in html
    assert all(f'data-do="{do}"' in html for do in ("retry", "copy", "fork", "edit"))
    bare = foot.foot(Message(2, "assistant", "Yes."), {})
    assert "Looked at" not in bare and "Answer without" not in bare


def test_foot_says_how_the_answer_knows() -> None:
    html = under("Yes.", on_documents=0.31, on_chat=0.0, on_question=0.2, source="text")
    assert "<b>How do you know?</b> Attention: 31% on the documents, 0% on the chat, 20% on the question." in html
    assert "How do you know" not in under("Yes.")


def test_under_a_refusal_the_passages_support_nothing() -> None:
    html = under(NO_ANSWER, model_state())
    assert "<summary>Looked at 2 passages without finding an answer</summary>" in html
    assert "share of attention)" not in html and 'data-do="without"' not in html
    assert html.index("<details") < html.index('data-do="passage"') < html.index("</details>")
    longer = f"{NO_ANSWER} But {'much else is told of the house and of those who lived there. ' * 3}"
    assert "without finding" not in under(longer, model_state())


@pytest.mark.parametrize(
    ("content", "loaded", "model", "told"),
    [
        (NO_ANSWER, model_state(), "lectern-small", True),
        (NO_ANSWER, model_state(), "", True),
        (NO_ANSWER, model_state(), "harbour-1b", False),
        (NO_ANSWER, OTHER, "harbour-1b", False),
        ("In Rye.", model_state(), "lectern-small", False),
    ],
)
def test_a_demonstration_model_owns_that_it_may_refuse_wrongly(
    content: str, loaded: ModelState, model: str, told: bool
) -> None:
    assert ("may say so although the text does say" in under(content, loaded, model=model)) == told


def test_without_a_text_the_model_is_not_blamed() -> None:
    html = foot.foot(Message(2, "assistant", NO_ANSWER, {"note": "no document is attached"}), {}, "", model_state())
    assert "no document is attached" in html and "may say so" not in html


def test_foreign_text_is_escaped() -> None:
    message = Message(2, "assistant", TRICK, {"note": TRICK}, (evidence(title=TRICK, label=TRICK, id=TRICK),))
    html = foot.foot(message, {"d1": "pdf"}, TRICK, model_state(name=TRICK))
    assert "<img" not in html and html.count("&lt;img") >= 8


def test_copy_holds_the_answer_as_it_was_written() -> None:
    html = foot.foot(Message(2, "assistant", '1. "one" <b>\n2. *two*'), {})
    assert 'data-text="1. &quot;one&quot; &lt;b&gt;\n2. *two*"' in html
