"""The whole job in Chromium: from the first visit over a restart on the shipped model, and its details over a fake."""

import json
import re
import textwrap
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import Visit, find_chromium, visiting
from tests.serving import ROOT, Server, serving
from tests.fake_chat import ENDLESS
from tests.ingest.pdf_maker import drawn, page_objects, pdf_bytes
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


@pytest.mark.slow
def test_whole_job_on_the_shipped_model(browser: Browser, shipped_model: Path, tmp_path: Path) -> None:
    """First visit, drop a PDF, ask while it is read, open a citation, reload, retry, fork, second tab; after a restart
    the other PDF is read on and no token of the first is read again.
    """
    command = ["-m", "app.cli", "serve", "--no-browser", "--home", str(tmp_path / "home"), "--threads", "2"]
    with serving(command, tmp_path) as server, visiting(browser, server.url) as visit:
        page, line = visit.page, visit.page.locator("#reading .lt-queue")
        expect(page.locator(".lt-model")).to_contain_text("ready", timeout=60_000)
        page.evaluate(DROP, ["drop", "Black Beauty.pdf", book_pdf(0, 30)])
        expect(line).to_contain_text(re.compile(r"[1-9]\d*%"), timeout=60_000)
        visit.ask("What is the name of the horse's mother?", timeout_s=300)
        expect(page.locator(".lt-foot")).to_contain_text(re.compile(r"from the first \d+% of Black Beauty"))
        expect(line).to_have_count(0, timeout=600_000)
        visit.ask("Who gave him bread?", timeout_s=300)
        expect(page.locator(".lt-foot").last).not_to_contain_text("from the first")
        if (folded := page.get_by_text("without finding an answer").last).count():  # a small model refuses often
            folded.click()
        page.locator(".lt-foot").last.locator(".lt-chips .lt-chip").first.click()
        expect(page.locator("#page .lt-scan img")).to_have_js_property("naturalWidth", 1200)
        expect(page.locator("#page .lt-where").first).to_be_in_viewport()
        page.get_by_role("button", name="Answer without this").click()
        expect(page.locator(".lt-without .lt-cost")).to_be_visible(timeout=300_000)

        page.reload()
        expect(page.locator(".lt-foot")).to_have_count(2)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".lt-versions span")).to_have_text("2/2", timeout=300_000)
        said, address = page.locator("#talk .bot-row .lt-md").last.inner_text(), page.url
        page.locator(".lt-foot").first.get_by_role("button", name="Fork").click()
        expect(page.locator(".lt-foot")).to_have_count(1)
        with visiting(browser, f"{server.url}{re.search('#.*', address)[0]}") as other:
            expect(other.page.locator(".lt-foot")).to_have_count(2)
        page.evaluate(DROP, ["drop", "The end.pdf", book_pdf(30, 70)])
        expect(line).to_contain_text(re.compile(r"The end.*[1-9]\d*%", re.DOTALL), timeout=60_000)
        assert visit.outside == [] and server.contacts == []

    with serving(command, tmp_path) as server, visiting(browser, server.url) as visit:
        page, line = visit.page, visit.page.locator("#reading .lt-queue")
        expect(page.locator(".lt-model")).to_contain_text("ready", timeout=60_000)
        expect(line).to_contain_text("The end")
        expect(line).to_have_count(0, timeout=600_000)
        visit.tab("Library")
        expect(visit.row("The end")).to_contain_text("read")
        tokens = int(visit.row("Black Beauty").locator("td").nth(2).inner_text().replace(",", ""))
        page.goto(f"{server.base}{re.search('#.*', address)[0]}")
        expect(page.locator("#talk .bot-row .lt-md").last).to_have_text(said)
        visit.ask("Where did he live?", timeout_s=300)
        cost = page.locator(".lt-cost").last.inner_text().replace(",", "")
        read, reused = map(int, re.search(r"Read (\d+) new tokens?; (\d+) came", cost).groups())
        assert reused >= tokens > 10_000 and read < 100, "a token of the document was read again"
        with urllib.request.urlopen(f"{server.base}health", timeout=5) as answer:
            assert json.load(answer)["model"]["state"] == "ready"
        assert visit.outside == [] and visit.errors == [] and server.contacts == []


def book_pdf(first: int, last: int) -> str:
    """Pages of Black Beauty as a PDF, in ASCII."""
    text = (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")
    lines = textwrap.wrap(re.sub(r"[^ -~\n]|[()\\\\]", "", text), 90)
    pages = ["\n".join(lines[at : at + 45]) for at in range(first * 45, last * 45, 45)]
    return pdf_bytes(page_objects([drawn(page) for page in pages])).decode("ascii")
