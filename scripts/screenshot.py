"""Take the pictures of README and docs: `python scripts/screenshot.py`. Needs Chromium and the test packages.

The real app on the shipped model reads the sample book in a data folder that is thrown away; the pictures go to
docs/images: every tab and the viewer, at 1280 and 390 pixels, light and dark.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import expect  # noqa: E402

from tests.browser import Visit, chromium, find_chromium, visiting  # noqa: E402
from tests.serving import serving  # noqa: E402

PDF, WORDS = ROOT / "tests" / "data" / "crazyones.pdf", "misfits"
QUESTION = "What did the boy see at the window?"
MINUTES_MS = 20 * 60_000


def read_and_ask(visit: Visit, question: str) -> None:
    """The first visit: read the sample book, ask, open the first passage."""
    page = visit.page
    expect(page.locator(".lt-model")).to_contain_text("ready", timeout=MINUTES_MS)
    page.click("#sample")
    expect(page.locator("#picker .token")).to_be_visible(timeout=MINUTES_MS)
    expect(page.locator("#reading .lt-queue")).to_have_count(0, timeout=MINUTES_MS)  # it is read, and tried
    visit.ask(question, timeout_s=MINUTES_MS / 1000)
    open_first_passage(visit)


def open_first_passage(visit: Visit) -> None:
    """Under a refusal the passages are folded away."""
    folded = visit.page.get_by_text("without finding an answer").first
    if folded.count():
        folded.click()
    visit.page.locator(".lt-chip").first.click()
    expect(visit.page.locator(".lt-mark").first).to_be_in_viewport()


def picture(visit: Visit, name: str) -> None:
    visit.page.mouse.move(0, 0)
    visit.page.wait_for_timeout(300)  # let the last transition end
    visit.page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")


def open_last_chat(visit: Visit) -> None:
    visit.tab("Chats")
    visit.page.locator(".lt-open").first.click()
    expect(visit.page.locator(".lt-foot")).to_be_visible()


def tour(visit: Visit, ending: str) -> None:
    """A picture of every tab, and of the viewer on a page of a PDF."""
    page = visit.page
    open_last_chat(visit)
    if not ending.startswith("-phone"):
        open_first_passage(visit)
    picture(visit, f"ask{ending}")
    visit.tab("Library")
    expect(page.locator(".lt-table")).to_be_visible()
    picture(visit, f"library{ending}")
    visit.row(PDF.stem).get_by_role("button", name="Open").click()
    find = page.locator("#found-page").get_by_label("Find in this document")
    find.fill(WORDS)
    find.press("Enter")
    expect(page.locator("#found-page .lt-where").first).to_be_visible(timeout=MINUTES_MS)
    page.locator("#found-page").scroll_into_view_if_needed()
    picture(visit, f"viewer{ending}")
    for name, ready in (("Chats", ".lt-chat"), ("Passkey", ".lt-run"), ("Models", "#model-offers .lt-card")):
        visit.tab(name)
        expect(page.locator(ready).first).to_be_visible()
        picture(visit, f"{name.lower()}{ending}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="checkpoint to show; the shipped one when left out")
    parser.add_argument("--question", default=QUESTION)
    args = parser.parse_args()
    if find_chromium() is None:
        sys.exit("Chromium is not installed; install it, then run this again")
    (ROOT / "docs" / "images").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        command = ["-m", "app.cli", "serve", "--no-browser", "--port", "0", "--home", f"{folder}/home"]
        command += ["--model", args.model] if args.model else []
        with serving(command, Path(folder)) as server:
            with visiting(browser, server.url) as visit:
                read_and_ask(visit, args.question)
                visit.add(PDF)
                visit.tab("Passkey")
                visit.page.locator("button", has_text="Details").first.click()
                visit.page.get_by_role("checkbox", name="(4×)").uncheck()  # the shortest length will do
                visit.page.click("#passkey-run")
                expect(visit.page.locator(".lt-run").first).to_be_visible(timeout=MINUTES_MS)
            for scheme in ("light", "dark"):
                for width, height in ((1280, 860), (390, 844)):
                    ending = ("-phone" if width < 500 else "") + ("-dark" if scheme == "dark" else "")
                    with visiting(browser, server.url, width=width, height=height, scheme=scheme) as visit:
                        tour(visit, ending)


if __name__ == "__main__":
    main()
