"""Search in the library's text, over a fake chat."""

from pathlib import Path

import pytest

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
