"""The viewer and the models in Chromium, over a fake chat: pages of a PDF, passages, what fits, downloads."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser import Visit, find_chromium
from tests.serving import Server
from tests.ingest.pdf_maker import drawn, page_objects, pdf_bytes

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def pdf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pdf") / "harbour.pdf"
    pages = [f"Page {number}\nThe harbour master kept lantern {number}.\nHe lit it." for number in range(1, 6)]
    path.write_bytes(pdf_bytes(page_objects([drawn(text) for text in pages])))
    return path


def test_a_pdf_is_leafed_through_searched_and_read_as_text(visit: Visit, pdf: Path) -> None:
    page = visit.page
    visit.add(pdf)
    visit.row("harbour").get_by_role("button", name="Open").click()
    viewer = page.locator("#found-page .lt-page")
    picture = viewer.locator(".lt-scan img")
    expect(picture).to_have_js_property("naturalWidth", 1200)
    viewer.get_by_role("button", name="Next ›").click()
    expect(picture).to_have_attribute("src", re.compile(r"/pages/2\.jpg$"))
    viewer.get_by_label("Go to page").fill("5")
    page.keyboard.press("Enter")
    expect(picture).to_have_attribute("src", re.compile(r"/pages/5\.jpg$"))
    viewer.get_by_label("Find in this document").fill("lantern 3")
    page.keyboard.press("Enter")
    expect(picture).to_have_attribute("src", re.compile(r"/pages/3\.jpg$"))
    expect(viewer.locator(".lt-where")).to_be_in_viewport()
    place = viewer.locator(".lt-where").bounding_box()
    whole = picture.bounding_box()
    line = (place["y"] + place["height"] / 2 - whole["y"]) / whole["height"]
    assert 0.05 < line < 0.12, "the mark is not on the second line of the page"
    viewer.get_by_role("button", name="Text").click()
    expect(viewer.locator(".lt-mark")).to_have_text("lantern")
    expect(picture).to_be_hidden()
    viewer.get_by_role("button", name="Page", exact=True).click()
    expect(picture).to_be_visible()
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)


def test_a_passage_stands_on_its_page_and_moves_nothing(visit: Visit, pdf: Path) -> None:
    page = visit.page
    visit.add(pdf) if not visit.row("harbour").count() else None
    visit.tab("Library")
    visit.row("harbour").get_by_role("button", name="Ask").click()
    visit.ask("What did the harbour master keep?")
    chips = page.locator(".lt-chips .lt-chip")
    before = [chip.bounding_box() for chip in chips.all()]
    chips.first.click()
    expect(page.locator("#page .lt-where").first).to_be_in_viewport()
    assert [chip.bounding_box() for chip in chips.all()] == before, "chips moved under the mouse"
    expect(chips.first).to_have_attribute("aria-current", "true")
    if chips.count() > 1:
        page.get_by_role("button", name="Next passage").click()
        expect(chips.nth(1)).to_have_attribute("aria-current", "true")
        expect(chips.first).not_to_have_attribute("aria-current", "true")


def test_a_pdf_of_images_is_told_in_amber(visit: Visit, tmp_path: Path) -> None:
    image = b"q 400 0 0 400 50 300 cm BI /W 1 /H 1 /BPC 8 /CS /G ID x EI Q"
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf_bytes(page_objects([drawn("The harbour master kept a lantern."), image, image])))
    visit.tab("Library")
    visit.page.set_input_files("#drop input[type=file]", [str(path)])
    expect(visit.row("scan").locator(".lt-partly")).to_be_visible()
    visit.row("scan").get_by_role("button", name="Ask").click()
    expect(visit.page.locator("#picker .token")).to_contain_text("only partly readable")
    expect(visit.page.locator(".lt-welcome .lt-partly")).to_contain_text("scan: 2 of 3 pages hold only images")


def test_without_a_network_no_model_can_be_downloaded_and_it_says_why(visit: Visit, fake: Server) -> None:
    cut = fake.contacts_file.parent / "home" / "offline"
    cut.write_text("This computer has no connection to a network.", encoding="utf-8")
    try:
        visit.tab("Models")
        offers = visit.page.locator("#model-offers .lt-card")
        expect(offers.first).to_contain_text("no connection to a network")
        for offer in offers.all():
            expect(offer.get_by_role("button")).to_be_disabled()
    finally:
        cut.unlink()


def test_models_are_downloaded_and_unloaded(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Choose another model").click()
    offers = page.locator("#model-offers .lt-card")
    expect(offers.filter(has_text="Mistral")).to_contain_text("Too large for this computer now")
    expect(offers.filter(has_text="Mistral").get_by_role("button")).to_be_disabled()
    small = offers.filter(has_text="Qwen2.5-0.5B")
    expect(small).to_contain_text("988 MB · Apache 2.0")
    small.get_by_role("button", name="Download").click()
    expect(page.locator("#models-status")).to_contain_text("is here; load it below")
    page.get_by_role("button", name="Unload lectern-small").click()
    expect(page.locator(".lt-model")).to_contain_text("not loaded")
    visit.tab("Ask")
    visit.ask("And now?")
    expect(page.locator(".lt-model")).to_contain_text("ready")
