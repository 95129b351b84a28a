"""What is done with the files that the library keeps: pages shown, texts decoded anew."""

import io

import pytest
from PIL import Image

from app.errors import ConfigError, InputError
from app.ingest import ocr
from tests.chat.opened import open_chat as open_chat
from tests.ingest.pdf_maker import drawn, page_objects, pdf_bytes

GREEK = "Η θάλασσα είναι βαθιά και ο φάρος είναι παλιός. " * 30


def finished(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.fixture
def chat(open_chat):
    return open_chat()


@pytest.fixture
def wrong(chat, tmp_path):
    """A Greek text that was read as Cyrillic."""
    (tmp_path / "sea.txt").write_bytes(GREEK.encode("cp1253"))
    return chat.library.add_document(tmp_path / "sea.txt", encoding="cp1251")


def test_a_text_is_decoded_anew_in_place_of_the_old_one(chat, wrong):
    assert chat.library.choosable() == {wrong.id}
    right = finished(chat.library.decode_again(wrong.id, "cp1253"))
    assert chat.store.part(right.id, 1).text.startswith("Η θάλασσα")
    assert right.title == "sea" and right.id != wrong.id
    assert [info.id for info in chat.library.documents()] == [right.id]
    assert chat.library.choosable() == {right.id}
    assert finished(chat.library.decode_again(right.id, None)).notes == (
        "not UTF-8: read as iso8859-7",
    )  # the same letters


def test_a_document_that_a_chat_is_about_stays(chat, wrong):
    chat.saved.new_chat([wrong.id])
    right = finished(chat.library.decode_again(wrong.id, "cp1253"))
    assert {info.id for info in chat.library.documents()} == {wrong.id, right.id}


def test_what_cannot_be_decoded_anew(chat, wrong, tmp_path):
    with pytest.raises(ConfigError, match="encoding 'greek-ish': not known"):
        finished(chat.library.decode_again(wrong.id, "greek-ish"))
    (tmp_path / "plain.txt").write_text("Plain text.")
    plain = chat.library.add_document(tmp_path / "plain.txt")
    with pytest.raises(InputError, match="plain: its file is not kept"):
        finished(chat.library.decode_again(plain.id, "cp1253"))
    assert chat.pages.page_image(plain.id, 1) is None


def test_a_page_that_ocr_read_is_drawn_and_a_passage_has_its_place(chat, tmp_path, monkeypatch):
    line = (0.1, 0.2, 0.9, 0.3, 0.95)
    found = ocr.Recognised({0: ("One line", (ocr.Box(0, 8, *line),))})
    monkeypatch.setattr(ocr, "recognise", lambda *_, **__: found)
    Image.new("L", (600, 300), 255).save(tmp_path / "scan.pdf", resolution=150)
    scan = chat.library.add_document(tmp_path / "scan.pdf", ocr=True)
    picture = Image.open(io.BytesIO(chat.pages.page_image(scan.id, 1)))
    assert picture.format == "JPEG" and picture.size == (1200, 600)
    part = chat.store.part(scan.id, 1)
    assert chat.pages.locate(scan.id, part, 4, 8).boxes == (line[:4],)
    assert chat.pages.locate(scan.id, part, 8, 9).boxes == ()
    with pytest.raises(InputError, match="page 3 cannot be drawn"):
        chat.pages.page_image(scan.id, 3)
    assert chat.library.choosable() == set()


def test_a_passage_is_found_on_the_page_of_a_pdf(chat, tmp_path):
    text = "The harbour was dark. A lamp\nburned in the light- \nhouse, and the harbour was dark."
    (tmp_path / "a.pdf").write_bytes(pdf_bytes(page_objects([drawn("An empty page."), drawn(text)])))
    book = chat.library.add_document(tmp_path / "a.pdf")
    part = chat.store.part(book.id, 2)
    assert "lighthouse" in part.text or "light-house" in part.text
    lamp = part.text.index("A lamp")
    found = chat.pages.locate(book.id, part, lamp, part.text.index(", and"))
    assert (found.width, found.height) == (600, 800)
    tops = [box[1] for box in found.boxes]
    assert len(tops) == 3 and tops == sorted(tops) and found.boxes[0][0] > found.boxes[1][0]
    again = part.text.rindex("the harbour was dark")
    (second,) = chat.pages.locate(book.id, part, again + 4, len(part.text)).boxes
    assert second[1] > tops[1], "the same words stand in the first line, too"
    assert chat.pages.locate(book.id, part, 0, 0).boxes == ()
    assert chat.library.choosable() == set()
