"""A chat's own settings, over a fake chat."""

from dataclasses import replace

from app.records import AnswerSettings
from app.ui import answer_settings, asking
from tests.fake_chat import FakeDocumentChat

WARM = AnswerSettings(0.7, 0.9, 32, "Be brief.")


def test_a_chat_keeps_its_own_and_new_ones_begin_with_the_default(chat: FakeDocumentChat) -> None:
    list(chat.ask("one", system="Be brief."))
    answer_settings.keep(chat, "c1", WARM)
    assert chat.saved.answer_settings("c1") == WARM and chat.saved.answer_settings() == AnswerSettings()
    assert "New chats begin" in answer_settings.make_default(chat, AnswerSettings(0.3))
    list(chat.ask("two"))
    assert chat.saved.answer_settings("c2").temperature == 0.3 and chat.saved.answer_settings("c1") == WARM


def test_another_system_text_says_that_turns_are_run_again(chat: FakeDocumentChat) -> None:
    list(chat.ask("one"))
    assert answer_settings.change(chat, "c1", AnswerSettings(0.7)) == ""
    assert "run again" in answer_settings.change(chat, "c1", AnswerSettings(0.7, system="In verse."))
    assert answer_settings.change(chat, None, WARM) == ""
    assert "not here any more" in answer_settings.change(chat, "gone", WARM)


def test_controls_and_settings_say_the_same() -> None:
    *values, model = answer_settings.values(WARM, [answer_settings.ANY])
    assert answer_settings.chosen(*values, model["value"]) == WARM
    gone = answer_settings.values(replace(WARM, model="0f"), [answer_settings.ANY])[-1]
    assert gone["value"] == "0f" and ("one that is not here any more", "0f") in gone["choices"]


def test_a_chat_loads_its_own_model_first(chat: FakeDocumentChat) -> None:
    offered = dict(answer_settings.models(chat))
    middle, heavy = offered["harbour-1b"], offered["heavy-70b"]

    def asked(wanted: str) -> list[asking.View]:
        return list(answer_settings.loaded_first(chat, wanted, None, "Who?", asking.answer(chat, "Who?", None, [])))

    views = asked(middle)
    assert "Loading harbour-1b" in views[0].status and views[-1].chat and chat.state.name == "harbour-1b"
    assert not any("Loading" in view.status for view in asked(middle))
    *_, failed = asked(heavy)
    assert failed.draft == "Who?" and failed.chat is None and "harbour-1b goes on" in failed.status
    made = answer_settings.generation(WARM)
    assert (made.temperature, made.top_p, made.max_new_tokens) == (0.7, 0.9, 32)
