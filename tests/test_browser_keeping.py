"""The page in Chromium over a fake chat: forks, edits, files, search, pins."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser import Visit, find_chromium
from tests.serving import ROOT

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")


def test_an_answer_is_forked_and_its_question_edited(visit: Visit) -> None:
    page = visit.page
    visit.ask("Where is the harbour?")
    visit.ask("And the ships?")
    page.locator(".lt-foot").first.get_by_role("button", name="Fork").click()
    expect(page.locator(".lt-foot")).to_have_count(1)
    expect(page.locator("#talk")).not_to_contain_text("And the ships?")
    page.locator(".lt-foot summary", has_text="Edit").click()
    form = page.locator(".lt-foot form")
    expect(form.locator("textarea")).to_have_value("Where is the harbour?")
    form.locator("textarea").fill("Where is the tower?")
    form.get_by_role("button", name="Ask").click()
    expect(page.locator("#talk")).to_contain_text("You asked: Where is the tower?")
    expect(page.locator(".lt-foot")).to_have_count(1)
    visit.tab("Chats")
    row = page.locator(".lt-chat", has_text="Where is the harbour? (fork)")
    expect(row).to_have_count(1)
    row.locator("summary", has_text="Fork").click()
    row.get_by_role("button", name="Documents only").click()
    expect(page.get_by_role("tab", name="Ask", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".lt-foot")).to_have_count(0)


def test_a_chat_is_answered_under_the_policy_that_was_chosen(visit: Visit) -> None:
    page, policy = visit.page, visit.page.get_by_label("Memory policy")
    page.locator("button", has_text="Answer settings").click()
    page.locator("button", has_text="Advanced").click()
    expect(policy).to_have_value(re.compile("keep-all: "))
    policy.click()
    page.get_by_role("option", name=re.compile("streaming: ")).click()
    visit.ask("Where is the harbour?")
    expect(page.locator(".lt-foot").last).to_contain_text("policy streaming")
    policy.click()
    page.get_by_role("option", name=re.compile("full: ")).click()
    expect(page.locator("#status")).to_contain_text("answered under full: its turns are run again")
    visit.ask("And the ships?")
    expect(page.locator(".lt-foot").last).to_contain_text("policy full")
    expect(page.locator(".lt-foot").first).to_contain_text("policy streaming")
    page.click("#new-chat")
    expect(policy).to_have_value(re.compile("keep-all: "))


def test_a_chat_leaves_as_a_file_and_comes_back(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.ask("What about the lantern?")
    visit.tab("Chats")
    row = page.locator(".lt-chat", has_text="What about the lantern?").first
    row.locator("summary", has_text="Export").click()
    with page.expect_download() as download:
        row.get_by_role("link", name="With its memory").click()
    file = tmp_path / "lantern.lectern"
    download.value.save_as(file)
    page.get_by_role("button", name="Import a chat").click()
    page.set_input_files("#import input[type=file]", str(file))
    expect(page.locator("#chats-status")).to_contain_text("What about the lantern?: 2 messages taken in")
    expect(page.locator(".lt-chat", has_text="What about the lantern?")).to_have_count(2)
    other = tmp_path / "other.json"
    other.write_text("no chat", encoding="utf-8")
    page.set_input_files("#import input[type=file]", str(other))
    expect(page.locator("#chats-status .lt-bad")).to_contain_text("not a chat that Lectern exported")


def test_words_are_found_and_memories_pinned(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    book = tmp_path / "book.txt"
    book.write_text((ROOT / "tests" / "data" / "book.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    visit.add(book)
    page.fill("#find textarea, #find input", "meadow")
    expect(page.locator("#found .lt-chat").first).to_contain_text("book")
    page.locator("#found .lt-open").first.click()
    expect(page.locator("#found-page mark")).to_contain_text("meadow")
    page.locator("#found-page").get_by_role("button", name="Close").click()
    expect(page.locator("#found-page mark")).to_have_count(0)
    page.fill("#find textarea, #find input", "")
    expect(page.locator("#found .lt-chat")).to_have_count(0)
    row = visit.row("book")
    row.get_by_role("button", name="Pin").click()
    expect(row).to_contain_text("pinned")
    row.get_by_role("button", name="Free").click()
    expect(row).to_contain_text("once read")
    assert not visit.scrolls_sideways()


def test_a_long_chat_opens_at_its_end_and_shows_earlier_questions_in_their_place(visit: Visit, tmp_path: Path) -> None:
    page, file = visit.page, tmp_path / "long.json"
    texts = [text for turn in range(1, 26) for text in (f"Question {turn}?", "It says so. " * 30)]
    file.write_text(json.dumps({"title": "A long talk", "messages": texts}), encoding="utf-8")
    visit.tab("Chats")
    page.get_by_role("button", name="Import a chat").click()
    page.set_input_files("#import input[type=file]", str(file))
    page.locator(".lt-chat", has_text="A long talk").get_by_role("button", name="A long talk").first.click()
    questions = page.locator("#talk .user-row")
    expect(questions).to_have_count(20)
    expect(page.locator(".lt-foot").last).to_be_in_viewport()
    earlier = page.get_by_role("button", name="Show what was asked earlier (5 questions)")
    page.locator("#talk").hover()
    page.mouse.wheel(0, -100_000)  # as a reader does, which ends what holds the end in view
    expect(earlier).to_be_in_viewport()
    top = questions.get_by_text("Question 6?").bounding_box()["y"]
    earlier.click()
    expect(questions).to_have_count(25)
    expect(questions.get_by_text("Question 1?")).to_have_count(1)
    page.wait_for_timeout(500)  # what is drawn later must not move it
    assert abs(questions.get_by_text("Question 6?").bounding_box()["y"] - top) < 80
    expect(earlier).to_have_count(0)
    visit.ask("And now?")
    expect(questions).to_have_count(20)
    expect(page.locator(".lt-foot").last).to_be_in_viewport()
