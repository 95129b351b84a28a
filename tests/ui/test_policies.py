"""Choosing the policy of a chat, over a fake chat."""

from pathlib import Path

from app.settings import POLICIES
from app.ui import asking, policies
from tests.fake_chat import FakeDocumentChat, model_state


def test_every_policy_is_offered_with_a_line() -> None:
    offered = policies.choices()
    assert [policy for _, policy in offered] == list(POLICIES) == list(policies.LINES)
    assert all(shown.startswith(f"{policy}: ") for shown, policy in offered)


def test_a_new_chat_gets_the_policy_and_tells_it(chat: FakeDocumentChat, book: Path) -> None:
    document = chat.library.add_document(book).id
    list(chat.read(document))
    told, policy = policies.change(chat, None, "streaming", [document])
    assert policy == "streaming" and "Not read under streaming yet: A Quiet Coast" in told
    assert asking.choices(chat, "streaming") == [("A Quiet Coast (not read yet)", document)]
    assert asking.choices(chat) == [("A Quiet Coast", document)]
    *_, last = asking.answer(chat, "Who keeps the lantern?", None, [document], policy=policy)
    assert chat.model.policy_of(last.chat) == "streaming" and "policy streaming" in last.messages[-1]["foot"]
    assert asking.choices(chat, "streaming") == [("A Quiet Coast", document)]
    *_, again = asking.answer(chat, "And the ships?", last.chat, [], policy="full")
    assert chat.asked[-1]["policy"] == "" and "policy streaming" in again.messages[-1]["foot"]


def test_a_chat_with_turns_says_what_becomes_of_them(chat: FakeDocumentChat) -> None:
    *_, last = asking.answer(chat, "Who keeps the lantern?", None, [])
    told, policy = policies.change(chat, last.chat, "full", [])
    assert policy == chat.model.policy_of(last.chat) == "full"
    assert "its turns are run again then, and the answers above stay" in told
    *_, after = asking.answer(chat, "And the ships?", last.chat, [])
    feet = [message["foot"] for message in after.messages if "foot" in message]
    assert "policy keep-all" in feet[0] and "policy full" in feet[1]


def test_a_policy_that_cannot_be_had_leaves_the_other(chat: FakeDocumentChat) -> None:
    key = chat.saved.new_chat()
    for chat_id in (None, key):
        told, policy = policies.change(chat, chat_id, "hoarding", [])
        assert "hoarding: not known" in told and policy == "keep-all"
    chat.state = model_state(state="loading")  # nobody waits for the model to choose
    assert policies.change(chat, None, "h2o", []) == ("", "h2o")
