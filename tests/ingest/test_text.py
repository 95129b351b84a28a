import hashlib

import pytest

from app.errors import CancelledError, InputError
from app.ingest.text import LONGEST_PART_CHARS, PART_CHARS, load_text, split_parts


def test_parts_hold_all_the_text_and_about_a_page(data):
    text = (data / "book.txt").read_text(encoding="utf-8")
    parts = split_parts(text)
    assert "".join(part.text for part in parts) == text
    assert [part.index for part in parts] == [int(part.label) for part in parts] == list(range(1, len(parts) + 1))
    assert max(len(part.text) for part in parts) <= PART_CHARS
    assert all(part.text.endswith("\n\n") for part in parts[:-1])


def test_chapters_of_a_book(data):
    parts = split_parts((data / "book.txt").read_text(encoding="utf-8"))
    chapters = list(dict.fromkeys(part.chapter for part in parts))
    assert chapters[:3] == ["Part I", "Chapter 1 - My Early Home", "Chapter 2 - The Hunt"]
    assert chapters[-1] == "Chapter 49 - My Last Home"
    started = next(part for part in parts if part.chapter == "Chapter 2 - The Hunt")
    assert started.text.startswith("Chapter 2 - The Hunt")


@pytest.mark.parametrize(
    "heading",
    ["CHAPTER IV", "Chapter 12: The End?", "BOOK THE SECOND", "Chapter Twenty-One", "ACT III.", "PROLOGUE", "Letter 4",
     "CHAPTER I\nDown the Rabbit-Hole"],
)  # fmt: skip
def test_headings(heading):
    parts = split_parts(f"{'before. ' * 200}\n\n{heading}\n\nafter.\n")
    assert [part.chapter for part in parts] == [None, " ".join(heading.split())]


@pytest.mark.parametrize(
    "line", ["Part of it was lost.", "Chapter three was the best, he said.", "Book now", "I am here"]
)
def test_no_headings(line):
    assert [part.chapter for part in split_parts(f"{'before. ' * 200}\n\n{line}\n\nafter.\n")] == [None]


def test_lone_roman_numerals_count_from_three_on():
    body = "word " * 300
    assert [p.chapter for p in split_parts(f"I\n\n{body}\n\nII\n\n{body}\n\nIII\n\n{body}")] == ["I", "II", "III"]
    assert [p.chapter for p in split_parts(f"I\n\n{body}\n\nII\n\n{body}")] == [None, None]


def test_markdown_headings_but_not_in_code():
    body = "word " * 250
    text = f"# One\n{body}\n\n```sh\n# not a heading\n```\n{body}\n## Two ##\n\n{body}\n"
    parts = split_parts(text, markdown=True)
    assert "".join(part.text for part in parts) == text
    assert list(dict.fromkeys(part.chapter for part in parts)) == ["One", "Two"]


def test_a_text_without_paragraphs_is_cut_at_sentences():
    text = "This is a sentence. " * 1000
    parts = split_parts(text)
    assert "".join(part.text for part in parts) == text
    assert all(part.text.endswith(". ") and len(part.text) <= LONGEST_PART_CHARS for part in parts)
    assert max(len(part.text) for part in split_parts("x" * 50_000)) <= LONGEST_PART_CHARS


@pytest.mark.parametrize("blanks", [" " * 9_000, "\n" * 9_000, "\t\n" * 4_500, "\n" + " " * 9_000])
def test_pages_of_blanks_belong_to_the_page_after_them(blanks):
    parts = split_parts(blanks + "one\n\n" + blanks + "two\n")
    assert "".join(part.text for part in parts) == blanks + "one\n\n" + blanks + "two\n"
    assert [part.text.strip() for part in parts] == ["one", "two"]


def test_splitting_is_cancelled():
    asked = iter([False, False, True])
    with pytest.raises(CancelledError):
        split_parts("a line\n\n" * 10_000, cancelled=lambda: next(asked))


def test_load_text(tmp_path):
    path = tmp_path / "upload.tmp"
    source = "Déjà vu.\n".encode("cp1252")
    path.write_bytes(source)
    document = load_text(path, "My book.txt")
    assert (document.title, document.kind, document.parts[0].text) == ("My book", "text", "Déjà vu.\n")
    assert document.sha256 == hashlib.sha256(source).hexdigest()
    assert "cp1252" in document.notes[0]


def test_blank_text_is_refused(tmp_path):
    path = tmp_path / "blank.txt"
    path.write_text(" \n\n\t\n")
    with pytest.raises(InputError, match="only blanks"):
        load_text(path, "blank.txt")
