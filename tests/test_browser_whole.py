"""The page in Chromium over a fake chat: what is told of the whole text."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser import Visit, find_chromium
from tests.serving import ROOT

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")


def book(visit: Visit, folder: Path, title: str) -> None:
    """Add a text of several parts and open a new chat about it."""
    file = folder / f"{title}.txt"
    text = (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")
    file.write_text(f"{title}\n\n{text[:30_000]}", encoding="utf-8")
    visit.add(file)
    visit.row(title).get_by_role("button", name="Ask").click()
    visit.page.locator("#new-chat").click()
    expect(visit.page.locator("#picker")).to_contain_text(title)


def test_an_answer_says_how_it_knows(visit: Visit, tmp_path: Path) -> None:
    book(visit, tmp_path, "Knowing")
    visit.ask("Who kept the light?")
    line = visit.page.locator(".lt-knows")
    expect(line).to_contain_text(
        "How do you know? Attention: 31% on the documents, 2% on the chat, 20% on the question."
    )
    expect(line).to_have_attribute(
        "title", "The rest went to the first words of texts, which always draw attention, and to the answer itself."
    )


def test_the_map_shows_where_an_answer_looked_and_opens_the_place(visit: Visit, tmp_path: Path) -> None:
    book(visit, tmp_path, "Mapped")
    visit.ask("Who kept the light?")
    visit.page.locator(".lt-chip[data-do=passage]").first.click()
    cells = visit.page.locator("#page .lt-map-cells button")
    looked = visit.page.locator("#page .lt-map-cells .lt-map-looked")
    expect(looked.first).to_be_visible()
    assert 0 < looked.count() < cells.count()
    cells.last.click()
    expect(visit.page.locator("#page .lt-page nav").last.locator("input")).not_to_have_value("1")
    expect(cells.last).to_have_attribute("aria-current", "true")
    visit.tab("Library")
    visit.row("Mapped").get_by_role("button", name="Open").click()
    expect(visit.page.locator("#found-page .lt-map-legend")).to_contain_text("100%")


def test_a_question_goes_through_the_whole_text(visit: Visit, tmp_path: Path) -> None:
    book(visit, tmp_path, "Through")
    text = (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")[:30_000]
    times = len(re.findall(r"(?<!\w)Ginger(?!\w)", text, re.IGNORECASE))
    visit.ask('How often does "Ginger" occur?')
    said = visit.page.locator("#talk .lt-md").last
    expect(said).to_contain_text(f"“Ginger” stands {times:,} times in Through")
    expect(visit.page.locator(".lt-foot").last).to_contain_text("Counted by program, not by the model.")
    said.locator(".lt-cite").first.click()
    expect(visit.page.locator("#page .lt-mark").first).to_contain_text(re.compile("Ginger", re.IGNORECASE))
    expect(visit.page.locator("#page .lt-map-cells .lt-map-worked").first).to_be_visible()
    expect(visit.page.locator("#page [data-do=without]")).to_have_count(0)


def test_going_through_is_chosen_and_says_what_it_can(visit: Visit, tmp_path: Path) -> None:
    book(visit, tmp_path, "Chosen")
    visit.page.get_by_text("Where to look").click()
    visit.page.get_by_label("Go through all of it").check()
    visit.page.fill("#question textarea", "why is that so?")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#status")).to_contain_text("going through all of the text answers how often")
    visit.page.get_by_label("Go through all of it").uncheck()
