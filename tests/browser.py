"""A real browser on a real server, for the browser tests and the screenshots."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.ui.asking import TURNS
from tests.serving import START_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Without these Chromium itself asks its maker for updates and variations.
QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
)
expect.set_options(timeout=20_000)  # a busy machine draws late


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(QUIET))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page of Lectern in the browser, and what went wrong in it."""

    page: Page
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()
        expect(self.page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")

    def add(self, *files: Path, timeout_s: float = 30) -> None:
        """Put files into the library and wait until each is read or refused by name."""
        self.tab("Library")
        self.page.set_input_files("#drop input[type=file]", [str(file) for file in files])
        refused = self.page.locator("#library-status .lt-bad")
        for file in files:
            done = self.row(file.stem).locator(".lt-read").or_(refused.filter(has_text=file.name))
            expect(done).to_have_count(1, timeout=timeout_s * 1000)
        expect(self.page.locator("#library-stop")).to_be_hidden(timeout=timeout_s * 1000)

    def row(self, title: str):
        return self.page.locator(".lt-table tbody tr", has_text=title)

    def ask(self, question: str, *, timeout_s: float = 30) -> None:
        """Type a question, press Enter and wait for the end of the answer."""
        before = self.page.locator(".lt-foot").count()
        turns = int(self.page.locator("#talk [data-turn]").last.get_attribute("data-turn")) if before else 0
        self.page.fill("#question textarea", question)
        self.page.keyboard.press("Enter")
        expect(self.page.locator(f"#talk [data-turn='{turns + 1}']")).to_be_visible(timeout=timeout_s * 1000)
        expect(self.page.locator(".lt-foot")).to_have_count(min(before + 1, TURNS), timeout=timeout_s * 1000)
        expect(self.page.locator("#question .submit-button")).to_be_visible(timeout=timeout_s * 1000)

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")


@contextmanager
def visiting(
    browser: Browser, url: str, *, width: int = 1280, height: int = 860, scheme: str = "light", start_s: float = START_S
):
    """Open the page in a fresh profile; yields a Visit."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        permissions=["clipboard-read", "clipboard-write"],
        reduced_motion="reduce",
    )
    page = context.new_page()
    visit = Visit(page)
    base = url.partition("?")[0]

    def request(sent) -> None:
        if not sent.url.startswith((base, "data:", "blob:")):
            visit.outside.append(sent.url)

    page.on("request", request)
    page.on("websocket", lambda socket: visit.outside.append(socket.url))
    page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.goto(url, timeout=start_s * 1000)
    expect(page.locator("#question textarea")).to_be_visible(timeout=start_s * 1000)
    expect(page.locator(".lt-model")).to_be_visible()
    try:
        yield visit
    finally:
        context.close()
