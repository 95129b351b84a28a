import hashlib

import pytest

from app.errors import InputError
from app.ingest.text import LONGEST_PART_CHARS, PART_CHARS, decode, load_text, split_parts

SAMPLES = {
    "cp1252": "Le café était fermé. “Où êtes-vous?” L’hôtel coûte 30 €, naïve Straße.",
    "cp1251": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "gb18030": "满纸荒唐言，一把辛酸泪。都云作者痴，谁解其中味？",
    "big5": "滾滾長江東逝水，浪花淘盡英雄。是非成敗轉頭空。",
    "euc_kr": "나는 고양이로소이다. 이름은 아직 없다. 어디서 태어났는지 모른다.",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_needs_no_note(encoding):
    assert decode("naïve 猫\r\nß\r".encode(encoding), "x.txt") == ("naïve 猫\nß\n", None)


@pytest.mark.parametrize("encoding", SAMPLES)
def test_other_encodings_are_found_and_named(encoding):
    text, note = decode((SAMPLES[encoding] + "\n").encode(encoding) * 3, "x.txt")
    assert text == (SAMPLES[encoding] + "\n") * 3
    assert encoding in note


def test_a_few_wrong_bytes_do_not_spoil_utf8():
    text, note = decode("“quotes” – all over".encode() * 30 + b" \x92 end", "x.txt")
    assert text.count("“quotes”") == 30 and text.endswith("\ufffd end")
    assert "1 places" in note


def test_bytes_of_no_known_encoding_are_marked():
    data = b"a \x81 b \x98 c\n"  # the first is not in cp1252, the second not in cp1251, no pair is in the others
    text, note = decode(data, "x.txt")
    assert text == data.decode("latin-1")
    assert "encoding unknown" in note


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\x7fELF" + bytes(50), bytes(range(1, 32)) * 20])
def test_binary_is_refused(data):
    with pytest.raises(InputError, match=r"photo\.txt: a binary file"):
        decode(data, "photo.txt")


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
