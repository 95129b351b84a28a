"""The Models tab in Chromium: over a fake chat, and two tiny checkpoints exchanged in the real app."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import Visit, find_chromium, visiting
from tests.serving import serving
from tests.chat.checkpoints import save_checkpoint

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")
FAKE_PACE_S = 0.05


def card(page: Page, name: str):
    return page.locator(".lt-card", has=page.get_by_role("heading", name=name, exact=True))


def test_a_model_is_loaded_and_a_chat_leads_back(visit: Visit) -> None:
    page = visit.page
    visit.ask("Where is the harbour?")
    visit.tab("Models")
    expect(card(page, "half-copied")).to_contain_text("weights are missing")
    card(page, "heavy-70b").get_by_role("button", name="Load").click()
    expect(page.locator("#models-status .lt-bad")).to_contain_text("lectern-small goes on")
    expect(page.locator(".lt-model")).to_contain_text("lectern-small")
    card(page, "harbour-1b").get_by_role("button", name="Load").click()
    expect(page.locator("#models-status")).to_contain_text("harbour-1b is loaded")
    expect(page.locator(".lt-model")).to_contain_text("harbour-1b")
    expect(card(page, "harbour-1b")).to_contain_text("loaded")
    visit.tab("Chats")
    expect(page.locator(".lt-chat").first).to_contain_text("Read with lectern-small")
    visit.tab("Ask")
    expect(page.locator("#other-model")).to_contain_text("12,345 tokens again with harbour-1b")
    page.locator("#other-model").get_by_role("button", name="Load lectern-small").click()
    expect(page.locator("#other-model .lt-notice")).to_have_count(0)
    expect(page.locator(".lt-model")).to_contain_text("lectern-small")
    # a chat may have a model of its own, which its next question loads
    page.locator("button", has_text="Answer settings").click()
    own = page.get_by_label("Model", exact=True)
    own.click()
    page.get_by_role("option", name="harbour-1b", exact=True).click()
    visit.ask("And the ships?")
    expect(page.locator(".lt-model")).to_contain_text("harbour-1b")
    page.click("#new-chat")
    expect(own).to_have_value("whichever is loaded")
    assert not visit.scrolls_sideways()


def test_a_folder_is_added_and_removed(visit: Visit) -> None:
    page = visit.page
    visit.tab("Models")
    page.fill("#model-folder input, #model-folder textarea", "/nowhere")
    page.click("#model-add")
    expect(page.locator("#models-status .lt-bad")).to_contain_text("no such folder")
    page.fill("#model-folder input, #model-folder textarea", "/my/models")
    page.keyboard.press("Enter")
    expect(page.locator(".lt-folders")).to_contain_text("/my/models")
    page.locator(".lt-folders").get_by_role("button", name="Remove").click()
    expect(page.locator(".lt-folders")).to_have_count(0)


def test_two_checkpoints_take_turns_in_one_chat(browser: Browser, tmp_path: Path) -> None:
    """Each reads the document once; going back to the first reads nothing again."""
    home = tmp_path / "home"
    for seed, name in enumerate(("alpha", "beta")):
        save_checkpoint(home / "models" / name, seed)
    book = tmp_path / "harbour.txt"
    book.write_text("The harbour master kept a lantern. " * 6, encoding="utf-8")
    command = ["-m", "app.cli", "serve", "--no-browser", "--port", "0", "--threads", "1", "--home", str(home)]
    with serving([*command, "--model", str(home / "models" / "alpha")], tmp_path) as server:
        with visiting(browser, server.url) as visit:
            page = visit.page
            expect(page.locator(".lt-model")).to_contain_text("alphaready", timeout=60_000)
            visit.add(book, timeout_s=60)
            visit.row("harbour").get_by_role("button", name="Ask").click()
            expect(page.locator("#picker .token")).to_have_text(re.compile(r"^harbour\s*$"))
            page.locator("button", has_text="Answer settings").click()
            page.get_by_label(re.compile("number input for Longest answer")).fill("16")
            visit.ask("Who kept it?", timeout_s=60)
            visit.tab("Models")
            card(page, "beta").get_by_role("button", name="Load").click()
            expect(page.locator("#models-status")).to_contain_text("beta is loaded", timeout=60_000)
            expect(card(page, "alpha")).to_contain_text("memory of 1 document and 1 chat")
            visit.tab("Ask")
            expect(page.locator("#picker .token")).to_contain_text("not read yet")
            other = page.locator("#other-model")
            expect(other).to_contain_text(re.compile(r"[\d,]+ tokens again with beta, about [\d.]+ s"))
            visit.ask("And then?", timeout_s=60)
            expect(page.locator(".lt-remark:not(.lt-knows)").last).to_contain_text("other weights")
            expect(page.locator(".lt-remark", has_text="by alpha")).to_have_count(1)
            expect(other.locator(".lt-notice")).to_have_count(0)  # its memory is of beta now
            visit.tab("Models")
            card(page, "alpha").get_by_role("button", name="Load").click()
            expect(page.locator("#models-status")).to_contain_text("alpha is loaded", timeout=60_000)
            visit.tab("Ask")
            expect(other).to_contain_text("This chat was read with beta, and alpha is loaded")
            expect(page.locator("#picker .token")).to_have_text(re.compile(r"^harbour\s*$"))
            other.get_by_role("button", name="Load beta").click()
            expect(other.locator(".lt-notice")).to_have_count(0, timeout=60_000)
            expect(page.locator(".lt-model")).to_contain_text("betaready")
            visit.ask("Where?", timeout_s=60)
            expect(page.locator(".lt-foot").last.get_by_text("read again")).to_have_count(0)
            assert visit.outside == [] and visit.errors == [] and server.contacts == []
