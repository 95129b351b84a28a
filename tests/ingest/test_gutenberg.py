"""Project Gutenberg's words around a book, as files of each decade have them; texts made for these tests."""

import pytest

from app.ingest import gutenberg
from app.ingest.text import load_text

TOP = "The Project Gutenberg eBook of A Made Book\n\nThis text may be given away.\n\n"
BOOK = "CHAPTER I\n\nIt was a fine day.\n\nCHAPTER II\n\nIt rained, and the gutenberg press stood still.\n\n"
STARTS = [
    "*** START OF THE PROJECT GUTENBERG EBOOK A MADE BOOK ***\n",
    "***START OF THE PROJECT GUTENBERG EBOOK A MADE BOOK***\n",
    "*** START OF THIS PROJECT GUTENBERG EBOOK A MADE BOOK,\nOR THE SECOND LINE ***\n",
    "*** START OF THE PROJECT GUTENBERG EBOOK 12345 ***\n",
    "*** START OF THE PROJECT GUTENBERG ETEXT A MADE BOOK ***\n",
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
    "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*\n",
]
ENDS = [
    "*** END OF THE PROJECT GUTENBERG EBOOK A MADE BOOK ***\n",
    "***END OF THIS PROJECT GUTENBERG EBOOK A MADE BOOK***\n",
    "End of the Project Gutenberg EBook of A Made Book, by Nobody\n",
    "End of Project Gutenberg's A Made Book, by Nobody\n",
    "End of The Project Gutenberg Etext of A Made Book\n",
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN EBOOKS**START***\n",
]


@pytest.mark.parametrize("start", STARTS)
def test_the_book_begins_after_the_mark(start):
    text = TOP + start + BOOK
    assert gutenberg.cut(text) == (len(TOP + start), len(text))


@pytest.mark.parametrize("end", ENDS)
def test_the_book_ends_before_the_mark(end):
    text = TOP + STARTS[0] + BOOK + end + "All about the licence.\n"
    assert gutenberg.cut(text) == (len(TOP + STARTS[0]), len(TOP + STARTS[0] + BOOK))


def test_small_print_before_the_book_is_front_matter():
    small = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here?\n" + STARTS[5]
    text = TOP + small + BOOK
    assert gutenberg.cut(text) == (len(TOP + small), len(text))


@pytest.mark.parametrize("text", [BOOK, "About Project Gutenberg.\n\n" + BOOK, TOP + STARTS[0]])
def test_other_texts_are_left_as_they_are(text):
    assert gutenberg.cut(text) == (0, len(text))


def test_parts_keep_every_character_and_say_what_they_are(tmp_path):
    text = TOP + STARTS[0] + BOOK + ENDS[0] + "All about the licence.\n"
    (tmp_path / "a.txt").write_text(text)
    document = load_text(tmp_path / "a.txt", "a.txt")
    assert "".join(part.text for part in document.parts) == text
    assert [part.index for part in document.parts] == list(range(1, len(document.parts) + 1))
    assert [(part.kind, part.chapter) for part in document.parts] == [
        ("front matter", "Front matter"), ("", "CHAPTER I"), ("licence", "Licence"),
    ]  # fmt: skip
    assert document.notes == ("Project Gutenberg's front matter and licence: muted unless you ask to look there too",)
