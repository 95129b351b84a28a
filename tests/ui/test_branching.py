"""Fork and edit under an answer, over a fake chat."""

import pytest

from app.errors import NotFoundError
from app.ui import asking, branching
from tests.fake_chat import FakeDocumentChat


def talked(chat: FakeDocumentChat) -> list[int]:
    """Two turns in chat c1; ids of the answers."""
    list(chat.ask("About whales"))
    list(chat.ask("About <b>ships</b>", chat="c1"))
    return [message.id for message in chat.saved.messages("c1") if message.role == "assistant"]


def test_every_answer_offers_both(chat: FakeDocumentChat) -> None:
    first, second = talked(chat)
    feet = [message["foot"] for message in asking.show(chat, "c1").messages if "foot" in message]
    for foot, key in zip(feet, (first, second), strict=True):
        assert f'data-do="fork" data-id="{key}"' in foot and f'data-do="edit" data-id="{key}"' in foot
    assert "\nAbout whales</textarea>" in feet[0] and "<b>ships" not in feet[1]


def test_fork_takes_over_what_is_above(chat: FakeDocumentChat) -> None:
    first, second = talked(chat)
    fork = branching.fork(chat, "c1", str(first))
    assert fork == "c2" and len(chat.saved.messages("c2")) == 2
    assert len(chat.saved.messages(branching.fork(chat, "c1", str(second)))) == 4
    assert branching.fork(chat, None, "1") is None


@pytest.mark.parametrize(("chat_id", "answer"), [("gone", "1"), ("c1", "99"), ("c1", "nobody"), ("c1", "")])
def test_a_fork_of_what_is_gone_makes_no_chat(chat: FakeDocumentChat, chat_id: str, answer: str) -> None:
    talked(chat)
    known = len(chat.saved.chats())
    with pytest.raises(NotFoundError):
        branching.fork(chat, chat_id, answer)
    assert len(chat.saved.chats()) == known


def test_edit_asks_in_the_place_of_a_question(chat: FakeDocumentChat) -> None:
    first, _ = talked(chat)
    start, *_, last = branching.edit(chat, "c1", str(first), "About krill")
    assert [message["text"] for message in start.messages] == ["About krill"] and start.running
    assert last.messages[0]["text"] == "About krill" and not last.running
    assert [m.content for m in chat.saved.messages("c1")][::2] == ["About krill"]


def test_edit_that_cannot_be_says_so(chat: FakeDocumentChat) -> None:
    first, _ = talked(chat)
    wrong = ((None, "1", "x"), ("c1", "99", "x"), ("c1", "nobody", "x"), ("c1", str(first), " "))
    for chat_id, answer, question in wrong:
        (view,) = branching.edit(chat, chat_id, answer, question)
        assert "no such question" in view.status
    assert len(chat.saved.messages("c1")) == 4


def test_versions_are_told_and_shown(chat: FakeDocumentChat) -> None:
    first, second = talked(chat)
    before = [m.content for m in chat.saved.messages("c1")]
    *_, view = asking.again(chat, "c1")
    feet = [message["foot"] for message in view.messages if "foot" in message]
    assert "lt-versions" not in feet[0] and "<span>2/2</span>" in feet[1]
    earlier, later = chat.saved.versions("c1")[chat.saved.messages("c1")[-1].id].turns
    assert f'data-do="version" data-id="{earlier}"' in feet[1] and f'data-id="{later}"' not in feet[1]
    shown = branching.version(chat, "c1", str(earlier))
    assert "<span>1/2</span>" in shown.messages[-1]["foot"] and [m.content for m in chat.saved.messages("c1")] == before
    assert "not here any more" in branching.version(chat, "c1", "999").status
    list(branching.edit(chat, "c1", str(first), "About krill"))
    assert [m.content for m in chat.saved.messages("c1")][::2] == ["About krill"]
    branching.version(chat, "c1", str(first - 1))
    assert [m.content for m in chat.saved.messages("c1")] == before
