"""The Library tab's generators over a fake chat."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.chat.keeping import DiskSpace
from app.records import Skipped
from app.ui import library_tab
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


def test_bad_files_leave_messages_and_others_go_on(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    *_, last = library_tab.add(chat, files, "", uploads)
    assert "empty.txt: empty" in last.status and "locked.pdf: encrypted" in last.status
    assert [chat.document(key).title for key in last.added] == ["A Quiet Coast", "notes"]
    assert "A Quiet Coast" in last.table and "locked" not in last.table


def test_uploads_are_deleted(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    list(library_tab.add(chat, files, "", uploads))
    assert not any(Path(file).exists() for file in files) and list(uploads.folder.iterdir()) == []


def test_what_was_not_uploaded_is_neither_read_nor_deleted(
    chat: FakeDocumentChat, book: Path, uploads: Uploads, files: list[str]
) -> None:
    *_, last = library_tab.add(chat, [str(book), files[3]], "", uploads)
    assert "was not uploaded" in last.status and book.exists()
    assert [chat.document(key).title for key in last.added] == ["notes"]


def test_password_opens_a_locked_file(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    *_, last = library_tab.add(chat, files[2:3], PASSWORD, uploads)
    assert last.status == "" and len(last.added) == 1


def test_progress_names_the_file(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    steps = list(library_tab.add(chat, files, "", uploads))
    second = [step for step in steps if "2 of 4: A Quiet Coast.txt" in step.status]
    assert "Opening 2 of 4" in second[0].status and "opening it, 75%" in second[-1].status
    assert all("empty.txt: empty" in step.status for step in second)
    assert second[0].table is not None and second[-1].table is None


def test_stop_ends_the_adding_and_leaves_no_upload(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    for last in library_tab.add(chat, files, "", uploads):
        if "3 of 4" in last.status:
            chat.stop_adding()
    assert "Stopped; 2 files not added" in last.status and last.added == ()
    assert [info.title for info in chat.documents()] == ["A Quiet Coast"]
    assert not any(Path(file).exists() for file in files)


def test_sizes_are_shown_and_memories_pinned_and_freed(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.add_document(book).id
    assert "once read" in library_tab.table(chat) and "50 GB for memories" in library_tab.table(chat)
    list(chat.read(key))
    assert f'data-do="pin" data-id="{key}"' in library_tab.table(chat)
    status, html = library_tab.pin(chat, key, True)
    assert status == "" and "pinned" in html and f'data-do="unpin" data-id="{key}"' in html
    assert "not here any more" in library_tab.pin(chat, "none", True)[0]
    status, html = library_tab.evict(chat, key)
    assert status == "" and "once read" in html and chat.document(key).state == "new"


def test_a_read_document_is_not_read_again(
    chat: FakeDocumentChat, book: Path, uploads: Uploads, send: Callable[[Path], str]
) -> None:
    list(chat.read(chat.add_document(book).id))
    *_, last = library_tab.add(chat, [send(book)], "", uploads)
    assert "already" in last.status and last.added == ()


def test_reading_shows_progress_and_ends_read(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    *_, added = library_tab.add(chat, files, "", uploads)
    clock = iter(range(10_000))
    steps = list(library_tab.read(chat, added.added, clock=lambda: float(next(clock))))
    percents = [int(value.split("|")[1]) for _, value in steps if value.startswith(added.added[0])]
    assert percents == sorted(percents) and percents[0] < 20 and percents[-1] == 100
    assert steps[-1] == ("", "")
    assert {info.state for info in chat.documents()} == {"read"}


def test_reading_says_at_once_what_it_is_about(chat: FakeDocumentChat, book: Path) -> None:
    first = next(library_tab.read(chat, [chat.add_document(book).id]))
    assert "Preparing A Quiet Coast" in first[0]


def test_newest_document_stands_first(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    *_, last = library_tab.add(chat, files, "", uploads)
    assert last.table.index("notes") < last.table.index("A Quiet Coast")


def test_stop_ends_all_reading(chat: FakeDocumentChat, files: list[str], uploads: Uploads) -> None:
    *_, added = library_tab.add(chat, files, "", uploads)
    clock = iter(range(10_000))
    for _ in library_tab.read(chat, added.added, clock=lambda: float(next(clock))):
        chat.stop()
        last = _
    assert "stopped; what was read is kept" in last[0]
    assert [info.state for info in chat.documents()] == ["new", "new"]
    assert re.search(r"stopped at \d+%", library_tab.table(chat)) and "Go on reading" in library_tab.table(chat)


def test_failed_model_is_told_once_per_document(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.add_document(book).id
    chat.model = model_state(state="failed", detail="models/x: no weights")
    *_, last = library_tab.read(chat, [key])
    assert "models/x: no weights" in last[0]


def test_table_tells_states_lengths_and_remarks(chat: FakeDocumentChat, book: Path) -> None:
    info = replace(
        chat.add_document(book),
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
    html = library_tab._table([replace(chat.add_document(book), title='<script>x</script>"')], "ready", NOTHING)
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_delete(chat: FakeDocumentChat, book: Path) -> None:
    key = chat.add_document(book).id
    status, table = library_tab.delete(chat, key)
    assert status == "" and "No documents yet" in table
    assert "not here any more" in library_tab.delete(chat, key)[0]


def test_nothing_is_said_of_reading_before_the_model_is_ready(chat: FakeDocumentChat, book: Path) -> None:
    list(chat.read(chat.add_document(book).id))
    chat.model = model_state(state="loading")
    assert "model loading" in library_tab.table(chat) and ">read<" not in library_tab.table(chat)


def test_stopped_reading_is_told_apart_from_none(chat: FakeDocumentChat, book: Path) -> None:
    info = replace(chat.add_document(book), state="new", detail="stopped at 40%")
    assert "stopped at 40%" in library_tab._table([info], "ready", NOTHING)
    assert "Go on reading" in library_tab._table([info], "ready", NOTHING)
    running = library_tab._table([replace(info, state="reading")], "ready", NOTHING)
    assert "Go on reading" not in running and ">reading<" in running


def test_a_text_that_is_not_utf8_has_a_menu_that_reads_it_again(
    chat: FakeDocumentChat, files: list[str], uploads: Uploads
) -> None:
    *_, last = library_tab.add(chat, files[1:2], "", uploads)
    assert "library-decode" not in last.table
    (key,) = chat.undecoded = set(last.added)
    assert f'data-do="library-decode" data-id="{key}|cp1253">Greek</button>' in library_tab.table(chat)
    opening, end = library_tab.decode(chat, f"{key}|cp1253")
    assert "opening it" in opening.status and end.added == (key,)
    list(library_tab.decode(chat, f"{key}|"))
    assert chat.encodings[-2:] == ["cp1253", None]
    (failed,) = list(library_tab.decode(chat, "gone|cp1253"))[-1:]
    assert "not here any more" in failed.status
