"""Search in the library's text, over a fake chat."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.ui import leafing, search
from tests.fake_chat import FakeDocumentChat


def test_hits_name_the_place_and_escape_the_text(chat: FakeDocumentChat, book: Path, tmp_path: Path) -> None:
    key = chat.library.add_document(book).id
    odd = tmp_path / "odd.txt"
    odd.write_text("<script>lighthouse</script>", encoding="utf-8")
    chat.library.add_document(odd)
    word = book.read_text(encoding="utf-8").split()[3]
    html = search.hits(chat, word)
    assert f'data-do="found" data-id="{key}@1"' in html and "A Quiet Coast · part 1 of 3" in html
    assert "<script>" not in search.hits(chat, "lighthouse")
    assert search.hits(chat, "  ") == ""
    assert "No document holds “&lt;krill”" in search.hits(chat, "<krill")


def test_a_hit_opens_its_part_with_the_word_marked(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.library.add_document(book).id
    word = book.read_text(encoding="utf-8").split()[3]
    html = leafing.document(chat, f"{key}@1", words=word.upper())
    assert f'<mark class="lt-mark">{word}</mark>' in html and "A Quiet Coast" in html
    assert "not here any more" in leafing.document(chat, "none@1")


def test_any_document_opens_and_is_gone_through(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.library.add_document(book).id
    first = leafing.document(chat, f"{key}@1")
    assert f'data-do="open-part" data-id="{key}@0" disabled' in first and f'data-id="{key}@2">Next' in first
    assert "1 of 3" in first and f'data-do="find-in" data-id="{key}@1"' in first


def test_contents_are_chapters_or_files_and_never_bare_pages(chat: FakeDocumentChat, book: Path) -> None:
    info = chat.library.add_document(book)
    outline = [(1, "1", "One"), (2, "2", "One"), (3, "3", "Two"), (4, "4", None)]
    assert leafing.contents(outline, info) == [(1, "One"), (3, "Two"), (4, "part 4 of 3")]
    assert leafing.contents([(1, "1", None), (2, "2", None)], info) == []
    code = replace(info, kind="code")
    assert leafing.contents([(1, "a.py", None), (2, "b.py", None)], code) == [(1, "a.py"), (2, "b.py")]


def test_a_page_is_gone_to_by_its_number(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.library.add_document(book).id
    assert leafing.go(f"{key}@1", " 3 ") == f"{key}@3"
    assert leafing.go(f"{key}@2", "no number") == f"{key}@2"
    assert "3 of 3" in leafing.document(chat, f"{key}@999").replace('"></form> of ', "3 of ")


def test_words_are_found_in_one_document(chat: FakeDocumentChat, book: Path, tmp_path: Path) -> None:
    key = chat.library.add_document(book).id
    other = tmp_path / "other.txt"
    other.write_text("Another harbour master.", encoding="utf-8")
    chat.library.add_document(other)
    html = leafing.document(chat, f"{key}@1", "harbour")
    assert f'data-do="open-part" data-id="{key}@2|harbour"' in html and '<mark class="lt-mark">harbour</mark>' in html
    assert html.count("|harbour") == 1 and 'value="2" inputmode' in html
    assert '<mark class="lt-mark">harbour</mark>' in leafing.document(chat, f"{key}@2|harbour")
    assert "Nothing here holds “&lt;krill”" in leafing.document(chat, f"{key}@1", "<krill")


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
    start, end = leafing.first_match(text, query)
    assert text[start:end] == found
