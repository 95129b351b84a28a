"""Scans: what stands where, in which order, and what is kept when a reading stops. A child of ours plays the engine."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from app.errors import CancelledError, InputError
from app.ingest import child, ocr, ocr_worker, pdf
from app.ingest.pdf import load_pdf


def line(text, left, top, right, bottom=None, sure=0.9):
    return [text, left, top, right, bottom or top + 0.02, sure]


def engine(tmp_path, body):
    script = tmp_path / "engine.py"
    script.write_text(
        "import json, os, sys, time\nrequest = json.loads(sys.stdin.readline())\n"
        "def tell(event): print(json.dumps(event), flush=True)\n"
        f"tell({{'ready': True}})\nfor page in request['pages']:\n    {body}\ntell({{'end': True}})\n"
    )
    return (sys.executable, str(script))


READS = "tell({'page': page, 'lines': [['scanned page %d' % page, .1, .1, .9, .2, .8]]})"


@pytest.fixture(autouse=True)
def one_picture(monkeypatch):
    """What the PDF reader says of a scan of one page."""

    def scan(*_):
        return pdf._Raw(1, [""], [], ["pypdfium2"], None, text={0: ""}, images={0})

    monkeypatch.setattr(pdf, "_read", scan)


@pytest.fixture
def read(data, tmp_path, monkeypatch):
    """A function: the engine's answer for each page to the document of a scan of one page."""
    monkeypatch.setattr(ocr, "available", lambda: True)

    def read(body=READS, **options):
        monkeypatch.setattr(child, "COMMAND", engine(tmp_path, body))
        path = data / "image-only-fax.pdf"
        return load_pdf(path, path.name, ocr_folder=tmp_path / "ocr", **options)

    return read


def test_a_scan_is_read_with_boxes_and_confidence(read, tmp_path):
    seen = []
    document = read(progress=lambda done, total: seen.append((done, total)))
    (part,) = document.parts
    assert part.text == "scanned page 0"
    assert part.boxes == ((0, 14, 0.1, 0.1, 0.9, 0.2, 0.8),)
    assert document.notes == ("1 of 1 pages were read by OCR, mean confidence 80% (page 1)",)
    assert seen[-1] == (1, 1)
    assert not list((tmp_path / "ocr").iterdir())


def test_what_was_recognised_waits_for_the_next_time(read, tmp_path, monkeypatch):
    with pytest.raises(CancelledError):
        read(READS + "; time.sleep(60)", cancelled=lambda: any((tmp_path / "ocr").glob("*.jsonl")))
    assert read("os._exit(3)").parts[0].text == "scanned page 0"


def test_pages_that_fail_are_listed(read):
    with pytest.raises(InputError, match="a scan, 1 of 1 pages hold only images"):
        read("os._exit(3)")
    with pytest.raises(InputError, match="a scan"):
        read("tell({'page': page, 'error': 'x'})")
    with pytest.raises(InputError, match=r"OCR cannot be used \(no module\)"):
        read("tell({'failed': 'no-ocr', 'detail': 'no module'}); sys.exit()")


def test_without_an_engine_the_message_says_how_to_get_one(data, tmp_path, monkeypatch):
    monkeypatch.setattr(ocr, "available", lambda: False)
    path = data / "image-only-fax.pdf"
    with pytest.raises(InputError, match=r"a scan, .* install OCR with \"python launch.py setup --with ocr\""):
        load_pdf(path, path.name)
    with pytest.raises(InputError, match="OCR is not installed; install it"):
        load_pdf(path, path.name, ocr_folder=tmp_path)


def test_lines_paragraphs_and_broken_words():
    lines = [line("the morn-", 0.1, 0.10, 0.5), line("ing sun", 0.1, 0.125, 0.4), line("Next", 0.1, 0.2, 0.3),
             line("right", 0.6, 0.1, 0.9)]  # fmt: skip
    text, boxes = ocr.arrange(lines)
    assert text == "the morn- right\ning sun\n\nNext"
    text, boxes = ocr.arrange(lines[:3])
    assert text == "the morning sun\n\nNext"
    assert [text[box.char_start : box.char_end] for box in boxes] == ["the morn", "ing sun", "Next"]


