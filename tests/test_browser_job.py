"""The whole job in Chromium over a fake chat: from the first visit to a second window.

A restart, after which nothing is read again, is tested on the shipped model (test_browser.py).
"""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import ROOT, Server, Visit, find_chromium, visiting
from tests.fake_chat import ENDLESS
from tests.test_browser_places import DROP

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")

FAKE_PACE_S = 0.01


def test_from_the_first_visit_to_a_second_window(visit: Visit, browser: Browser, fake: Server, tmp_path: Path) -> None:
    page = visit.page
    expect(page.get_by_role("heading", name="Give it a whole book. Then ask.")).to_be_visible()

    # a file is dropped, and asked about while it is read
    text = (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")[:40_000]
    page.evaluate(DROP, ["drop", f"{ENDLESS} book.txt", text])
    expect(page.locator("#reading .lt-queue")).to_contain_text(re.compile(r"[1-9]\d*%"))
    visit.ask("What did Duchess say about manners?")
    expect(page.locator(".lt-foot")).to_contain_text("from the first")

    # a number in the answer opens the passage, and its chip is marked
    mark = page.locator("#talk .lt-cite").first
    assert mark.inner_text() == "1"
    mark.click()
    expect(page.locator(".lt-mark").first).to_be_in_viewport()
    expect(page.locator(".lt-chip[aria-current] .lt-chip-number")).to_have_text("1")
    page.keyboard.press("Escape")

    # what was said is heard once, and is there after a reload
    expect(page.locator(".lt-heard")).to_contain_text("You asked")
    page.reload()
    expect(page.locator("#talk .lt-cite").first).to_be_visible()

    # try again keeps the answer before; the other version is shown after a reload, too
    page.get_by_role("button", name="Try again").click()
    version = page.locator(".lt-versions span")
    expect(version).to_have_text("2/2")
    page.get_by_label("Earlier version").click()
    expect(version).to_have_text("1/2")
    page.reload()
    expect(version).to_have_text("1/2")

    # a fork is shown as one, and a second window has both
    address = page.url
    page.get_by_text("Fork", exact=True).last.click()
    expect(page).not_to_have_url(address)
    page.keyboard.press("Control+k")
    expect(page.locator("#side-chats .lt-side-from")).to_contain_text("from What did Duchess")
    with visiting(browser, fake.url) as other:
        other.page.goto(address)
        expect(other.page.locator("#talk .lt-cite").first).to_be_visible()
        other.errors.clear()  # of the page that was left
    visit.errors.clear()  # of the reloads
