"""A disk without a free byte: the store opens, tells, and can be emptied."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import StoreError
from app.records import Document, Part
from app.store import home as folder
from app.store.room import RESERVE_NAME, Room
from app.store.store import Store
from tests.store.test_store import RECIPE, stored, wait

DISK_BYTES = 24 << 20
BLOCK = bytes(range(256)) * 512  # 128 KiB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if os.name == "nt" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> None:
    """What another program does: take every byte."""
    with (disk / "other").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def open_store(disk: Path) -> Store:
    return Store(disk / "home", disk_budget_bytes=1 << 30)


def read(store: Store, title: str, blocks: int) -> list[str]:
    """A document whose memory takes `blocks` times 128 KiB."""
    id = store.add_document(Document(title, "text", title[0].lower() * 64, (Part(1, "1", f"text of {title}"),)))
    keys = [f"{title}-{number}" for number in range(blocks)]
    from app.records import MemoryText, Span

    store.set_memories(id, RECIPE, [MemoryText([1] * blocks, (Span(1, 0, blocks),))])
    for key in keys:
        store.blocks.put(key, [1], b"index", [BLOCK], "raw")
    store.blocks.flush()
    store.set_manifest(id, RECIPE, 0, keys)
    store.set_state(id, RECIPE, "read")
    return keys


def test_block_writes_stop_while_chats_still_have_room(disk: Path) -> None:
    store = open_store(disk)
    wait(store)
    with pytest.raises(StoreError, match=r"the disk is full \(.* free, and .* stay for chats\).*evict memories"):
        read(store, "Long", 1000)
    chat = store.create_chat([], "m")
    store.save_turn(chat, "q", "a", {}, [], None)
    assert store.room.free_bytes > 0 and store.verify().damaged == []
    store.close()


@pytest.mark.parametrize("reserve", [True, False], ids=["with reserve", "without reserve"])
@pytest.mark.parametrize("way", ["evict", "delete", "delete chat"])
def test_a_full_disk_can_be_emptied(disk: Path, reserve: bool, way: str) -> None:
    lock = folder.acquire(disk / "home")
    store = open_store(disk)
    keys = {title: read(store, title, 30) for title in ("First", "Second")}
    chat = store.create_chat([], "m")
    store.save_turn(chat, "q", "a", {}, [], None)
    if way == "delete chat":
        from app.records import Tail

        store.save_turn(chat, "q", "a", {}, [], Tail(RECIPE, (1,), tuple(keys["First"]), (1,), ()))
        store.unname(store.document("First", RECIPE).id)
    wait(store)
    assert (disk / "home" / RESERVE_NAME).exists()
    store.close()
    lock.release()
    if not reserve:
        (disk / "home" / RESERVE_NAME).unlink()
    fill(disk)
    assert Room(disk).free_bytes == 0

    lock = folder.acquire(disk / "home")
    store = open_store(disk)
    assert any("the disk is full" in note for note in store.notes)
    assert {info.title for info in store.documents(RECIPE)} == {"First", "Second"}
    assert [message.content for message in store.messages(chat)][:2] == ["q", "a"]
    assert store.search_parts("text") and stored(store, keys["Second"]) == keys["Second"]
    assert store.blocks.get(keys["Second"][0], [1])[1] == [BLOCK]
    first = store.document("First", RECIPE).id
    before = store.finish()
    if way == "evict":
        store.evict(first)
    elif way == "delete":
        store.delete_document(first)
    else:
        store.delete_chat(chat)
    assert before - store.finish() > 20 * len(BLOCK)
    assert stored(store, keys["First"]) == [] and stored(store, keys["Second"]) == keys["Second"]
    store.compact()
    assert store.verify().damaged == []
    store.close()
    lock.release()
    store = open_store(disk)
    titles = {info.title: info.state for info in store.documents(RECIPE)}
    assert titles["Second"] == "read" and ("First" in titles) == (way != "delete")
    store.close()


def test_nothing_is_lost_when_a_document_does_not_fit(disk: Path) -> None:
    store = open_store(disk)
    wait(store)
    read(store, "First", 4)
    fill(disk)
    with pytest.raises(StoreError, match="the disk is full"):
        store.add_document(Document("Long", "text", "b" * 64, (Part(1, "1", "words " * 200_000),)))
    (disk / "other").unlink()
    assert [info.title for info in store.documents(RECIPE)] == ["First"] and store.verify().damaged == []
    store.close()


def test_a_disk_that_stays_full_opens_at_every_start(disk: Path) -> None:
    store = open_store(disk)
    keys = read(store, "First", 30)
    wait(store)
    store.close()
    (disk / "home" / RESERVE_NAME).unlink(missing_ok=True)
    fill(disk)
    for _ in range(3):
        store = open_store(disk)
        assert stored(store, keys) == keys and [info.title for info in store.documents(RECIPE)] == ["First"]
        store.close()
    store = open_store(disk)
    store.delete_document(store.document("First", RECIPE).id)
    wait(store)
    store.finish()
    assert stored(store, keys) == [] and store.verify().damaged == []
    store.close()
    (disk / "other").unlink()
    store = open_store(disk)
    assert read(store, "Second", 4) and store.verify().damaged == []
    store.close()
