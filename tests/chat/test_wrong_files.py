"""Files that cannot be read leave one message, an app that goes on, and nothing in the library."""

import json
import zipfile

import pytest

from app.errors import InputError
from app.ingest import ocr
from tests.chat.opened import open_chat as open_chat
from tests.ingest.pdf_maker import page_objects, pdf_bytes

CONTAINER = '<container><rootfiles><rootfile full-path="o.opf"/></rootfiles></container>'


def pack(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(name, text)


def cut_off(path):
    pack(path, {"a.py": "x = 1\n" * 500})
    path.write_bytes(path.read_bytes()[:-60])


def without_spine(path):
    pack(path, {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER,
                "o.opf": "<package><manifest/><spine/></package>"})  # fmt: skip


def entities(path):
    page = '<!DOCTYPE html [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><html><body>&b;</body></html>'
    manifest = '<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>'
    opf = f'<package><manifest>{manifest}</manifest><spine><itemref idref="a"/></spine></package>'
    pack(path, {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "o.opf": opf, "a.xhtml": page})


def many_entries(path):
    pack(path, dict.fromkeys(map(str, range(20_001)), ""))


def slides_without_slides(path):
    types = "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml"
    override = f'<Types><Override PartName="/ppt/presentation.xml" ContentType="{types}"/></Types>'
    pack(path, {"[Content_Types].xml": override, "ppt/presentation.xml": "<presentation/>"})


def no_cells(path):
    path.write_text(json.dumps({"nbformat": 4, "cells": [], "metadata": {}}))


def blank(path):
    path.write_bytes(pdf_bytes(page_objects([b"", b""])))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("cut.zip", cut_off, "not a zip archive or damaged"),
        ("cut.docx", cut_off, "damaged or cut off"),
        ("cut.epub", cut_off, "damaged or cut off"),
        ("book.epub", without_spine, "names no reading order"),
        ("deck.docx", slides_without_slides, "not an office file of its kind"),
        ("many.zip", many_entries, "more than 20,000 files"),
        ("many.epub", many_entries, "more than 20,000 files"),
        ("empty.ipynb", no_cells, r"this notebook has no cells \(0\)"),
        ("blank.pdf", blank, "no text on any of its 2 pages"),
    ],
)  # fmt: skip
def test_a_wrong_file_leaves_a_message_and_nothing_else(open_chat, tmp_path, name, make, message):
    chat = open_chat()
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as failure:
        chat.library.add_document(tmp_path / name)
    assert str(failure.value).startswith(f"{name}: ") and "Traceback" not in str(failure.value)
    (tmp_path / "good.txt").write_text("Good words.")
    good = chat.library.add_document(tmp_path / "good.txt")
    assert [info.id for info in chat.library.documents()] == [good.id] and chat.store.sources() == {}


def test_entities_do_not_grow(open_chat, tmp_path):
    chat = open_chat()
    entities(tmp_path / "book.epub")
    try:
        document = chat.library.add_document(tmp_path / "book.epub")
    except InputError as error:
        assert "book.epub" in str(error) and chat.library.documents() == []
    else:
        assert len(chat.store.part(document.id, 1).text) < 20


def test_a_scan_of_blank_pages(open_chat, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(ocr, "recognise", lambda *_, **__: ocr.Recognised())
    Image.new("L", (600, 300), 255).save(tmp_path / "scan.pdf", resolution=150)
    chat = open_chat()
    with pytest.raises(InputError, match="scan.pdf: OCR found no text on 1 of 1 pages"):
        chat.library.add_document(tmp_path / "scan.pdf", ocr=True)
    assert chat.library.documents() == [] and chat.store.sources() == {}
