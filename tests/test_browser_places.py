"""The page in Chromium over a fake chat: files come where one asks; chats have addresses and a place; keys."""

import base64
import io
import re

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from app.ingest import ocr
from tests.browser import Visit, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")

DROP = """([kind, name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name));
  const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  return !document.body.dispatchEvent(event);
}"""
PASTE = """(text) => {
  const data = new DataTransfer();
  data.setData('text/plain', text);
  const event = new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
  return !document.querySelector('#question textarea').dispatchEvent(event);
}"""


PASTE_FILE = """([name, type, base64]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(base64), (one) => one.charCodeAt(0))], name, { type }));
  const event = new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
  return !document.querySelector('#question textarea').dispatchEvent(event);
}"""


def address(page: Page) -> str:
    return page.url.partition("#")[2]


def test_a_file_that_is_dropped_anywhere_is_asked_about(visit: Visit) -> None:
    page = visit.page
    visit.tab("Models")
    text = "The harbour master kept a lantern. " * 40
    assert page.evaluate(DROP, ["dragenter", "Dropped.txt", text]) is False
    expect(page.locator("html")).to_have_class(re.compile("lt-dropping"))
    assert page.evaluate(DROP, ["dragover", "Dropped.txt", text]), "the browser would open the file"
    assert page.evaluate(DROP, ["drop", "Dropped.txt", text]), "the browser would open the file"
    expect(page.locator("html")).not_to_have_class(re.compile("lt-dropping"))
    expect(page.get_by_role("tab", name="Ask", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#picker .token")).to_contain_text("Dropped")
    visit.ask("Who kept the lantern?")
    expect(page.locator(".lt-chip-title").first).to_have_text("Dropped")


def test_a_file_is_chosen_beside_the_question(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_role("button", name="Add documents")).to_have_count(2)  # in the first view, and by the question
    file = {"name": "Chosen.txt", "mimeType": "text/plain", "buffer": b"Chosen words about a harbour."}
    page.set_input_files("input[data-testid='Add documents-upload-button'] >> nth=1", [file])
    expect(page.locator("#picker .token")).to_contain_text("Chosen")


def test_a_long_text_that_is_pasted_becomes_a_document(visit: Visit) -> None:
    page = visit.page
    assert page.evaluate(PASTE, "short") is False
    assert page.evaluate(PASTE, "A long letter: about ships. " * 200)
    expect(page.locator("#picker .token")).to_contain_text("A long letter about ships A")
    expect(page.locator("#question textarea")).to_have_value("")


@pytest.mark.skipif(not ocr.available(), reason="no OCR is installed")
def test_a_picture_of_text_that_is_pasted_is_read(visit: Visit) -> None:
    page, picture = visit.page, io.BytesIO()
    drawn = Image.new("RGB", (900, 200), "white")
    ImageDraw.Draw(drawn).text((40, 60), "The harbour master kept a lantern.", fill="black", font_size=40)
    drawn.save(picture, "PNG")
    file = ["image.png", "image/png", base64.b64encode(picture.getvalue()).decode()]
    assert page.evaluate(PASTE_FILE, file), "the browser would paste it into the question"
    expect(page.locator("#picker .token")).to_contain_text("image.png", timeout=60_000)
    visit.ask("Who kept the lantern?")
    page.locator(".lt-chips .lt-chip").first.click()
    expect(page.locator("#page .lt-scan img")).to_have_js_property("naturalWidth", 1200)
    expect(page.locator("#page")).to_contain_text("read by OCR")


def test_a_chat_has_its_own_answer_settings(visit: Visit) -> None:
    page, longest = visit.page, visit.page.get_by_label("number input for Longest answer")
    page.locator("button", has_text="Answer settings").click()
    usual = longest.input_value()
    longest.fill("64")
    longest.press("Enter")
    visit.ask("What about the cliffs?")
    first = address(page)
    page.click("#new-chat")
    expect(longest).to_have_value(usual)
    visit.ask("What about the beach?")
    page.evaluate("where => { location.hash = where; }", first)
    expect(longest).to_have_value("64")
    page.reload()
    page.locator("button", has_text="Answer settings").click()
    expect(longest).to_have_value("64")
    visit.errors.clear()  # of the reload


def test_a_chat_has_an_address_and_a_place_at_the_side(visit: Visit) -> None:
    page = visit.page
    visit.ask("What about the first thing?")
    expect(page).to_have_url(re.compile("#chat="))
    first = address(page)
    page.locator("body").click(position={"x": 5, "y": 500})
    page.keyboard.press("Control+Shift+O")
    expect(page.locator("#talk")).to_be_hidden()
    expect(page).not_to_have_url(re.compile("#chat="))
    visit.ask("What about the second thing?")
    expect(page).to_have_url(re.compile("#chat="))
    page.go_back()
    expect(page.locator("#talk")).to_be_hidden()
    page.go_back()
    expect(page.locator("#talk .user-row")).to_have_text("What about the first thing?")
    assert address(page) == first
    page.get_by_role("button", name="Toggle Sidebar").click()
    side = page.locator("#side-chats")
    expect(side.locator("[aria-current=page]")).to_contain_text("What about the first thing?")
    side.get_by_role("button", name="What about the second thing?").click()
    expect(page.locator("#talk .user-row")).to_have_text("What about the second thing?")
    expect(side.locator("[aria-current=page]")).to_contain_text("What about the second thing?")
    side.get_by_label("Rename What about the first thing?").click()
    expect(side.get_by_label("New title").and_(page.locator(":visible"))).to_be_focused()
    page.keyboard.type("A better name")
    page.keyboard.press("Enter")
    expect(side).to_contain_text("A better name")


def test_keys_do_what_their_list_says(visit: Visit) -> None:
    page = visit.page
    visit.ask("What about the lamp?")
    page.locator("body").click(position={"x": 5, "y": 500})
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_hidden()
    page.keyboard.press("Control+k")
    expect(page.locator("#side-search :is(input, textarea)")).to_be_focused()
    page.keyboard.type("lamp")
    expect(page.locator("#side-chats .lt-mark").first).to_have_text("lamp")
    page.get_by_role("tab", name="Models", exact=True).focus()
    page.keyboard.press("/")
    expect(page.locator("#question textarea")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".lt-foot form textarea").last).to_be_focused()
    moved = "[...document.querySelectorAll('*')].filter((one) => one.scrollLeft).length"
    assert page.evaluate(moved) == 0, "the talk moved to the side"
    page.keyboard.press("Escape")
    expect(page.locator(".lt-confirm[open]")).to_have_count(0)


def test_the_mark_of_the_model_opens_the_models(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Choose another model").click()
    expect(visit.page.get_by_role("tab", name="Models", exact=True)).to_have_attribute("aria-selected", "true")


def test_the_theme_that_was_chosen_stays(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Light or dark").click()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.reload()
    expect(page.locator("#question textarea")).to_be_visible()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    visit.errors.clear()  # of the reload


def test_a_cut_answer_can_be_longer(visit: Visit) -> None:
    page = visit.page
    page.locator("button", has_text="Answer settings").click()
    page.get_by_label("number input for Longest answer").fill("16")
    page.get_by_label("number input for Longest answer").press("Enter")
    visit.ask("word " * 60)
    expect(page.locator(".lt-remark:not(.lt-knows)")).to_contain_text("16 tokens")
    page.get_by_role("button", name="Longer answer").click()
    expect(page.locator(".lt-remark:not(.lt-knows)")).to_contain_text("32 tokens")
    version = page.locator(".lt-versions span")
    expect(version).to_have_text("2/2")
    page.get_by_label("Earlier version").click()
    expect(page.locator(".lt-remark:not(.lt-knows)")).to_contain_text("16 tokens")
    page.locator("body").click(position={"x": 5, "y": 500})
    page.keyboard.press("ArrowRight")
    expect(version).to_have_text("2/2")