def test_columns_are_read_one_after_the_other_below_their_title():
    lines = [line("A title over both of the columns", 0.1, 0.05, 0.9)]
    lines += [line(f"left column line {i}", 0.1, 0.1 + i * 0.03, 0.47) for i in range(6)]
    lines += [line(f"right column line {i}", 0.53, 0.1 + i * 0.03, 0.9) for i in range(6)]
    text = ocr.arrange(sorted(lines, key=lambda line: (line[2], -line[1])))[0].split("\n")
    assert [row for row in text if row] == [
        "A title over both of the columns", *(f"left column line {i}" for i in range(6)),
        *(f"right column line {i}" for i in range(6)),
    ]  # fmt: skip


def test_a_table_is_read_across():
    lines = [line(str(10 * row + column), 0.1 + column * 0.3, 0.1 + row * 0.03, 0.15 + column * 0.3)
             for row in range(6) for column in range(3)]  # fmt: skip
    assert ocr.arrange(lines)[0].split("\n")[:2] == ["0 1 2", "10 11 12"]


def test_a_file_of_pages_that_was_cut_off(tmp_path):
    kept = tmp_path / "a.jsonl"
    kept.write_text(json.dumps({"page": 3, "lines": []}) + "\n" + '{"page": 4, "li')
    assert ocr._kept(kept) == {3: []}


@pytest.mark.skipif(find_spec("cv2") is None, reason="OCR is not installed")
@pytest.mark.parametrize(("sure_when_narrow", "pictures_seen"), [(0.99, 20), (0.5, 25)])
def test_a_page_whose_type_is_too_narrow_already_is_not_narrowed(sure_when_narrow, pictures_seen):
    """Twenty lines: recognised once each narrowed, or five of them once more and the others only whole."""
    seen = []

    def recognise(picture):
        narrowed = picture.shape[1] < 200 + picture.shape[0]
        seen.append(narrowed)
        return SimpleNamespace(scores=[sure_when_narrow if narrowed else 0.98], line=picture.shape[0])

    lines = [np.zeros((20 + number, 200 + 2 * number + 21), np.uint8) for number in range(20)]
    with ThreadPoolExecutor(2) as pool:
        found = ocr_worker._recognised(lines, recognise, pool)
    assert [one.line for one in found] == [line.shape[0] for line in lines]
    assert len(seen) == pictures_seen
    assert all(one.scores[0] >= 0.98 for one in found)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("rapidocr") is None, reason="OCR is not installed")
def test_the_engine_reads_print(tmp_path):
    """One page, which the stand-in of the PDF reader describes too."""
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("L", (1200, 400), 255)
    ImageDraw.Draw(page).text((60, 150), "The harbour bell rings at noon", font=ImageFont.load_default(64))
    page.save(tmp_path / "a.pdf", resolution=150)
    document = load_pdf(tmp_path / "a.pdf", "a.pdf", ocr_folder=tmp_path)
    assert document.parts[0].text == "The harbour bell rings at noon"
    (box,) = document.parts[0].boxes
    assert abs((box.top + box.bottom) / 2 - 0.47) < 0.08 and box.confidence > 0.8


def test_blank_pages_are_not_offered_to_ocr_again(read, monkeypatch):
    with pytest.raises(InputError, match="OCR found no text on 1 of 1 pages, and no other holds any; they are blank"):
        read("tell({'page': page, 'lines': []})")
    two = pdf._Raw(2, ["", ""], [], ["pypdfium2"], None, text={0: "", 1: ""}, images={0, 1})
    monkeypatch.setattr(pdf, "_read", lambda *_: two)
    document = read("tell({'page': page, 'lines': [['one', .1, .1, .9, .2, .8]] if page else []})")
    assert document.notes == (
        "1 of 2 pages were read by OCR, mean confidence 80% (page 2)", "OCR found no text on 1 of 2 pages (page 1)",
    )  # fmt: skip
    assert document.keep_file
