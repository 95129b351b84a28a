"""The data folder as one object: garbage, verify, housekeeping, threads, damaged files."""

import hashlib
import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import NotFoundError, StoreError
from app.records import Document, Evidence, MemoryText, Part, Span, Tail
from app.store.store import Store

RECIPE = "aa" * 32
GROUP = 8


def open_store(home: Path) -> Store:
    return Store(home, disk_budget_bytes=1 << 30)


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(tmp_path)
    yield store
    store.close()


def block_bytes(key: str) -> tuple[bytes, list[bytes]]:
    seed = key.encode()
    return seed * 4, [seed * 100, seed * 50]


def put(store: Store, keys: list[str], token_ids: list[int]) -> None:
    for number, key in enumerate(keys):
        index, kv = block_bytes(key)
        store.blocks.put(key, token_ids[number * GROUP : (number + 1) * GROUP], index, kv, "raw")


def read_document(store: Store, title: str, token_ids: list[int]) -> tuple[str, list[str]]:
    """Add a document and store its memory as the chat does."""
    sha256 = hashlib.sha256(title.encode()).hexdigest()
    id = store.add_document(Document(title, "text", sha256, (Part(1, "1", f"text of {title}"),)))
    store.set_memories(id, RECIPE, [MemoryText(token_ids, (Span(1, 1, len(token_ids)),))])
    keys = store.blocks.chain_keys(RECIPE, token_ids, GROUP)
    store.set_state(id, RECIPE, "reading")
    put(store, keys, token_ids)
    store.blocks.flush()
    store.set_manifest(id, RECIPE, 0, keys)
    store.set_state(id, RECIPE, "read")
    return id, keys


def wait(store: Store) -> None:
    """Until housekeeping is done."""
    store._background.submit(lambda: None).result()


def stored(store: Store, keys: list[str]) -> list[str]:
    return [key for key in keys if store.blocks.known_prefix([key])]


def test_a_memory_is_there_after_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    id, keys = read_document(store, "Emma", list(range(50)))
    store.close()
    store = open_store(tmp_path)
    assert store.document("Emma", RECIPE).state == "read"
    assert store.manifest(id, RECIPE, 0) == keys and len(keys) == 7
    memory = (store.memories(id, RECIPE) or [])[0]
    groups = [memory.token_ids[n : n + GROUP] for n in range(0, len(memory.token_ids), GROUP)]
    assert list(store.blocks.get_many(keys, groups)) == [block_bytes(key) for key in keys]
    store.close()


def test_deleting_a_document_keeps_what_another_shares(store: Store) -> None:
    first, first_keys = read_document(store, "One", list(range(32)))
    second, second_keys = read_document(store, "Two", [*range(16), *range(100, 116)])
    assert first_keys[:2] == second_keys[:2] and first_keys[2:] != second_keys[2:]
    assert store.collect_garbage() == 0
    store.delete_document(first)
    store.collect_garbage()
    assert stored(store, first_keys) == first_keys[:2]
    assert stored(store, second_keys) == second_keys
    store.delete_document(second)
    store.collect_garbage()
    assert store.stats()["blocks"] == 0


def test_the_tail_of_a_chat_keeps_its_blocks(store: Store) -> None:
    chat = store.create_chat([], "m")
    put(store, ["t1", "t2"], list(range(2 * GROUP)))
    store.blocks.flush()
    store.save_turn(chat, "q", "a", {}, [], Tail(RECIPE, (1,), ("t1", "t2"), (1,), ()))
    store.collect_garbage()
    assert stored(store, ["t1", "t2"]) == ["t1", "t2"]
    store.save_turn(chat, "q", "a", {}, [], Tail(RECIPE, (1,), ("t1",), (1,), ()), after=0)
    store.collect_garbage()
    assert stored(store, ["t1", "t2"]) == ["t1"]
    store.delete_chat(chat)
    store.collect_garbage()
    assert stored(store, ["t1"]) == []


