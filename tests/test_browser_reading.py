"""The page in Chromium over a fake chat: documents are read behind, over reloads and tabs, and asked meanwhile."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import Visit, find_chromium, visiting
from tests.serving import ROOT, Server
from tests.fake_chat import ENDLESS

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")


def opened(visit: Visit) -> None:
    """Open the list under the line, if it is not open."""
    if not visit.page.locator("#reading details[open]").count():
        visit.page.locator("#reading summary").click()


def put(visit: Visit, folder: Path, *titles: str) -> None:
    """Put texts of these titles into the library; the queue is empty before."""
    cancel = visit.page.locator("#reading [data-do=reading-cancel]")
    visit.page.wait_for_function("document.querySelector('#reading-mark')?.textContent.includes('|')")
    if visit.page.locator("#reading details").count():
        opened(visit)
        while count := cancel.count():
            cancel.first.click()
            expect(cancel).to_have_count(count - 1)
    text = (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")
    files = []
    for place, title in enumerate(titles):
        files.append(folder / f"{title}.txt")
        files[-1].write_text(text[20_000 * place : 20_000 * (place + 1)] + title, encoding="utf-8")
    visit.tab("Library")
    visit.page.set_input_files("#drop input[type=file]", [str(file) for file in files])


def test_reading_goes_on_over_a_reload_and_shows_in_every_tab(
    visit: Visit, browser: Browser, fake: Server, tmp_path: Path
) -> None:
    page, line = visit.page, visit.page.locator("#reading .lt-queue")
    put(visit, tmp_path, f"{ENDLESS} reload")
    expect(line).to_contain_text(f"Reading {ENDLESS} reload")
    visit.tab("Chats")
    expect(line).to_contain_text(re.compile(r"\d+%"))
    page.reload()
    expect(line).to_contain_text(re.compile(r"\d+%"))
    with visiting(browser, fake.url) as other:
        second = other.page.locator("#reading")
        expect(second.locator(".lt-queue")).to_contain_text(f"{ENDLESS} reload")
        opened(other)
        second.get_by_role("button", name=f"Do not read {ENDLESS} reload now").click()
        expect(second.locator(".lt-queue")).to_have_count(0)
    expect(line).to_have_count(0)
    visit.tab("Library")
    expect(visit.row(f"{ENDLESS} reload")).to_contain_text("Go on reading")
    visit.errors.clear()  # of the reload


def test_the_queue_has_an_order_and_what_is_read_says_so_at_once(visit: Visit, tmp_path: Path) -> None:
    page, line = visit.page, visit.page.locator("#reading .lt-queue")
    put(visit, tmp_path, f"{ENDLESS} one", f"{ENDLESS} two", "Quick")
    expect(line).to_contain_text(f"Reading 1 of 3: {ENDLESS} one")
    opened(visit)
    page.get_by_role("button", name="Read Quick first").click()
    expect(line).to_contain_text(f"Reading 2 of 3: {ENDLESS} one")
    expect(visit.row("Quick").locator(".lt-read")).to_have_text("read")
    expect(visit.row(f"{ENDLESS} two")).to_contain_text("waits")
    page.get_by_role("button", name="Pause").click()
    expect(line).to_contain_text("Reading is paused")
    page.reload()
    expect(line).to_contain_text("Reading is paused")
    page.get_by_role("button", name="Go on", exact=True).click()
    expect(line).not_to_contain_text("paused")
    visit.errors.clear()  # of the reload


def test_a_document_is_asked_while_it_is_read(visit: Visit, tmp_path: Path) -> None:
    page, line = visit.page, visit.page.locator("#reading .lt-queue")
    title = f"{ENDLESS} meanwhile"
    put(visit, tmp_path, title)
    expect(line).to_contain_text(re.compile(r"[1-9]\d*%"))
    visit.row(title).get_by_role("button", name="Ask").click()
    expect(page.locator("#picker .token")).to_contain_text("not read yet")
    visit.ask("What about the meadow?")
    expect(page.locator(".lt-foot")).to_contain_text(re.compile(rf"nswered from the first \d+% of {title}"))
    expect(page.locator(".lt-chip").first).to_be_visible()
    expect(line).to_contain_text(title)  # it goes on
