"""Files kept beside the library: which stay, and which go with their documents."""

from pathlib import Path

import pytest

from app.records import Document, Part
from app.store import sources
from app.store.home import clear_leftovers
from app.store.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "home", disk_budget_bytes=1 << 30)
    yield store
    store.close()


def add(store: Store, file: Path, name: str = "Old book.TXT") -> str:
    file.write_bytes(b"caf\xe9")
    id = store.add_document(Document("Old book", "text", "ab" * 32, (Part(1, "1", "café"),)))
    store.keep_source(id, file, name)
    return id


def test_a_file_is_kept_until_its_document_is_deleted(store, tmp_path):
    id = add(store, tmp_path / "upload")
    assert store.source(id).name == f"{id}.txt"
    assert store.source(id).read_bytes() == b"caf\xe9"
    assert store.sources() == {id: store.source(id)}
    store.delete_document(id)
    assert store.source(id) is None and store.sources() == {}


def test_a_second_file_takes_the_place_of_the_first(store, tmp_path):
    id = add(store, tmp_path / "upload")
    add(store, tmp_path / "upload", "scan.pdf")
    assert [path.name for path in (tmp_path / "home" / "sources").iterdir()] == [f"{id}.pdf"]


def test_files_of_no_document_are_collected(store, tmp_path):
    id = add(store, tmp_path / "upload")
    store.keep_source("0123456789ab", tmp_path / "upload", "a name. without an ending")
    assert store.sources().keys() == {id, "0123456789ab"}
    store.collect_garbage()
    assert store.sources().keys() == {id}


def test_a_copy_that_was_cut_off_goes_at_the_next_start(store, tmp_path):
    add(store, tmp_path / "upload")
    half = tmp_path / "home" / "sources" / "0123456789ab.new"
    half.write_bytes(b"x")
    assert "0123456789ab" not in store.sources()
    clear_leftovers(tmp_path / "home")
    assert not half.exists() and len(store.sources()) == 1


def test_nothing_is_kept_where_there_is_no_room(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_BYTES", 3)
    assert store.source(add(store, tmp_path / "upload")) is None
    monkeypatch.setattr(sources, "MOST_BYTES", 9)
    store.room.floor_bytes = 1 << 60
    assert store.source(add(store, tmp_path / "upload")) is None
