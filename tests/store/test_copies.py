"""library.db gone, emptied or replaced: Lectern stops and offers a copy, and destroys neither copies nor memories."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from app.errors import LostLibrary, StoreError
from app.store import copies
from app.store.store import Store
from tests.store.test_store import RECIPE, open_store, read_document, stored, wait


def filled(home: Path) -> list[str]:
    """A folder with a document, its memory and a copy; returns the keys of the memory."""
    store = open_store(home)
    wait(store)
    _, keys = read_document(store, "Emma", list(range(32)))
    store._later(store._back_up_when_due)
    wait(store)
    store.close()
    return keys


def remove(home: Path) -> None:
    for path in home.glob("library.db*"):
        path.unlink()


def empty(home: Path) -> None:
    """What a user who deletes the file and starts an older release gets, and then a truncated file."""
    remove(home)
    (home / "library.db").touch()


def fresh(home: Path) -> None:
    remove(home)
    other = home.parent / "other"
    open_store(other).close()
    shutil.copy(other / "library.db", home / "library.db")


@pytest.mark.parametrize("loss", [remove, empty, fresh])
def test_a_lost_library_stops_the_start_and_the_copy_brings_it_back(tmp_path: Path, loss) -> None:
    home = tmp_path / "home"
    keys = filled(home)
    before = (home / copies.NAMES[0]).read_bytes()
    loss(home)
    for _ in range(2):
        with pytest.raises(LostLibrary, match=r"library\.backup\.db of .* with 1 document.*store restore") as caught:
            open_store(home)
    assert caught.value.copy and caught.value.home == home
    assert (home / copies.NAMES[0]).read_bytes() == before
    copy, _ = copies.restore(home)
    assert copy.documents == 1
    store = open_store(home)
    wait(store)
    assert store.document("Emma", RECIPE).state == "read" and stored(store, keys) == keys
    store.close()


def test_memories_without_any_library_stop_the_start_too(tmp_path: Path) -> None:
    filled(tmp_path)
    remove(tmp_path)
    (tmp_path / copies.NAMES[0]).unlink()
    with pytest.raises(LostLibrary, match="4 blocks of memories that only a library can name") as caught:
        open_store(tmp_path)
    assert caught.value.copy is None
    with pytest.raises(StoreError, match="no sound copy"):
        copies.restore(tmp_path)


def test_an_empty_library_that_was_asked_for_opens_and_keeps_copies_and_memories(tmp_path: Path) -> None:
    keys = filled(tmp_path)
    remove(tmp_path)
    (aside,) = copies.begin_empty(tmp_path)
    for _ in range(2):
        store = open_store(tmp_path)
        store.collect_garbage()
        assert store.documents(RECIPE) == [] and stored(store, keys) == keys, "no block goes within a day"
        store.close()
    copies.restore(tmp_path, aside.name)
    store = open_store(tmp_path)
    assert store.document("Emma", RECIPE).title == "Emma" and stored(store, keys) == keys
    store.close()


def test_blocks_go_when_the_day_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = filled(tmp_path)
    remove(tmp_path)
    copies.begin_empty(tmp_path)
    store = open_store(tmp_path)
    store.collect_garbage()  # as it does behind the start: now the day begins
    store.close()
    from app.store import blocks

    later = blocks._hour() + 25
    monkeypatch.setattr(blocks, "_hour", lambda: later)
    store = open_store(tmp_path)
    store.collect_garbage()
    assert stored(store, keys) == []
    store.close()


def test_deleting_what_is_there_is_no_loss(tmp_path: Path) -> None:
    keys = filled(tmp_path)
    store = open_store(tmp_path)
    store.delete_document(store.document("Emma", RECIPE).id)
    wait(store)
    assert stored(store, keys) == []
    store.close()
    store = open_store(tmp_path)
    assert store.notes == [] and store.documents(RECIPE) == []
    store.close()


def test_the_last_three_copies_are_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    wait(store)
    for title in "ABCDE":
        read_document(store, title, list(range(8)))
        assert copies.take(store._library) == []
    store.close()
    assert [copy.documents for copy in copies.found(tmp_path)] == [5, 4, 3]


def test_a_fuller_copy_is_set_aside_and_not_rotated_away(tmp_path: Path) -> None:
    filled(tmp_path)
    remove(tmp_path)
    other = tmp_path / "other"
    store = open_store(other)
    store.create_chat([], "m")
    store.close()
    shutil.copy(other / "library.db", tmp_path / "library.db")
    store = open_store(tmp_path)
    (note,) = copies.take(store._library)
    store.close()
    assert "library.backup.set-aside-" in note and "store restore" in note
    (aside,) = tmp_path.glob("library.backup.set-aside-*.db")
    assert copies.look(aside).documents == 1 and copies.look(tmp_path / copies.NAMES[0]).chats == 1


def test_an_empty_library_makes_no_copy(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    wait(store)
    store.close()
    assert not (tmp_path / copies.NAMES[0]).exists()


def test_a_damaged_copy_is_passed_over(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    wait(store)
    for title in "AB":
        read_document(store, title, list(range(8)))
        copies.take(store._library)
    store.close()
    newest = tmp_path / copies.NAMES[0]
    newest.write_bytes(newest.read_bytes()[:5000])
    remove(tmp_path)
    copy, _ = copies.restore(tmp_path)
    assert (copy.path.name, copy.documents) == (copies.NAMES[1], 1)


def test_copies_of_older_releases_count_by_what_they_hold(tmp_path: Path) -> None:
    filled(tmp_path)
    db = sqlite3.connect(tmp_path / copies.NAMES[0])
    db.executescript("DROP TABLE life; DROP TRIGGER document_added; DELETE FROM _sqlite_migrations")
    db.close()
    assert copies.look(tmp_path / copies.NAMES[0]).life == copies.Life("", 1)
    store = open_store(tmp_path)
    assert copies.take(store._library) == []
    store.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_library_deleted_while_it_is_open_is_noticed_at_once_and_copied(tmp_path: Path, replaced: bool) -> None:
    store: Store = open_store(tmp_path)
    read_document(store, "Emma", list(range(32)))
    wait(store)
    remove(tmp_path)
    if replaced:
        (tmp_path / "library.db").touch()
    with pytest.raises(StoreError, match="deleted or replaced while Lectern had it open.*library.backup.db"):
        store.create_chat([], "m")
    with pytest.raises(StoreError, match="deleted or replaced"):
        store.documents(RECIPE)
    assert len(store.notes) == 1 and (tmp_path / "library.db").exists() == replaced
    store.close()
    with pytest.raises(LostLibrary, match="with 1 document"):
        open_store(tmp_path)
    copies.restore(tmp_path)
    store = open_store(tmp_path)
    assert store.document("Emma", RECIPE).state == "read"
    store.close()


def test_a_cache_deleted_while_it_is_open_is_begun_anew(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    wait(store)
    read_document(store, "Emma", list(range(32)))
    (tmp_path / "kv.db").unlink()
    _, keys = read_document(store, "Other", list(range(50, 82)))
    assert stored(store, keys) == keys and len(store.notes) == 1
    store.close()


def test_a_library_of_chats_alone_is_copied_too(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    wait(store)
    chat = store.create_chat([], "m")
    store.save_turn(chat, "Who?", "Nobody.", {}, [], None)
    wait(store)
    copy = copies.look(tmp_path / copies.NAMES[0])
    assert copy is not None and (copy.documents, copy.chats) == (0, 1)
    store.close()
