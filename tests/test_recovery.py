"""The page of a lost library: only with its key, in words, and a click mends it."""

import threading
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app import recovery
from app.errors import LostLibrary
from app.store import copies
from tests.store.test_copies import filled, remove
from tests.store.test_store import RECIPE, open_store

KEY = "the-key"


@pytest.fixture
def lost(tmp_path: Path) -> LostLibrary:
    filled(tmp_path)
    remove(tmp_path)
    with pytest.raises(LostLibrary) as caught:
        open_store(tmp_path)
    return caught.value


def client(lost: LostLibrary, chosen: threading.Event) -> TestClient:
    app = recovery.create_app(lost, KEY, chosen.set)
    return TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=True)


def test_without_the_key_nothing_is_shown_or_done(lost: LostLibrary) -> None:
    chosen = threading.Event()
    stranger = client(lost, chosen)
    assert stranger.get("/").status_code == 403
    assert stranger.post("/", data={"do": "empty"}).status_code == 403
    assert not chosen.is_set() and not (lost.home / "library.db").exists()


def test_a_click_puts_the_copy_back(lost: LostLibrary) -> None:
    chosen = threading.Event()
    owner = client(lost, chosen)
    text = owner.get("/", params={"key": KEY}).text
    assert "library.backup.db" in text and "1 document" in text and "Put back" in text
    assert "launch.py" not in text  # a page names no commands
    assert owner.post("/", data={"do": "something"}).status_code == 400 and not chosen.is_set()
    assert owner.post("/", data={"do": "restore"}).status_code == 200 and chosen.is_set()
    store = open_store(lost.home)
    assert store.document("Emma", RECIPE).title == "Emma"
    store.close()


def test_a_click_begins_with_an_empty_library(lost: LostLibrary) -> None:
    owner = client(lost, threading.Event())
    owner.get("/", params={"key": KEY})
    assert owner.post("/", data={"do": "empty"}).status_code == 200
    store = open_store(lost.home)
    assert store.documents(RECIPE) == [] and store.stats()["blocks"] == 4
    store.close()
    assert list(lost.home.glob("library.backup.set-aside-*.db"))
    assert not any(copy.documents for copy in copies.found(lost.home))


def test_a_copy_that_is_damaged_meanwhile_is_said(lost: LostLibrary) -> None:
    (lost.home / copies.NAMES[0]).write_bytes(b"x" * 5000)
    owner = client(lost, threading.Event())
    owner.get("/", params={"key": KEY})
    answer = owner.post("/", data={"do": "restore"})
    assert answer.status_code == 409 and "no sound copy" in answer.text
