"""Every tab, in light and dark and on a phone, without a fault that axe-core finds (WCAG 2 A and AA)."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser import Visit, find_chromium
from tests.serving import ROOT

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")

RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
UNNAMED = """[...document.querySelectorAll('button, [role=button], summary')]
  .filter((one) => one.checkVisibility() && !(one.ariaLabel || one.textContent.trim() || one.title))
  .map((one) => one.outerHTML.slice(0, 200))"""


def faults(page: Page) -> list[str]:
    """What axe finds, a line for each element, and buttons without a name."""
    found = Axe().run(page, options=RULES).response["violations"]
    lines = [f"{one['id']}: {node['html'][:160]} | {node['any'][:1] and node['any'][0]['message'][:160]}"
             for one in found for node in one["nodes"]]  # fmt: skip
    return lines + [f"no name: {html}" for html in page.evaluate(UNNAMED)]


def test_nothing_stands_in_the_way_of_readers(visit: Visit) -> None:
    page = visit.page
    found: dict[str, list[str]] = {}

    def look(state: str) -> None:
        """In light and dark, and on a phone."""
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 860})
            for _ in range(2):
                page.locator("[data-here=theme]").evaluate("button => button.click()")  # a passage may cover it
                found[f"{state}, {width}, {page.locator('body').get_attribute('class')}"] = faults(page)

    page.add_style_tag(content="* { transition: none !important; }")  # no colour between two themes
    look("first view")
    visit.tab("Library")
    visit.add(*(ROOT / name for name in ("README.md", "launch.py")))
    expect(page.locator(".lt-queue")).to_have_count(0)
    visit.row("launch").first.get_by_role("button", name="Open").click()
    expect(page.locator("#found-page .lt-page")).to_be_visible()
    look("library")
    visit.row("README").first.get_by_role("button", name="Ask").click()
    visit.ask("What does Lectern do?")
    look("answer")
    page.locator(".lt-chips .lt-chip").first.click()
    expect(page.locator("#page .lt-page")).to_be_visible()
    look("passage")
    page.locator("#page [data-do=close]").click()
    for name, ready in (("Chats", ".lt-chat"), ("Passkey", "#passkey-run"), ("Models", ".lt-card")):
        visit.tab(name)
        expect(page.locator(ready).first).to_be_visible()
        look(name)
    assert {where: lines for where, lines in found.items() if lines} == {}
