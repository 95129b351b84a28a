"""A chat's own settings, over a fake chat."""

from app.records import AnswerSettings
from app.ui import answer_settings
from tests.fake_chat import FakeDocumentChat

WARM = AnswerSettings(0.7, 0.9, 32, "Be brief.")


def test_a_chat_keeps_its_own_and_new_ones_begin_with_the_default(chat: FakeDocumentChat) -> None:
    list(chat.ask("one", system="Be brief."))
    answer_settings.keep(chat, "c1", WARM)
    assert chat.answer_settings("c1") == WARM and chat.answer_settings() == AnswerSettings()
    assert "New chats begin" in answer_settings.make_default(chat, AnswerSettings(0.3))
    list(chat.ask("two"))
    assert chat.answer_settings("c2").temperature == 0.3 and chat.answer_settings("c1") == WARM


def test_another_system_text_says_that_turns_are_run_again(chat: FakeDocumentChat) -> None:
    list(chat.ask("one"))
    assert answer_settings.change(chat, "c1", AnswerSettings(0.7)) == ""
    assert "run again" in answer_settings.change(chat, "c1", AnswerSettings(0.7, system="In verse."))
    assert answer_settings.change(chat, None, WARM) == ""
    assert "not here any more" in answer_settings.change(chat, "gone", WARM)


def test_controls_and_settings_say_the_same() -> None:
    assert answer_settings.chosen(*answer_settings.values(WARM)) == WARM
    made = answer_settings.generation(WARM)
    assert (made.temperature, made.top_p, made.max_new_tokens) == (0.7, 0.9, 32)
