"""The Models tab, and the notices about other models, over a fake chat."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.models.fits import fit
from app.records import OtherModel
from app.ui import chats_tab, models_tab, switching
from tests.fake_chat import FakeDocumentChat


def choice(chat: FakeDocumentChat, name: str, number: int = 0) -> str:
    return next(model.choices[number].id for model in chat.shelf.models() if model.name == name)


def load(chat: FakeDocumentChat, name: str, number: int = 0) -> list[str]:
    return list(switching.load(chat, choice(chat, name, number)))


def card(html: str, name: str) -> str:
    """The HTML of one model."""
    return next(part for part in html.split('<li class="lt-card') if f"<h4>{name}</h4>" in part)


def test_every_model_has_a_card_with_what_it_is(chat: FakeDocumentChat) -> None:
    html = models_tab.listing(chat)
    assert html.index("Checkpoints") < html.index("harbour-1b") < html.index("Adapters") < html.index("harbour-sf")
    assert html.index("harbour-sf") < html.index("Cannot be used") < html.index("half-copied")
    small = card(html, "lectern-small")
    assert "loaded</span>" in small and "model-load" not in small
    assert "Checkpoint · 2.5M parameters · float32 · trained length 2,048 tokens · 10 MB" in small
    assert "<dt>folder</dt><dd>/models/lectern-small</dd>" in small and "In Lectern&#x27;s folder" in small
    assert f'data-id="{choice(chat, "harbour-1b")}"' in card(html, "harbour-1b")
    assert "LoRA adapter · rank 8, alpha 16 · on k_proj, o_proj" in card(html, "harbour-sf")
    for number, base in enumerate(("lectern-small", "harbour-1b")):
        assert choice(chat, "harbour-sf", number) in card(html, "harbour-sf")
        assert f"Load on {base}" in card(html, "harbour-sf")
    broken = card(html, "half-copied")
    assert "weights are missing" in broken and "model-load" not in broken


def test_what_fits_and_how_fast_it_would_read(chat: FakeDocumentChat) -> None:
    large = replace(chat.shelf.models()[1], fit=fit(1_235_814_400, 4_943_257_600, 8 * 10**9, [(10**9, 123.6)]))
    words = "Fits: needs 5.4 GB of memory, 8.0 GB are free; reads about 100 tokens a second here."
    assert words in models_tab.card(large, "")
    huge = replace(large, fit=fit(70_000_000_000, 140_000_000_000, 8 * 10**9, ()))
    assert "Too large for this computer now: needs 154 GB of memory, 8.0 GB are free." in models_tab.card(huge, "")


def test_models_to_download_are_offered_with_size_licence_and_speed(chat: FakeDocumentChat) -> None:
    html = models_tab.offers(chat)
    small = html[html.index("<h4>Qwen2.5-0.5B-Instruct</h4>") :].partition("</li>")[0]
    assert "494M parameters · 988 MB · Apache 2.0" in small and "reads about 200 tokens a second here" in small
    assert 'data-id="Qwen/Qwen2.5-0.5B-Instruct" aria-label="Download Qwen2.5-0.5B-Instruct">' in small
    large = html[html.index("<h4>Mistral-7B") :].partition("</li>")[0]
    assert "Too large for this computer now" in large and " disabled>" in large
    chat.offline = "This computer has no connection to a network."
    html = models_tab.offers(chat)
    assert html.count(" disabled>") == html.count("<h4>") == html.count("no connection to a network.")


def test_a_download_tells_how_far_it_is_and_can_be_stopped(chat: FakeDocumentChat) -> None:
    name = "Qwen/Qwen2.5-0.5B-Instruct"
    lines = list(models_tab.fetch(chat, name))
    assert any("400 MB of 988 MB" in line and 'aria-valuenow="40"' in line for line in lines)
    assert f"{name} is here" in lines[-1]
    steps = models_tab.fetch(chat, name)
    next(steps), next(steps)
    assert "is on its way" in list(models_tab.fetch(chat, name))[-1] and " disabled>" in models_tab.offers(chat)
    chat.fetching.stop()
    assert "was stopped; what came is kept" in list(steps)[-1]
    assert "not on the list" in list(models_tab.fetch(chat, "evil/model"))[-1]


def test_a_model_is_unloaded_until_it_is_needed(chat: FakeDocumentChat) -> None:
    assert 'data-do="model-unload"' in card(models_tab.listing(chat), "lectern-small")
    assert "lectern-small is unloaded" in models_tab.unload(chat)
    assert chat.model.model_state().state == "unloaded"
    chat.model.engine()
    assert chat.model.model_state().state == "ready"


def test_names_and_facts_are_escaped(chat: FakeDocumentChat, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(chat.shelf.models()[0], name="<b>x", facts={"rope": "<script>"}, reasons=("<i>",), place="<u>")
    monkeypatch.setattr(chat, "models", lambda: [model])
    html = models_tab.listing(chat)
    assert not any(tag in html for tag in ("<b>x", "<script>", "<i>", "<u>"))


@pytest.mark.parametrize(
    ("text", "short"),
    [("2,519,424", "2.5M"), ("70,553,706,496", "70.6B"), ("123,456,789", "123M"), ("999", "999"), ("many", "many")],
)
def test_parameters_are_said_shortly(text: str, short: str) -> None:
    assert models_tab.parameters(text) == short


def test_loading_tells_how_far_it_is_and_moves_the_mark(chat: FakeDocumentChat) -> None:
    lines = load(chat, "harbour-1b")
    assert "Loading harbour-1b: looking at its files<" in lines[0]
    assert "trying it out · 4" in lines[2] and "harbour-1b is loaded." in lines[-1]
    html = models_tab.listing(chat)
    assert "loaded</span>" in card(html, "harbour-1b") and "model-load" in card(html, "lectern-small")
    load(chat, "harbour-sf", 1)
    html = models_tab.listing(chat)
    assert "loaded</span>" in card(html, "harbour-sf") and "Load on harbour-1b" not in card(html, "harbour-sf")
    assert "Load on lectern-small" in card(html, "harbour-sf")


def test_a_model_that_cannot_be_loaded_says_why_and_the_old_one_goes_on(chat: FakeDocumentChat) -> None:
    assert "needs about 131.4 GiB" in load(chat, "heavy-70b")[-1]
    assert chat.model.model_state().name == "lectern-small" and "loaded</span>" in card(
        models_tab.listing(chat), "lectern-small"
    )
    assert "is gone" in list(switching.load(chat, "no such id"))[-1]


def test_folders_are_added_and_removed(chat: FakeDocumentChat) -> None:
    status, _, _, kept = models_tab.add(chat, "/nowhere")
    assert "no such folder" in status and kept == ""
    status, _, _, kept = models_tab.add(chat, "/big/<models>")
    assert "Found there: harbour-1b." in status and "/big/&lt;models&gt;" in kept
    status, _, _, kept = models_tab.forget(chat, "/big/<models>")
    assert status == kept == ""
    assert "not among" in models_tab.forget(chat, "/big/<models>")[0]


def test_a_chat_of_another_model_says_so_and_offers_the_way_back(chat: FakeDocumentChat) -> None:
    list(chat.ask("Who?"))
    assert switching.notice(chat, None) == switching.notice(chat, "c1") == ""
    assert "asking now" not in chats_tab.listing(chat)
    load(chat, "harbour-1b")
    html = switching.notice(chat, "c1")
    assert "read with <b>lectern-small</b>, and <b>harbour-1b</b> is loaded" in html
    assert "12,345 tokens again with harbour-1b, about 1 min 15 s" in html
    assert f'data-do="model-back" data-id="{choice(chat, "lectern-small")}"' in html
    row = chats_tab.listing(chat)
    assert "Read with lectern-small; asking now reads 12,345 tokens again with harbour-1b" in row
    assert f'data-do="chat-model" data-id="{choice(chat, "lectern-small")}"' in row
    load(chat, "lectern-small")
    assert switching.notice(chat, "c1") == ""


def test_without_the_old_models_files_there_is_no_button(chat: FakeDocumentChat, monkeypatch) -> None:
    list(chat.ask("Who?"))
    other = OtherModel("<old>", "new", "", 7)
    monkeypatch.setattr(chat, "other_model", lambda key: other)
    html = switching.notice(chat, "c1")
    assert "button" not in html and "add its folder in Models" in html and "<old>" not in html
    assert "7 tokens again with new." in html  # nothing is known of the speed


def test_an_answer_of_another_model_says_whose_it_is(chat: FakeDocumentChat, book: Path) -> None:
    from app.ui import asking

    list(chat.ask("Who?"))
    assert "by lectern-small" not in asking.show(chat, "c1").messages[-1]["foot"]
    load(chat, "harbour-1b")
    assert "by lectern-small" in asking.show(chat, "c1").messages[-1]["foot"]