def test_blocks_being_read_in_are_no_garbage_until_the_next_start(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.create_chat([], "m")
    put(store, ["k1"], list(range(GROUP)))
    store.blocks.flush()
    store.collect_garbage()
    assert stored(store, ["k1"]) == ["k1"]
    store.close()
    store = open_store(tmp_path)
    store.collect_garbage()
    assert stored(store, ["k1"]) == []
    store.close()


def test_a_block_put_while_garbage_is_collected_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    list_keys = store.blocks._keys

    def put_and_list() -> list[str]:
        put(store, ["k1"], list(range(GROUP)))
        store.blocks.flush()
        return list_keys()

    monkeypatch.setattr(store.blocks, "_keys", put_and_list)
    store.collect_garbage()
    assert stored(store, ["k1"]) == ["k1"]


def test_deletion_collects_garbage_by_itself(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    id, keys = read_document(store, "Emma", list(range(32)))
    store.delete_document(id)
    wait(store)
    assert stored(store, keys) == []
    store.close()


def test_chats_outlive_their_document_and_join_it_again(store: Store) -> None:
    id, _ = read_document(store, "Emma", list(range(16)))
    chat = store.create_chat([id], "m")
    evidence = Evidence("", id, "Emma", "1", 1, 0, 4, "text", 1.0)
    _, answer = store.save_turn(chat, "q", "a", {}, [evidence], None)
    store.delete_document(id)
    assert store.chat(chat).documents == (id,)
    assert store.evidence(answer.evidence[0].id)[0].text == "text"
    with pytest.raises(NotFoundError):
        store.document(id, RECIPE)
    assert read_document(store, "Emma", list(range(16)))[0] == id


def test_an_interrupted_reading_is_not_shown_as_going_on(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    id, _ = read_document(store, "Emma", list(range(16)))
    store.set_state(id, RECIPE, "reading", "41%")
    store.close()
    store = open_store(tmp_path)
    assert store.document(id, RECIPE).state == "new"
    assert store.document(id, RECIPE).detail == "reading was interrupted"
    store.close()


def test_verify_checks_both_files(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    _, keys = read_document(store, "Emma", list(range(32)))
    assert store.verify().checked == 4 and store.verify().damaged == []
    store.close()
    conn = sqlite3.connect(tmp_path / "kv.db")
    conn.execute("UPDATE block_kv SET data = zeroblob(length(data)) WHERE block = 2")
    conn.commit()
    conn.close()
    store = open_store(tmp_path)
    assert store.verify(repair=True).damaged == [keys[1]]
    assert store.verify().damaged == [] and store.blocks.known_prefix(keys) == 1
    store.close()
    conn = sqlite3.connect(tmp_path / "library.db")
    root = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'evidence'").fetchone()[0]
    conn.close()
    with (tmp_path / "library.db").open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"x" * 4096)
    store = open_store(tmp_path)
    assert store.verify().damaged[0].startswith("library.db: ")
    store.close()


def test_a_damaged_library_is_a_message_and_is_left_alone(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    path = tmp_path / "library.db"
    path.write_bytes(b"x" * 50_000)
    with pytest.raises(StoreError, match=r"library\.db: damaged.*library\.backup\.db"):
        open_store(tmp_path)
    assert path.read_bytes() == b"x" * 50_000


def test_a_damaged_cache_is_set_aside_and_the_library_goes_on(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    id, keys = read_document(store, "Emma", list(range(32)))
    store.close()
    (tmp_path / "kv.db").write_bytes(b"x" * 50_000)
    store = open_store(tmp_path)
    assert store.document(id, RECIPE).title == "Emma" and store.blocks.known_prefix(keys) == 0
    assert len(store.notes) == 1 and "set aside" in store.notes[0]
    read_document(store, "Emma", list(range(32)))
    assert store.blocks.known_prefix(keys) == 4
    store.close()


def test_a_daily_copy_of_the_library_is_kept_and_opens(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a")
    id, _ = read_document(store, "Emma", list(range(32)))
    wait(store)
    backup = tmp_path / "a" / "library.backup.db"
    backup.unlink(missing_ok=True)
    store._later(store._back_up_when_due)
    wait(store)
    store.close()
    (tmp_path / "b").mkdir()
    backup.rename(tmp_path / "b" / "library.db")
    store = open_store(tmp_path / "b")
    assert store.document(id, RECIPE).title == "Emma"
    store.close()


def test_a_damaged_library_never_replaces_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    wait(store)
    store.create_chat([], "m")
    backup = tmp_path / "library.backup.db"
    monkeypatch.setattr(store._library, "problems", lambda: ["row 3 missing"])
    store._later(store._back_up_when_due)
    wait(store)
    store.close()
    assert not backup.exists() and "row 3 missing" in store.notes[0]


def test_failed_housekeeping_becomes_a_note(store: Store) -> None:
    def fail() -> None:
        raise StoreError("no room")

    store._later(fail)
    wait(store)
    assert store.notes == ["no room"]


def test_stats_name_everything(store: Store) -> None:
    read_document(store, "Emma", list(range(32)))
    chat = store.create_chat([], "m")
    store.save_turn(chat, "q", "a", {}, [], None)
    stats = store.stats()
    assert (stats["documents"], stats["chats"], stats["messages"], stats["blocks"]) == (1, 1, 2, 4)
    assert stats["disk_budget_bytes"] == 1 << 30
    assert stats["library_bytes"] > 4096 and stats["kv_bytes"] > 4096 and stats["free_disk_bytes"] > 0


def test_passkey_runs_are_kept(store: Store) -> None:
    first = store.start_passkey_run("m", "keep-all", {"lengths": [2048, 4096], "trials": 5})
    store.add_passkey_cell(first, 4096, 0.5, 3, 5)
    store.add_passkey_cell(first, 2048, 0.5, 1, 5)
    store.add_passkey_cell(first, 2048, 0.5, 5, 5)
    second = store.start_passkey_run("m", "full", {})
    runs = store.passkey_runs()
    assert [run["id"] for run in runs] == [second, first] and runs[0]["cells"] == []
    assert runs[1]["settings"] == {"lengths": [2048, 4096], "trials": 5} and runs[1]["policy"] == "keep-all"
    assert runs[1]["cells"] == [
        {"tokens": 2048, "depth": 0.5, "right": 5, "trials": 5},
        {"tokens": 4096, "depth": 0.5, "right": 3, "trials": 5},
    ]
    assert len(store.passkey_runs(1)) == 1
    with pytest.raises(NotFoundError):
        store.add_passkey_cell(99, 1, 0.0, 0, 1)


def test_many_threads_lose_nothing(store: Store) -> None:
    """One chat being answered, documents coming and going, eight readers: no lock error, no lost write."""
    book, book_keys = read_document(store, "Book", list(range(64)))
    chat = store.create_chat([book], "m")
    errors: list[BaseException] = []
    running = threading.Event()
    running.set()

    def answer() -> None:
        for turn in range(60):
            keys = store.blocks.chain_keys(RECIPE, list(range(1000, 1000 + GROUP * (turn + 1))), GROUP)
            put(store, keys, list(range(1000, 1000 + GROUP * (turn + 1))))
            store.save_turn(chat, f"question {turn}", "a", {}, [], Tail(RECIPE, (turn,), tuple(keys), (1,), ()))

    def upload(number: int) -> None:
        for round in range(15):
            id, _ = read_document(store, f"Doc {number} {round}", [number, round, *range(30)])
            if round % 3:
                store.delete_document(id)

    def look(number: int) -> None:
        generator = random.Random(number)
        while running.is_set():
            assert store.search_parts("text of book")[0][0] == book
            assert store.blocks.known_prefix(book_keys) == len(book_keys)
            place = generator.randrange(len(book_keys))
            tokens = list(range(64))[place * GROUP : (place + 1) * GROUP]
            assert store.blocks.get(book_keys[place], tokens) == block_bytes(book_keys[place])
            assert len(store.messages(chat)) % 2 == 0
            assert store.documents(RECIPE)[-1].id == book
            store.chats("question")

    def guarded(work: Callable[..., None], *args: int) -> threading.Thread:
        def run() -> None:
            try:
                work(*args)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    writers = [guarded(answer), *(guarded(upload, number) for number in range(3))]
    readers = [guarded(look, number) for number in range(8)]
    for thread in writers:
        thread.join()
    running.clear()
    for thread in readers:
        thread.join()
    assert errors == [] and store.notes == []
    assert [m.content for m in store.messages(chat)][::2] == [f"question {n}" for n in range(60)]
    assert len(store.documents(RECIPE)) == 1 + 3 * 5
    store.collect_garbage()
    for info in store.documents(RECIPE):
        keys = store.manifest(info.id, RECIPE, 0)
        assert stored(store, keys) == keys
    tail = store.tail(chat)
    assert tail is not None and stored(store, list(tail.keys)) == list(tail.keys)
    assert store.verify().damaged == []
