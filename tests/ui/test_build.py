"""The assembled page: what Gradio is told."""

import os
import re
from pathlib import Path

import pytest

from app.ui import theme
from app.ui.build import build
from tests.fake_chat import FakeDocumentChat, fake_passkey_run


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a page sets where Gradio keeps uploads; give it back afterwards."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")


@pytest.fixture
def config(chat: FakeDocumentChat) -> dict:
    return build(chat, run_passkey=fake_passkey_run).get_config_file()


def test_tabs(config: dict) -> None:
    tabs = [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]
    assert tabs == ["Ask", "Library", "Chats", "Passkey", "Models"]


def test_no_event_is_public(config: dict) -> None:
    assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}


def test_model_work_is_done_one_at_a_time(chat: FakeDocumentChat) -> None:
    blocks = build(chat, run_passkey=fake_passkey_run)
    gpu = {fn.name: fn.concurrency_limit for fn in blocks.fns.values() if fn.concurrency_id == "gpu"}
    assert set(gpu.values()) == {1}
    assert len([fn for fn in blocks.fns.values() if fn.concurrency_id == "gpu"]) == 13


def test_what_is_picked_is_set_only_where_it_is_gone(chat: FakeDocumentChat, book: Path) -> None:
    """The library may be looked at for long, and another document be picked meanwhile."""
    document = chat.library.add_document(book).id
    blocks = build(chat, run_passkey=fake_passkey_run)
    again = next(fn.fn for fn in blocks.fns.values() if fn.name == "again")
    for picked in ([], None, [document]):
        assert "value" not in again(picked, "keep-all")[0]
    assert again([document, "gone"], "keep-all")[0]["value"] == [document]


def test_uploads_stay_in_the_data_folder(chat: FakeDocumentChat, config: dict) -> None:
    assert Path(os.environ["GRADIO_TEMP_DIR"]).is_relative_to(chat.settings.folder)


def test_gradio_does_not_call_home() -> None:
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_chatbot_shows_no_custom_tags(config: dict) -> None:
    (talk,) = [part["props"] for part in config["components"] if part["type"] == "chatbot"]
    assert not talk["allow_tags"] and talk["sanitize_html"] is True


def test_nothing_is_fetched_from_outside() -> None:
    assert not re.search(r"@import|url\(", theme.css())
    assert not re.search(r"(src|href)=", theme.head())


def test_fonts_of_the_theme_exist_with_latin_letters() -> None:
    """Half of Gradio 6.31's font files hold other alphabets only; the whole ones are several times larger."""
    import gradio

    static = Path(gradio.__file__).parent / "templates" / "frontend"
    faces = re.findall(r"url\('(static/fonts/[^']+)'\)", "".join(theme.theme()._font_css))
    assert len(faces) == 4
    assert all((static / face).stat().st_size > 30_000 for face in faces)
