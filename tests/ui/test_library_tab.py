"""The Library tab's generators over a fake chat."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.api.reading import BackgroundReading
from app.chat.library import DiskSpace
from app.records import Skipped
from app.ui import library_tab
from app.ui.adding import add
from app.ui.uploads import Uploads
from tests.fake_chat import PASSWORD, FakeDocumentChat, model_state

NOTHING = DiskSpace({}, {}, set(), 0, 0, 0)


@pytest.fixture
def files(tmp_path: Path, book: Path, send: Callable[[Path], str]) -> list[str]:
    empty = tmp_path / "empty.txt"
    empty.touch()
    locked = tmp_path / "locked.pdf"
    locked.write_text("A sealed letter.", encoding="utf-8")
    other = tmp_path / "notes.txt"
    other.write_text("Two or three notes.", encoding="utf-8")
    return [send(file) for file in (empty, book, locked, other)]


def test_bad_files_leave_messages_and_others_go_on(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads, reading: BackgroundReading
) -> None:
    *_, last = add(chat, reading, files, uploads)
    assert "empty.txt: empty" in last.status and "locked.pdf: encrypted" in last.status
    assert [chat.library.document(key).title for key in reading.documents()] == ["A Quiet Coast", "notes"]
    assert last.changed and "locked" not in library_tab.table(chat, reading)


def test_uploads_are_deleted(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads, reading: BackgroundReading
) -> None:
    list(add(chat, reading, files, uploads))
    assert not any(Path(file).exists() for file in files) and list(uploads.folder.iterdir()) == []


def test_what_was_not_uploaded_is_neither_read_nor_deleted(
    chat: FakeDocumentChat, book: Path, uploads: Uploads, files: list[str], reading: BackgroundReading
) -> None:
    *_, last = add(chat, reading, [str(book), files[3]], uploads)
    assert "was not uploaded" in last.status and book.exists()
    assert [chat.library.document(key).title for key in reading.documents()] == ["notes"]


def test_password_opens_a_locked_file(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads, reading: BackgroundReading
) -> None:
    *_, last = add(chat, reading, files[2:3], uploads, PASSWORD)
    assert last.status == "" and len(reading.documents()) == 1


def test_progress_names_the_file(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads, reading: BackgroundReading
) -> None:
    steps = list(add(chat, reading, files, uploads))
    second = [step for step in steps if "2 of 4: A Quiet Coast.txt" in step.status]
    assert "Opening 2 of 4" in second[0].status and "opening it, 75%" in second[-1].status
    assert all("empty.txt: empty" in step.status for step in second)
    assert second[0].changed and not second[-1].changed


def test_stop_ends_the_adding_and_leaves_no_upload(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads, reading: BackgroundReading
) -> None:
    for last in add(chat, reading, files, uploads):
        if "3 of 4" in last.status:
            chat.library.stop_adding()
    assert "Stopped; 2 files not added" in last.status
    assert [info.title for info in chat.library.documents()] == ["A Quiet Coast"]
    assert not any(Path(file).exists() for file in files)


def test_sizes_are_shown_and_memories_pinned_and_freed(
    chat: FakeDocumentChat, book: Path, reading: BackgroundReading
) -> None:
    key = chat.library.add_document(book).id
    assert "once read" in library_tab.table(chat, reading) and "50 GB for memories" in library_tab.table(chat, reading)
    list(chat.read(key))
    assert f'data-do="pin" data-id="{key}"' in library_tab.table(chat, reading)
    status, html = library_tab.pin(chat, reading, key, True)
    assert status == "" and "pinned" in html and f'data-do="unpin" data-id="{key}"' in html
    assert "not here any more" in library_tab.pin(chat, reading, "none", True)[0]
    status, html = library_tab.evict(chat, reading, key)
    assert status == "" and "once read" in html and chat.library.document(key).state == "new"


def test_a_read_document_is_not_read_again(
    chat: FakeDocumentChat, book: Path, uploads: Uploads, send: Callable[[Path], str], reading: BackgroundReading
) -> None:
    list(chat.read(chat.library.add_document(book).id))
    *_, last = add(chat, reading, [send(book)], uploads)
    assert "already" in last.status and reading.documents() == () and len(last.added) == 1


def test_newest_document_stands_first(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads, reading: BackgroundReading
) -> None:
    *_, last = add(chat, reading, files, uploads)
    assert last.changed and (html := library_tab.table(chat, reading)).index("notes") < html.index("A Quiet Coast")


def test_rows_tell_the_queue(chat: FakeDocumentChat, book: Path, tmp_path: Path, reading: BackgroundReading) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("Two or three notes.", encoding="utf-8")
    first, second = chat.library.add_document(book).id, chat.library.add_document(other).id
    reading.pause()
    reading.add(first)
    reading.add(second)
    html = library_tab.table(chat, reading)
    assert f'<span data-live="{first}">reading<' in html and f'<span data-live="{second}">waits to be read<' in html
    assert f'data-do="reading-cancel" data-id="{first}"' in html
    assert f'data-do="reading-first" data-id="{second}"' in html
    reading.forget(first)
    assert f'data-do="reading-add" data-id="{first}"' in library_tab.table(chat, reading)


def test_a_deleted_document_is_not_read(chat: FakeDocumentChat, book: Path, reading: BackgroundReading) -> None:
    reading.pause()
    key = chat.library.add_document(book).id
    reading.add(key)
    library_tab.delete(chat, reading, key)
    assert reading.documents() == ()


def test_table_tells_states_lengths_and_remarks(chat: FakeDocumentChat, book: Path) -> None:
    info = replace(
        chat.library.add_document(book),
        state="failed",
        detail="the disk is full",
        notes=("12 pages hold images only",),
        skipped=tuple(Skipped(f"file{n}.bin", "binary") for n in range(60)),
    )
    html = library_tab._table([info], "ready", NOTHING)
    for fact in (
        "3 sections",
        f"{info.tokens:,}",
        "failed: the disk is full",
        "61 remarks",
        "file49.bin: binary",
        "and 10 more",
    ):
        assert fact in html
    assert "file50.bin" not in html and "Try again" in html
    assert "No documents yet" in library_tab._table([], "ready", NOTHING)


def test_table_escapes_titles(chat: FakeDocumentChat, book: Path) -> None:
    html = library_tab._table([replace(chat.library.add_document(book), title='<script>x</script>"')], "ready", NOTHING)
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_delete(chat: FakeDocumentChat, book: Path, reading: BackgroundReading) -> None:
    key = chat.library.add_document(book).id
    status, table = library_tab.delete(chat, reading, key)
    assert status == "" and "No documents yet" in table
    assert "not here any more" in library_tab.delete(chat, reading, key)[0]


def test_nothing_is_said_of_reading_before_the_model_is_ready(
    chat: FakeDocumentChat, book: Path, reading: BackgroundReading
) -> None:
    list(chat.read(chat.library.add_document(book).id))
    chat.state = model_state(state="loading")
    assert "model loading" in library_tab.table(chat, reading) and ">read<" not in library_tab.table(chat, reading)


def test_stopped_reading_is_told_apart_from_none(
    chat: FakeDocumentChat, book: Path, reading: BackgroundReading
) -> None:
    info = replace(chat.library.add_document(book), state="new", detail="stopped at 40%")
    assert "stopped at 40%" in library_tab._table([info], "ready", NOTHING)
    assert "Go on reading" in library_tab._table([info], "ready", NOTHING)
    left = library_tab._table([replace(info, state="reading")], "ready", NOTHING)
    assert "Go on reading" in left and "not read to its end" in left


def test_a_text_that_is_not_utf8_has_a_menu_that_reads_it_again(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads, reading: BackgroundReading
) -> None:
    *_, last = add(chat, reading, files[1:2], uploads)
    assert "library-decode" not in library_tab.table(chat, reading)
    (key,) = chat.undecoded = set(last.added)
    assert f'data-do="library-decode" data-id="{key}|cp1253">Greek</button>' in library_tab.table(chat, reading)
    opening, end = library_tab.decode(chat, reading, f"{key}|cp1253")
    assert "opening it" in opening.status and end.added == (key,) == reading.documents()
    list(library_tab.decode(chat, reading, f"{key}|"))
    assert chat.encodings[-2:] == ["cp1253", None]
    (failed,) = list(library_tab.decode(chat, reading, "gone|cp1253"))[-1:]
    assert "not here any more" in failed.status
