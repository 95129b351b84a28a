"""Search in the library's text, over a fake chat."""

import re
from pathlib import Path

import pytest

from app.records import Part
from app.ui import search
from tests.fake_chat import FakeDocumentChat


def test_hits_name_the_place_and_escape_the_text(chat: FakeDocumentChat, book: Path, tmp_path: Path) -> None:
    key = chat.add_document(book).id
    odd = tmp_path / "odd.txt"
    odd.write_text("<script>lighthouse</script>", encoding="utf-8")
    chat.add_document(odd)
    word = book.read_text(encoding="utf-8").split()[3]
    html = search.hits(chat, word)
    assert f'data-do="found" data-id="{key}@1"' in html and "A Quiet Coast · part 1 of 3" in html
    assert "<script>" not in search.hits(chat, "lighthouse")
    assert search.hits(chat, "  ") == ""
    assert "No document holds “&lt;krill”" in search.hits(chat, "<krill")


def test_a_hit_opens_its_part_with_the_word_marked(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.add_document(book).id
    word = book.read_text(encoding="utf-8").split()[3]
    html = search.page(chat, f"{key}@1", word.upper())
    assert f'<mark class="lt-mark">{word}</mark>' in html and "A Quiet Coast" in html
    assert "not here any more" in search.page(chat, "none@1", "x")


def test_any_document_opens_and_is_gone_through(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.add_document(book).id
    first = search.page(chat, f"{key}@1", "")
    assert f'data-do="open-part" data-id="{key}@0" disabled' in first and f'data-id="{key}@2">Next' in first
    assert "1 of 3" in first and f'data-do="find-in" data-id="{key}@1"' in first


def test_contents_name_the_chapters_and_where_one_is(chat: FakeDocumentChat, book: Path) -> None:
    info = chat.add_document(book)
    parts = [Part(i, str(i), "text", chapter=name) for i, name in enumerate(["<One>", "<One>", "Two", None], 1)]
    html = search._contents(info, parts, 2)
    assert re.findall(r'@(\d)"( aria-current=true)?>(.+?)<', html) == [
        ("1", " aria-current=true", "&lt;One&gt;"), ("3", "", "Two"), ("4", "", "part 4 of 3")]  # fmt: skip
    assert search._contents(info, parts[:2], 1) == ""


def test_words_are_found_in_one_document(chat: FakeDocumentChat, book: Path, tmp_path: Path) -> None:
    key = chat.add_document(book).id
    other = tmp_path / "other.txt"
    other.write_text("Another harbour master.", encoding="utf-8")
    chat.add_document(other)
    html = search.find_in(chat, f"{key}@1", "harbour")
    assert f'data-do="found-in" data-id="{key}@2|harbour"' in html and '<mark class="lt-mark">harbour</mark>' in html
    assert html.count("found-in") == 1 and "2 of 3" in html
    assert '<mark class="lt-mark">harbour</mark>' in search.found_in(chat, f"{key}@2|harbour")
    assert "Nothing here holds “&lt;krill”" in search.find_in(chat, f"{key}@1", "<krill")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("harbour", "harbour"),
        ("HARB", "harb"),
        ('"the  harbour"', "the\nharbour"),
        ("absent harbour", "harbour"),
        ("(", ""),
        ("", ""),
    ],
)
def test_the_first_match_is_marked(query: str, found: str) -> None:
    text = "In the\nharbour lay a ship."
    start, end = search.first_match(text, query)
    assert text[start:end] == found
