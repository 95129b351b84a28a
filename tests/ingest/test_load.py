import hashlib
import os
import shutil
import zipfile

import pytest

from app.errors import InputError, PasswordError
from app.ingest import load, pdf
from app.ingest.load import load_document


def test_each_kind_goes_to_its_reader(data, tmp_path):
    (tmp_path / "a.md").write_text("# Title\n\ntext\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    (tmp_path / "README").write_text("read me\n")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as packed:
        packed.writestr("b.py", "x = 1\n")
    found = {name: load_document(tmp_path / name).kind for name in ("a.md", "b.py", "README", "c.zip")} | {
        "book.txt": load_document(data / "book.txt").kind,
        "crazyones.pdf": load_document(data / "crazyones.pdf").kind,
    }
    assert found == {
        "a.md": "text", "b.py": "code", "README": "text", "c.zip": "code", "book.txt": "text", "crazyones.pdf": "pdf",
    }  # fmt: skip
    assert load_document(tmp_path).kind == "code"
    assert load_document(tmp_path / "a.md").parts[0].chapter == "Title"


def test_the_name_given_decides_for_a_temporary_copy(data, tmp_path):
    shutil.copy(data / "crazyones.pdf", tmp_path / "upload-8fe1")
    document = load_document(tmp_path / "upload-8fe1", name="The crazy ones.PDF")
    assert (document.title, document.kind) == ("The crazy ones", "pdf")
    assert document.sha256 == hashlib.sha256((data / "crazyones.pdf").read_bytes()).hexdigest()
    assert load_document(tmp_path / "upload-8fe1", name="../../etc/x.pdf").title == "x"


def test_the_password_reaches_the_pdf(data):
    with pytest.raises(PasswordError):
        load_document(data / "encrypted-rc4-user.pdf")
    assert load_document(data / "encrypted-rc4-user.pdf", password="asdfzxcv").parts
    with pytest.raises(PasswordError):
        load_document(data / "encrypted-rc4-user.pdf", password="half \ud83d")


def test_progress_ends_at_the_total(data, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("x = 1\n")
    for path in (data / "book.txt", data / "crazyones.pdf", tmp_path / "p"):
        seen = []
        load_document(path, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("name", ["a.pdf", "a.txt", "a.zip", "a.py", "a"])
def test_empty_file(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"^a.*: the file is empty \(0 bytes\)"):
        load_document(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("a.doc", "save it as .docx or PDF"), ("a.mobi", "convert it to PDF or text"),
     ("a.xlsx", "save each sheet as .csv"),
     ("a.tar.gz", "unpack it and add the folder"), ("a.RAR", "unpack it and add the folder"),
     ("a.msg", "save the message as text or PDF"), ("a.png", "put the picture into a PDF and run OCR over it"),
     ("a.mp3", "add a transcript of it")],
)  # fmt: skip
def test_unknown_kinds(name, advice, tmp_path):
    (tmp_path / name).write_bytes(b"\xd0\xcf\x11\xe0" + bytes(range(32)))
    with pytest.raises(InputError, match=rf"{name}: \.\w+ files cannot be read; {advice}.* \(read are PDF, "):
        load_document(tmp_path / name)


def test_mail_is_text_that_nobody_wants_to_read(tmp_path):
    (tmp_path / "a.eml").write_text("From: a\n\nSGVsbG8=\n")
    with pytest.raises(InputError, match="what is attached to it as files of their own"):
        load_document(tmp_path / "a.eml")


@pytest.mark.parametrize(
    ("name", "title"),
    [("Chapter 1. The Beginning", "Chapter 1. The Beginning"), ("guide.adoc", "guide"), ("paper.tex", "paper"),
     ("NOTES.MD", "NOTES"), ("LETTER.TXT", "LETTER"), ("a.xyz", "a"), ("old.doc", "old"), ("LICENSE", "LICENSE")],
)  # fmt: skip
def test_text_is_text_whatever_its_ending(name, title, tmp_path):
    (tmp_path / name).write_text("# One\n\nIt was a fine day.\n")
    document = load_document(tmp_path / name)
    assert (document.title, document.kind, document.parts[0].text) == (title, "text", "# One\n\nIt was a fine day.\n")


def test_upper_case_endings_of_source_files(tmp_path):
    (tmp_path / "MAIN.PY").write_text("x = 1\n")
    assert load_document(tmp_path / "MAIN.PY").kind == "code"


def test_another_encoding_makes_another_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("Привет".encode("cp1251"))
    found, chosen = load_document(tmp_path / "a.txt"), load_document(tmp_path / "a.txt", encoding="cp1251")
    assert chosen.parts[0].text == "Привет" and chosen.notes == () and found.sha256 != chosen.sha256
    (tmp_path / "b.py").write_text("x = 'ß'\n", encoding="utf-8")
    document = load_document(tmp_path, encoding="cp1251")
    assert [part.text for part in document.parts] == ["a.txt (Text only)\nПривет", "b.py (Python)\nx = 'ß'\n"]


def test_missing_path(tmp_path):
    with pytest.raises(InputError, match=r"no\.pdf: there is no such file or folder \(.*/no\.pdf\); check the path"):
        load_document(tmp_path / "no.pdf")


def test_binary_named_txt(tmp_path):
    (tmp_path / "photo.txt").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF" + os.urandom(100))
    with pytest.raises(InputError, match=r"photo\.txt: a binary file, not text"):
        load_document(tmp_path / "photo.txt")


def test_a_fifo_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="not a regular file or folder"):
        load_document(tmp_path / "pipe.txt")


@pytest.mark.parametrize("refusal", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_the_system_refuses_is_explained(refusal, data, monkeypatch):
    def refuse(*args, **options):
        raise refusal

    monkeypatch.setattr(load, "load_text", refuse)
    with pytest.raises(InputError, match=r"book\.txt: (no permission|cannot be read \(Input/output)"):
        load_document(data / "book.txt")


def test_a_pdf_that_vanishes_meanwhile(data, tmp_path, monkeypatch):
    path = tmp_path / "a.pdf"
    shutil.copy(data / "crazyones.pdf", path)
    hash_file = pdf.hash_file

    def hash_and_delete(target, cancelled):
        digest = hash_file(target, cancelled)
        target.unlink()
        return digest

    monkeypatch.setattr(pdf, "hash_file", hash_and_delete)
    with pytest.raises(InputError, match=r"a\.pdf: it vanished or was locked"):
        load_document(path)


def test_the_sample_is_a_whole_story():
    document = load_document(load.Path(__file__).resolve().parents[2] / "samples" / "Oh, Whistle.txt")
    assert document.title == "Oh, Whistle" and len(document.parts) > 10
    assert document.parts[0].text.startswith('"OH, WHISTLE')
    assert document.parts[-1].text.rstrip().endswith("more than one sleepless night.")
