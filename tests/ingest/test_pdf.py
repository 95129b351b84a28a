import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import unicodedata
import zlib
from pathlib import Path

import psutil
import pypdf
import pytest
from pdf_maker import page_objects, pdf_bytes, stream

from app.errors import CancelledError, InputError, PasswordError
from app.ingest import child, pdf, pdf_worker
from app.ingest.pdf import chapter_of_pages, load_pdf

logging.getLogger("pypdf").setLevel(logging.CRITICAL)
pytestmark = pytest.mark.filterwarnings("ignore:.*add_outline_item:DeprecationWarning")


def load(path: Path, **options):
    return load_pdf(path, path.name, **options)


def flat(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def test_pages_labels_chapters(make_pdf):
    def change(writer):
        writer.set_page_label(0, 1, style="/r")
        writer.set_page_label(2, 7, style="/D", start=1)
        part = writer.add_outline_item("Part  One", page_number=2)
        writer.add_outline_item("The\tBell", page_number=2, parent=part)
        writer.add_outline_item("The Sea", page_number=5, parent=part)

    document = load(make_pdf([f"This is page {n} of the book." for n in range(1, 9)], change=change))
    assert (document.title, document.kind, document.notes, document.skipped) == ("made", "pdf", (), ())
    assert [part.index for part in document.parts] == list(range(1, 9))
    assert [part.label for part in document.parts] == ["i", "ii", "1", "2", "3", "4", "5", "6"]
    assert [part.text for part in document.parts] == [f"This is page {n} of the book." for n in range(1, 9)]
    assert [part.chapter for part in document.parts] == [None] * 2 + ["The Bell"] * 3 + ["The Sea"] * 3


def test_chapters_come_from_the_deepest_level_that_is_not_too_fine():
    novel = [(0, 0, "Part I"), (1, 1, "One"), (1, 10, "Two"), (0, 20, "Part II"), (1, 20, "Three")]
    chapters = chapter_of_pages(novel, 30)
    assert (chapters[0], chapters[5], chapters[12], chapters[20], chapters[25]) == (
        "Part I", "One", "Two", "Three", "Three",
    )  # fmt: skip
    manual = [(0, 0, "Use"), *[(1, page, f"Section {page}") for page in range(9)], (0, 9, "Index"), (0, 99, "beyond")]
    assert chapter_of_pages(manual, 12) == ["Use"] * 9 + ["Index"] * 3
    assert chapter_of_pages([(0, None, "lost"), (0, 1, " ")], 2) == [None, None]


def test_a_cyclic_outline_ends(make_pdf):
    def change(writer):
        first = writer.add_outline_item("A", page_number=0).get_object()
        second = writer.add_outline_item("B", page_number=3).get_object()
        second[pypdf.generic.NameObject("/Next")] = first.indirect_reference
        second[pypdf.generic.NameObject("/First")] = first.indirect_reference

    document = load(make_pdf(["some text on a page"] * 6, change=change))
    assert {part.chapter for part in document.parts} >= {"A", "B"}


def test_encrypted(data, make_pdf):
    path = data / "encrypted-rc4-user.pdf"
    with pytest.raises(PasswordError, match=r"encrypted-rc4-user\.pdf: this PDF is encrypted and needs a password"):
        load(path)
    with pytest.raises(PasswordError, match="the password given does not open it") as caught:
        load(path, password="guess")
    assert "guess" not in str(caught.value)
    assert "pdf encryption test" in load(path, password="asdfzxcv").parts[0].text
    assert "pdf encryption test" in load(data / "encrypted-aes256-empty.pdf").parts[0].text
    assert "pdf encryption test" in load(data / "encrypted-aes256-empty.pdf", password="not needed").parts[0].text
    made = make_pdf(["a secret page"], change=lambda w: w.encrypt("ключ", "owner", algorithm="AES-256"))
    assert load(made, password="ключ").parts[0].text == "a secret page"


@pytest.mark.parametrize("readers", [("pypdfium2",), ("pypdf",)])
def test_one_reader_alone(readers, data, make_pdf, monkeypatch):
    monkeypatch.setattr(pdf, "_READERS", (readers,))
    document = load(data / "crazyones.pdf")
    assert "the only thing you cant do is" in flat(document.parts[0].text).replace("’", "")
    assert any("pypdf alone" in note for note in document.notes) == (readers == ("pypdf",))
    with pytest.raises(PasswordError, match="needs a password"):
        load(data / "encrypted-rc4-user.pdf")
    with pytest.raises(PasswordError, match="does not open"):
        load(data / "encrypted-rc4-user.pdf", password="wrong")
    with pytest.raises(InputError, match="a scan, 1 of 1 pages"):
        load(data / "image-only-fax.pdf")
    labelled = make_pdf(["page one", "page two"], change=lambda w: w.set_page_label(0, 1, style="/A"))
    assert [part.label for part in load(labelled).parts] == ["A", "B"]


def test_without_pypdfium2_installed(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    request = {"path": str(data / "crazyones.pdf"), "password": None, "first": 0, "readers": ["pypdfium2", "pypdf"]}
    structure, page = pdf_worker.events(request)
    assert structure["structure"]["readers"] == ["pypdf"]
    assert "crazy ones" in page["text"].lower()


def test_scan(data):
    with pytest.raises(InputError, match=r"image-only-fax\.pdf: a scan, 1 of 1 pages.*OCR"):
        load(data / "image-only-fax.pdf")


def test_some_scanned_pages_are_named(data, tmp_path, make_pdf):
    writer = pypdf.PdfWriter(clone_from=make_pdf(["a page with enough text on it"] * 2))
    writer.append(data / "image-only-fax.pdf")
    writer.write(tmp_path / "mixed.pdf")
    document = load(tmp_path / "mixed.pdf")
    assert len(document.parts) == 3 and document.parts[2].text == ""
    assert document.notes[0].startswith("1 of 3 pages hold only images (page 3); ")


def test_no_text_no_pages(make_pdf, tmp_path):
    with pytest.raises(InputError, match="no text on any of its 2 pages"):
        load(make_pdf(["", ""]))
    path = tmp_path / "none.pdf"
    path.write_bytes(pdf_bytes([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"]))
    with pytest.raises(InputError, match=r"none\.pdf: this PDF has no pages"):
        load(path)


def test_not_a_pdf(tmp_path):
    path = tmp_path / "page.pdf"
    path.write_text("<html>login first</html>")
    with pytest.raises(InputError, match=r"page\.pdf: not a PDF, it starts with b'<html>lo'"):
        load(path)


def test_cut_off(data, tmp_path):
    whole = (data / "crazyones.pdf").read_bytes()
    for share in (0.3, 0.6, 0.9):
        path = tmp_path / "half.pdf"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=r"half\.pdf: this PDF is cut off.*download or copy it again"):
            load(path)


def test_damaged(data, tmp_path, make_pdf):
    document = load(data / "missing-startxref-simple.pdf")
    assert "Hello World" in document.parts[0].text
    assert "damaged (startxref not found)" in document.notes[0]
    path = tmp_path / "bad.pdf"
    path.write_bytes(b"%PDF-1.7\n" + os.urandom(500) + b"\n%%EOF\n")
    with pytest.raises(InputError, match=r"bad\.pdf: this PDF is damaged and cannot be opened"):
        load(path)


def test_fonts_without_unicode(tmp_path, shared_data):
    codes = b"".join(b"\\%03o" % code for code in range(1, 26))
    differences = b" ".join(b"/g%d" % code for code in range(1, 26))
    objects = page_objects([b"BT /F1 12 Tf 50 750 Td (%s) Tj ET" % codes])
    objects[2] = b"<</Type/Font/Subtype/Type1/BaseFont/Own/Encoding<</Differences[1 %s]>>>>" % differences
    path = tmp_path / "unmapped.pdf"
    path.write_bytes(pdf_bytes(objects))
    with pytest.raises(InputError, match=r"unmapped\.pdf: its fonts do not say which letters they draw.*OCR"):
        load(path)
    partly = load(shared_data / "pdfs" / "tam-review.pdf")
    assert partly.notes[0].startswith("most of this document could not be read: 21 of 23 pages")
    assert "21 of 23 pages hold lines whose fonts do not say" in partly.notes[1]


def worker_script(tmp_path: Path, body: str) -> tuple[str, ...]:
    """A stand-in for the worker that misbehaves on its second page, wherever it starts."""
    structure = {"count": 4, "labels": [""] * 4, "outline": [], "readers": ["pypdfium2", "pypdf"], "damage": None}
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "first = json.loads(sys.stdin.readline())['first']\n"
        f"print(json.dumps({{'structure': {structure!r}}}), flush=True)\n"
        "for page in range(first, 4):\n"
        f"    if page == 1:\n        {body}\n"
        "    print(json.dumps({'page': page, 'text': f'text {page}', 'image': False}), flush=True)\n"
        "print(json.dumps({'end': True}), flush=True)\n"
    )
    return (sys.executable, str(script))


@pytest.mark.parametrize(
    ("body", "reason"), [("time.sleep(60)", "more than 0.5 s"), ("os._exit(3)", "the PDF reader crashed")]
)
def test_a_page_that_hangs_or_crashes_the_reader_is_skipped(body, reason, make_pdf, tmp_path, monkeypatch):
    path = make_pdf(["x"])
    monkeypatch.setattr(child, "COMMAND", worker_script(tmp_path, body))
    monkeypatch.setattr(child, "NEXT_TIMEOUT_S", 0.5)
    seen = []
    document = load(path, progress=lambda done, total: seen.append((done, total)))
    assert [part.text for part in document.parts] == ["text 0", "", "text 2", "text 3"]
    assert [(item.name, reason in item.reason) for item in document.skipped] == [("page 2", True)]
    assert seen == [(1, 4), (3, 4), (4, 4)]


def test_a_reader_that_keeps_crashing_is_given_up(make_pdf, tmp_path, monkeypatch):
    path = make_pdf(["x"])
    command = worker_script(tmp_path, "")
    (tmp_path / "worker.py").write_text((tmp_path / "worker.py").read_text().replace("page == 1:", "page: os._exit(3)"))
    monkeypatch.setattr(child, "COMMAND", command)
    monkeypatch.setattr(pdf, "MAX_RESTARTS", 1)
    document = load(path)
    assert [part.text for part in document.parts] == ["text 0", "", "", ""]
    assert [item.reason for item in document.skipped] == ["the PDF reader crashed"] * 2 + [
        "not tried, after many such pages"
    ]


def test_too_much_text(make_pdf, monkeypatch):
    monkeypatch.setattr(pdf, "MAX_CHARS", 20)
    with pytest.raises(InputError, match=r"made\.pdf: more than 20 characters by page 2; split it"):
        load(make_pdf(["fifteen letters"] * 3))


def test_a_file_on_which_the_reader_dies_at_once(make_pdf, tmp_path, monkeypatch):
    path = make_pdf(["x"])
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(InputError, match=r"made\.pdf: cannot be opened, the PDF reader crashed"):
        load(path)


def test_a_page_that_never_ends_is_skipped(tmp_path, monkeypatch):
    """Forms that draw forms, ten times each, nine deep: a thousand million texts."""
    objects = page_objects([b"BT /F1 12 Tf 50 750 Td (a good page) Tj ET", b"/X0 Do"], b"/XObject<</X0 8 0 R>>")
    for depth in range(9):
        body = b"/X Do " * 10 if depth < 8 else b"BT /F1 1 Tf (boom) Tj ET "
        inner = b"/XObject<</X %d 0 R>>" % (9 + depth) if depth < 8 else b"/Font<</F1 3 0 R>>"
        objects.append(stream(body, b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<<%s>>" % inner))
    path = tmp_path / "forms.pdf"
    path.write_bytes(pdf_bytes(objects))
    monkeypatch.setattr(child, "NEXT_TIMEOUT_S", 1.0)
    document = load(path)
    assert document.parts[0].text == "a good page"
    assert [item.name for item in document.skipped] == ["page 2"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds to an address-space limit")
def test_a_page_that_needs_too_much_memory_is_skipped(tmp_path, monkeypatch):
    bomb = zlib.compress(zlib.compress(b"BT (x) Tj ET " * 30_000_000, 1), 9)
    objects = page_objects([b"BT /F1 12 Tf 50 750 Td (a good page) Tj ET", b""])
    objects[-1] = stream(bomb, b"/Filter[/FlateDecode/FlateDecode]")
    path = tmp_path / "bomb.pdf"
    path.write_bytes(pdf_bytes(objects))
    monkeypatch.setattr(child, "MEMORY_BYTES", 500 << 20)
    document = load(path)
    assert document.parts[0].text == "a good page"
    assert document.parts[1].text == "" and [item.name for item in document.skipped] == ["page 2"]


def test_cancel_stops_the_reader(make_pdf, tmp_path, monkeypatch):
    path = make_pdf(["x"])
    monkeypatch.setattr(child, "COMMAND", worker_script(tmp_path, "time.sleep(60)"))
    reached, before = threading.Event(), psutil.Process().children(recursive=True)  # other tests may have left some
    with pytest.raises(CancelledError):
        load(path, progress=lambda done, total: reached.set(), cancelled=reached.is_set)
    assert set(psutil.Process().children(recursive=True)) <= set(before)


def test_from_another_thread_and_folder(data, tmp_path, monkeypatch):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('not this one')")
    shutil.copy(data / "crazyones.pdf", tmp_path / "here.pdf")
    monkeypatch.chdir(tmp_path)
    found = []
    thread = threading.Thread(target=lambda: found.append(load(Path("here.pdf"))))
    thread.start()
    thread.join()
    assert len(found[0].parts) == 1


def test_the_worker_ends_with_its_parent(data):
    worker = subprocess.Popen(child.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=child.ROOT)
    request = {"path": str(data / "crazyones.pdf"), "password": None, "first": 0, "readers": ["slow"]}
    request |= {"module": "app.ingest.pdf_worker", "memory_bytes": 1 << 31}
    worker.stdin.write(json.dumps(request).encode() + b"\n")
    worker.stdin.close()
    assert worker.wait(timeout=20) in (0, 1)
    worker.stdout.close()


REFUSED = {
    "broken-huge-number.pdf": "damaged and cannot be opened",
    "broken-truncated.pdf": "cut off",
    "broken-no-startxref.pdf": r"damaged \(startxref not found\) and no text is left",
    "broken-no-xref.pdf": r"damaged \(startxref not found\) and no text is left",
    "empty-zero-bytes.pdf": "not a PDF",
    "unreadable-metadata.pdf": "damaged and cannot be opened",
    "image-only-two-pages.pdf": "a scan, 2 of 2 pages",
    "image-only-fax.pdf": "a scan, 1 of 1 pages",
    "image-only-imagemagick.pdf": "a scan, 1 of 1 pages",
}


def test_every_shared_pdf(shared_data):
    """Page counts, labels and all phrases of expect.jsonl; a specific message for what cannot be read."""
    folder = shared_data / "pdfs"
    for line in (folder / "expect.jsonl").read_text(encoding="utf-8").splitlines():
        expected = json.loads(line)
        name, password = expected["file"], expected["password"]
        if name in REFUSED:
            with pytest.raises(InputError, match=rf"{name}: .*{REFUSED[name]}"):
                load(folder / name)
            continue
        if password:
            with pytest.raises(PasswordError, match="needs a password"):
                load(folder / name)
        document = load(folder / name, password=password)
        assert len(document.parts) == (expected["pages"] or len(document.parts)), name
        labels = [part.label for part in document.parts][:8]
        if expected["first_labels"]:
            assert labels == [label or str(i) for i, label in enumerate(expected["first_labels"], start=1)], name
        for phrase in expected["must_contain"] or []:
            assert flat(phrase["text"]) in flat(document.parts[phrase["page"] - 1].text), (name, phrase)


@pytest.mark.parametrize(
    ("name", "page", "text"),
    [
        ("hebrew-line.pdf", 1, "לחיוב פעולות אלה לפי סעיף 15(ב)(4) לחוק מבקר המדינה"),
        ("arabic-presentation-forms.pdf", 1, "انواع الخطوط العربية"),
        ("arabic-habibi.pdf", 1, "حَبيبي habibi حَبيبي"),
        ("japanese-text.pdf", 1, "電線接続端子部が次のいずれにも該当しないとき。"),
        ("korean-jamo.pdf", 1, "ㄱ\nㄲ\nㄳ"),
        ("introduction-to-mathematics.pdf", 20, "it is indifferent to us whether the law be true"),
        ("federal-register.pdf", 4, "the other non-normal checklists"),
        ("think-python-2e.pdf", 62, ">>> 5 == 5\nTrue\n>>> 5 == 6\nFalse"),
        ("pride-and-prejudice-part.pdf", 12, "Mr. Bennet, impossible, when I am not acquainted"),
        ("scan-with-ocr-layer.pdf", 1, "conspicuous and dangerous for use."),
        ("annotated.pdf", 1, "Some text.\nLine 1\nLine 2\nNot highlighted"),
    ],
)
def test_text_as_a_reader_sees_it(name, page, text, shared_data):
    assert text in load(shared_data / "pdfs" / name).parts[page - 1].text


@pytest.mark.parametrize(
    ("name", "page", "chapter"),
    [
        ("introduction-to-mathematics.pdf", 20, "III: Methods of Application."),
        ("think-python-2e.pdf", 100, "Strings"),
        ("pride-and-prejudice-part.pdf", 12, "II"),
        ("nested-outline.pdf", 6, "2. Main Content"),
    ],
)
def test_chapters_of_real_books(name, page, chapter, shared_data):
    assert load(shared_data / "pdfs" / name).parts[page - 1].chapter == chapter
