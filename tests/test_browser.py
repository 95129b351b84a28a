"""The page in Chromium, over a fake chat: its states."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import Visit, find_chromium, visiting
from tests.serving import ROOT, Server, serving

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")

TRICKY = (
    "Page with self.__init__ and ${1+1} and {{7*7}} and <style>body{display:none}</style> and "
    "<img src='http://evil.example/x.png'> and ![p](http://evil.example/y.png)"
)
# Gradio's own words while the page under it goes away.
UNLOADING = re.compile("AbortError: signal is aborted|Connection errored out")
FAKE_PACE_S = 0.02  # slow enough to be stopped
SIZES = [(1280, 860, "light"), (1280, 860, "dark"), (390, 844, "light"), (390, 844, "dark")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    texts = {
        "book.txt": (ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")[:60_000],
        "tricky.txt": f"{TRICKY}\n\nThe harbour master kept a lantern. {TRICKY}",
        "tool.py": "import sys\n\n\ndef harbour(lantern):\n    return lantern < 2\n",
        "empty.txt": "",
        "locked.pdf": "sealed",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in texts}


def pick(visit: Visit, title: str) -> None:
    """Start a chat over a document of the library."""
    visit.tab("Library")
    visit.row(title).get_by_role("button", name="Ask").click()
    expect(visit.page.locator(".lt-welcome h2", has_text=title)).to_be_visible()


def test_first_visit_leads_to_an_answer(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_role("heading", name="Give it a whole book. Then ask.")).to_be_visible()
    expect(page.locator("#remark")).to_contain_text("Demonstration model")
    page.click("#sample")
    expect(page.locator("#picker .token")).to_contain_text("Oh, Whistle")
    expect(page.locator(".lt-example").first).to_be_visible(timeout=15_000)
    page.locator(".lt-example").first.click()
    expect(page.locator(".lt-foot .lt-cost")).to_contain_text("new tokens", timeout=15_000)
    assert page.locator(".lt-chip").count() >= 1
    expect(page.locator("#remark")).to_contain_text("cannot summarise")
    expect(page.locator("#memory")).to_have_text(re.compile("^This chat remembers .* kept.$"), use_inner_text=True)
    page.locator("#memory summary").click()
    expect(page.locator("#memory")).to_contain_text("regions", use_inner_text=True)


def test_library_adds_the_good_and_names_the_bad(visit: Visit, files: dict[str, Path]) -> None:
    visit.add(files["empty.txt"], files["tool.py"], files["locked.pdf"], files["tricky.txt"])
    status = visit.page.locator("#library-status")
    expect(status).to_contain_text("empty.txt: empty")
    expect(status).to_contain_text("locked.pdf: encrypted")
    for title in ("tool", "tricky"):
        expect(visit.row(title)).to_contain_text("read")
    visit.row("tool").get_by_text("Delete").first.click()
    visit.row("tool").get_by_role("button", name="Delete").click()
    expect(visit.row("tool")).to_have_count(0)
    visit.add(files["tool.py"])


def test_password_is_asked_and_not_kept(visit: Visit, files: dict[str, Path]) -> None:
    visit.tab("Library")
    visit.page.get_by_text("Password for encrypted PDFs").click()
    visit.page.fill("#password input", "open sesame")
    visit.add(files["locked.pdf"])
    expect(visit.row("locked")).to_contain_text("read")
    expect(visit.page.locator("#password input")).to_have_value("")


def test_document_text_is_shown_and_never_obeyed(visit: Visit, files: dict[str, Path]) -> None:
    visit.add(files["tricky.txt"]) if not visit.row("tricky").count() else None
    pick(visit, "tricky")
    visit.ask(f"Who kept the lantern? {TRICKY}")
    expect(visit.page.locator("#talk .user-row")).to_contain_text(TRICKY, use_inner_text=True)
    visit.page.locator(".lt-chip").first.click()
    expect(visit.page.locator(".lt-text")).to_contain_text(TRICKY)
    # an icon of Gradio's own holds a style; what a text brings would stand outside of it
    assert visit.page.locator("img[src*=evil], #talk style:not(svg defs style)").count() == 0


def test_evidence_opens_turns_and_is_left_out(visit: Visit, files: dict[str, Path]) -> None:
    page = visit.page
    visit.add(files["book.txt"])
    pick(visit, "book")
    visit.ask("What did Duchess say about manners?")
    chip = page.locator(".lt-chips .lt-chip").last
    where = chip.locator(".lt-chip-place").inner_text()
    chip.click()
    expect(page.locator(".lt-page header")).to_contain_text(where)
    expect(page.locator(".lt-mark").first).to_be_in_viewport()
    page.get_by_role("button", name="Next ›").click()
    expect(page.locator(".lt-mark")).to_have_count(0)
    page.get_by_role("button", name="Answer without this").click()
    expect(page.locator(".lt-without")).to_contain_text("the answer changes. ")
    expect(page.locator(".lt-without .lt-cost")).to_contain_text("came from memory")
    page.keyboard.press("Escape")
    expect(page.locator(".lt-page")).to_be_hidden()
    expect(chip).to_be_focused()
    chip.click()
    expect(page.locator(".lt-page")).to_be_visible()
    pick(visit, "book")
    expect(page.locator(".lt-page")).to_be_hidden()


def test_places_are_focused_and_muted_and_a_passage_is_tested(visit: Visit, files: dict[str, Path]) -> None:
    page = visit.page
    visit.tab("Library")
    visit.add(*(files[name] for name in ("book.txt", "tool.py") if not visit.row(Path(name).stem).count()))
    pick(visit, "tool")
    page.get_by_role("button", name="Where to look").click()
    page.locator("#focus input").click()
    page.keyboard.type("too")  # Enter takes the first that fits, not the letters
    expect(page.get_by_role("option", name="tool").first).to_be_visible()
    page.keyboard.press("Enter")
    page.fill("#mute input", "tool#src/*.md")
    page.keyboard.press("Enter")
    visit.ask("Where is harbour defined?")
    expect(page.locator(".lt-foot .lt-remark:not(.lt-knows)")).to_have_text(
        "Looked only in tool, did not look in tool#src/*.md."
    )
    page.get_by_text("Answer without …").click()
    page.locator(".lt-pop .lt-chip:visible").first.click()
    expect(page.locator(".lt-confirm[open]")).to_have_count(0)
    expect(page.locator(".lt-page")).to_be_visible()
    expect(page.locator(".lt-without .lt-fall")).to_contain_text("The answer rests on this passage")
    page.locator(".lt-without summary").click()
    expect(page.locator(".lt-without .lt-fold")).to_contain_text("falls by 3.25 nats; without another of this size it")
    expect(page.locator(".lt-without .lt-rest").first).to_be_visible()
    expect(page.locator(".lt-without .lt-cost")).to_contain_text("came from memory")
    page.locator("#picker input").click()
    page.get_by_role("option", name="book").click()
    expect(page.locator("#status")).to_contain_text("From the next question on")
    page.locator("#picker .token", has_text="tool").locator(".token-remove").click()
    expect(page.locator("#focus .token")).to_have_count(0)
    visit.ask("And the horse?")
    expect(page.locator(".lt-foot").last).not_to_contain_text("Looked only")
    expect(page.locator(".lt-foot").last.locator(".lt-chip-title").first).to_have_text("book")


def test_a_refusal_folds_its_passages_away(visit: Visit, files: dict[str, Path]) -> None:
    page = visit.page
    visit.add(files["book.txt"]) if not visit.row("book").count() else None
    pick(visit, "book")
    visit.ask("What is unsaid about Duchess?")
    expect(page.locator(".lt-chip")).not_to_have_count(0)
    expect(page.locator(".lt-chip").first).to_be_hidden()
    expect(page.locator(".lt-remark:not(.lt-knows)")).to_contain_text("may say so although the text does say")
    page.get_by_text("without finding an answer").click()
    page.locator(".lt-chip").first.click()
    expect(page.locator(".lt-mark").first).to_be_in_viewport()
    visit.ask("And what again and again?")
    expect(page.locator(".lt-remark:not(.lt-knows)").last).to_have_text("Stopped because the answer repeated itself.")


def test_code_evidence_has_a_path_and_lines(visit: Visit, files: dict[str, Path]) -> None:
    visit.add(files["tool.py"]) if not visit.row("tool").count() else None
    pick(visit, "tool")
    visit.ask("Where is harbour defined?")
    expect(visit.page.locator(".lt-chip-place").first).to_have_text(re.compile(r"^src/tool\.py:\d+-\d+$"))
    visit.page.locator(".lt-chip").first.click()
    expect(visit.page.locator(".lt-code .lt-mark").first).to_contain_text("harbour")


def test_escape_stops_an_answer_and_retry_goes_on(visit: Visit) -> None:
    page = visit.page
    page.fill("#question textarea", "word " * 400)
    page.keyboard.press("Enter")
    expect(page.locator("#talk .bot-row")).to_contain_text("You asked")
    page.keyboard.press("Escape")
    expect(page.locator(".lt-remark:not(.lt-knows)")).to_contain_text("You stopped it.")
    expect(page.locator("#question .submit-button")).to_be_visible()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").startswith("You asked: word")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#question .stop-button")).to_be_visible()
    page.locator("#question .stop-button").click()
    expect(page.locator(".lt-foot")).to_have_count(1)


def test_next_question_may_be_typed_and_sent_while_the_model_answers(visit: Visit) -> None:
    page = visit.page
    page.fill("#question textarea", "word " * 60)
    page.keyboard.press("Enter")
    expect(page.locator("#talk .bot-row")).to_contain_text("You asked")
    page.fill("#question textarea", "and then")
    page.keyboard.press("Enter")
    expect(page.locator("#question textarea")).to_have_value("and then")
    expect(page.locator(".lt-foot")).to_have_count(2)
    expect(page.locator("#talk .user-row").last).to_have_text("and then")
    expect(page.locator("#question textarea")).to_have_value("")


def test_a_question_that_waits_says_for_what_and_is_taken_back(visit: Visit, browser: Browser, fake: Server) -> None:
    page = visit.page
    page.fill("#question textarea", "word " * 600)
    page.keyboard.press("Enter")
    expect(page.locator("#talk .bot-row")).to_contain_text("You asked")
    with visiting(browser, fake.url) as other:
        status, box = other.page.locator("#status"), other.page.locator("#question textarea")
        for back in (lambda: other.page.keyboard.press("Escape"), status.get_by_role("button", name="Stop").click):
            box.fill("Is it my turn?")
            box.press("Enter")
            expect(status).to_contain_text(re.compile(r"Waiting for the model: answering\s*\d+ s"))
            back()
            expect(status).not_to_contain_text("Waiting")
            expect(box).to_have_value("Is it my turn?")
        expect(page.locator("#question .stop-button")).to_be_visible()  # the other answer goes on
        page.keyboard.press("Escape")
        expect(page.locator(".lt-foot")).to_have_count(1)
        box.press("Enter")
        expect(other.page.locator(".lt-foot")).to_have_count(1)
        expect(other.page.locator("#talk .user-row")).to_have_text("Is it my turn?")


def test_new_chat_ends_a_running_answer_and_stays_empty(visit: Visit) -> None:
    page = visit.page
    page.fill("#question textarea", "word " * 400)
    page.keyboard.press("Enter")
    expect(page.locator("#talk .bot-row")).to_contain_text("You asked")
    page.click("#new-chat")
    expect(page.locator("#talk")).to_be_hidden()
    expect(page.locator("#question .submit-button")).to_be_visible()
    visit.ask("Something else")
    expect(page.locator("#talk .user-row")).to_have_text("Something else")


def test_pages_are_opened_together_and_tabs_changed_at_once(browser: Browser, fake: Server) -> None:
    """Each with a cookie of its own; what a page asks before it is drawn whole is no fault in the log of `fake`."""
    for names in (("Chats", "Library", "Ask", "Chats"), ("Models", "Chats", "Passkey", "Chats")):
        with visiting(browser, fake.url) as visit:
            other = visit.page.context.new_page()
            other.goto(fake.base, wait_until="commit")
            visit.page.reload(wait_until="commit")
            for page in (other, visit.page):
                for name in names:
                    page.get_by_role("tab", name=name, exact=True).click()
                expect(page.locator("#chats :is(.lt-chats, .lt-nothing)")).to_be_visible()
                expect(page.locator("#chats-status .lt-bad")).to_have_count(0)
    assert [line for line in fake.log if "Traceback" in line or "NoneType" in line] == []


def test_reload_goes_on_with_the_chat(visit: Visit, files: dict[str, Path]) -> None:
    page = visit.page
    visit.add(files["tool.py"]) if not visit.row("tool").count() else None
    pick(visit, "tool")
    visit.ask("Where is harbour defined?")
    page.reload()
    expect(page.locator("#talk .user-row")).to_have_text("Where is harbour defined?")
    expect(page.locator("#picker .token")).to_contain_text("tool")
    page.click("#new-chat")
    expect(page.locator("#talk")).to_be_hidden()
    page.reload()
    expect(page.locator(".lt-welcome h2").first).to_be_visible()
    expect(page.locator("#talk")).to_be_hidden()
    visit.errors[:] = [error for error in visit.errors if not UNLOADING.search(error)]


def test_small_boxes_close_one_by_one_and_clicks_are_not_lost(visit: Visit, files: dict[str, Path]) -> None:
    visit.add(files["tool.py"]) if not visit.row("tool").count() else None
    visit.tab("Library")
    box, opener = visit.page.locator(".lt-confirm[open]"), visit.row("tool").get_by_text("Delete").first
    opener.click()
    expect(box).to_have_count(1)
    visit.page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    expect(opener).to_be_focused()
    opener.click()
    visit.page.locator(".lt-wordmark").first.click()
    expect(box).to_have_count(0)
    # the table may be drawn anew under the mouse: the click counts all the same
    place = visit.row("tool").get_by_role("button", name="Ask").bounding_box()
    visit.page.mouse.move(place["x"] + 9, place["y"] + 9)
    visit.page.mouse.down()
    visit.page.locator("#library .prose").evaluate("(shown) => { shown.innerHTML = shown.innerHTML; }")
    visit.page.mouse.up()
    expect(visit.page.get_by_role("tab", name="Ask", exact=True)).to_have_attribute("aria-selected", "true")
    # one Escape closes one thing
    visit.ask("Where is harbour defined?")
    visit.page.locator(".lt-chip").first.click()
    visit.page.locator(".lt-foot summary", has_text="Edit").click()
    expect(box).to_have_count(1)
    visit.page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    expect(visit.page.locator(".lt-page")).to_be_visible()


def test_chats_are_found_renamed_exported_opened_and_deleted(visit: Visit) -> None:
    page = visit.page
    visit.ask("A question about lighthouses")
    page.click("#new-chat")
    expect(page.locator(".lt-foot")).to_have_count(0)
    visit.ask("A question about herrings")
    visit.tab("Chats")
    expect(page.locator(".lt-chat").first).to_be_visible()
    page.fill("#search input, #search textarea", "lighthouses")
    expect(page.locator(".lt-chat")).to_have_count(1)
    page.locator("summary", has_text="Rename").click()
    page.fill(".lt-pop input:visible", "Towers & lamps")
    page.locator(".lt-pop").get_by_role("button", name="Rename").click()
    expect(page.locator(".lt-open b")).to_have_text("Towers & lamps")
    page.locator("summary", has_text="Export").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Markdown").click()
    assert download.value.suggested_filename == "towers-lamps.md"
    assert "A question about lighthouses" in Path(download.value.path()).read_text(encoding="utf-8")
    page.locator(".lt-open").click()
    expect(page.locator("#talk")).to_contain_text("A question about lighthouses")
    visit.tab("Chats")
    page.locator(".lt-chat", has_text="Towers").get_by_text("Delete").first.click()
    page.locator(".lt-chat").get_by_role("button", name="Delete").click()
    expect(page.locator(".lt-chat", has_text="Towers")).to_have_count(0)
    visit.tab("Ask")
    expect(page.locator("#talk")).to_be_hidden()


def test_what_another_window_deleted_is_told_calmly(visit: Visit, browser: Browser, fake: Server, files: Any) -> None:
    page, status = visit.page, visit.page.locator("#status")
    visit.add(files["tool.py"]) if not visit.row("tool").count() else None
    pick(visit, "tool")
    visit.ask("Where is harbour defined in this window?")
    with visiting(browser, fake.url) as other:
        other.tab("Library")
        other.row("tool").get_by_text("Delete").first.click()
        other.row("tool").get_by_role("button", name="Delete").click()
        expect(other.row("tool")).to_have_count(0)
        page.locator(".lt-chip").first.click()
        expect(page.locator("#page")).to_contain_text("This document is not here any more")
        page.fill("#question textarea", "And who calls it?")
        page.keyboard.press("Enter")
        expect(status.locator(".lt-calm")).to_contain_text("This document is not here any more")
        other.tab("Chats")
        chat = other.page.locator(".lt-chat", has_text="in this window?")
        chat.locator("summary", has_text="Delete").click()
        chat.locator("[data-do=chat-delete]").click()
        expect(chat).to_have_count(0)
    page.fill("#question textarea", "And who calls it?")
    page.keyboard.press("Enter")
    expect(status.locator(".lt-calm")).to_contain_text("This chat is not here any more")
    expect(page.locator(".lt-waiting, .lt-bad")).to_have_count(0)
    expect(page.locator("#question textarea")).to_have_value("And who calls it?")
    visit.ask("And who calls it?")  # a new chat


def test_passkey_map_fills_and_is_kept(visit: Visit) -> None:
    page = visit.page
    visit.tab("Passkey")
    page.click("#passkey-run")
    expect(page.locator("#passkey-status")).to_contain_text("9 of 10 right", timeout=15_000)
    expect(page.locator("#heat td[style]")).to_have_count(10)
    expect(page.locator(".lt-run").first).to_contain_text("9 of 10 right")


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_layout_holds(
    browser: Browser, fake: Server, files: dict[str, Path], width: int, height: int, scheme: str
) -> None:
    with visiting(browser, fake.url, width=width, height=height, scheme=scheme) as visit:
        page = visit.page
        red = int(re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert (red < 80) == (scheme == "dark")
        wide: list[str] = []

        def check(state: str) -> None:
            if visit.scrolls_sideways():
                wide.append(state)

        check("empty")
        expect(page.locator("#question textarea")).to_be_in_viewport()
        visit.tab("Library")
        if not visit.row("book").count():
            visit.add(files["book.txt"])
        expect(visit.row("book")).to_be_visible()
        check("library")
        visit.tab("Passkey")
        check("passkey")
        visit.tab("Models")
        expect(page.locator(".lt-card").first).to_be_visible()
        page.locator(".lt-more summary").first.click()
        check("models")
        pick(visit, "book")
        check("picked")
        visit.ask("What did Duchess say about manners, and what did a long long question do to the narrow page?")
        check("answered")
        expect(page.locator("#question textarea")).to_be_in_viewport()
        page.locator(".lt-chips .lt-chip").last.click()
        expect(page.locator(".lt-mark").first).to_be_in_viewport()
        check("passage")
        page.locator("[data-do=close]").click()
        visit.tab("Chats")
        expect(page.locator(".lt-chat").first).to_be_visible()
        check("chats")
        assert wide == [] and visit.outside == [] and visit.errors == []


@pytest.mark.parametrize("width", [1280, 390])
def test_failed_model_says_why_and_the_page_lives(browser: Browser, tmp_path: Path, width: int) -> None:
    problem = "models/a-folder-with-quite-a-long-name-that-must-be-wrapped: no config.json; choose another with --model"
    with serving(["-m", "tests.fake_server", "0", str(tmp_path / "home"), "0", problem], tmp_path) as server:
        with visiting(browser, server.url, width=width) as visit:
            expect(visit.page.locator("#problem")).to_contain_text("no config.json")
            visit.page.fill("#question textarea", "Why?")
            visit.page.keyboard.press("Enter")
            expect(visit.page.locator("#status")).to_contain_text("no config.json")
            expect(visit.page.locator("#question textarea")).to_have_value("Why?")
            assert not visit.scrolls_sideways() and visit.errors == []


def test_the_server_ends_while_a_page_is_open(browser: Browser, tmp_path: Path) -> None:
    """What the page still listens to is closed, not waited for."""
    page = browser.new_page()
    with serving(["-m", "tests.fake_server", "0", str(tmp_path / "home")], tmp_path) as server:
        page.goto(server.url)
        page.get_by_role("tab", name="Library", exact=True).click()
        expect(page.locator("#library .lt-nothing")).to_be_visible()
    page.close()
    assert [line for line in server.log if "graceful" in line or "Traceback" in line] == []


def test_nothing_asked_of_the_network(fake: Server) -> None:
    """Runs after the tests above: starting, uploading, reading, asking made no contact beyond loopback."""
    assert fake.contacts == []
