"""kv.db: keys, round trips, damage, deletion, the disk budget, a full disk."""

import random
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from app.errors import DamagedBlock, NotFoundError, StoreError
from app.store import blocks as blocks_module
from app.store.blocks import BlockStore

GROUP = 4
TOKENS = [[n, n + 1, 50000 + n, 3] for n in range(40)]
KEYS = BlockStore.chain_keys("aa" * 32, [token for group in TOKENS for token in group], GROUP)


@pytest.fixture
def blocks(tmp_path: Path):
    store = BlockStore(tmp_path / "kv.db", disk_budget_bytes=1 << 30)
    yield store
    store.close()


def content(number: int, kv_bytes: int = 3000) -> tuple[bytes, list[bytes]]:
    generator = random.Random(number)
    return generator.randbytes(200), [generator.randbytes(kv_bytes), generator.randbytes(kv_bytes)]


def fill(blocks: BlockStore, count: int = len(KEYS), kv_bytes: int = 3000) -> None:
    for number in range(count):
        index, kv = content(number, kv_bytes)
        blocks.put(KEYS[number], TOKENS[number], index, kv, "raw")
    blocks.flush()


def reopened(blocks: BlockStore) -> BlockStore:
    blocks.close()
    return BlockStore(blocks.path, disk_budget_bytes=blocks.disk_budget_bytes)


def change(path: Path, statement: str) -> None:
    """Run a statement behind the store's back; FLIP(x) flips the lowest bit of a number or of a blob's first byte."""
    conn = sqlite3.connect(path)
    conn.create_function("FLIP", 1, lambda x: bytes([x[0] ^ 1]) + x[1:] if isinstance(x, bytes) else x ^ 1)
    conn.execute(statement)
    conn.commit()
    conn.close()


def test_keys_depend_on_the_recipe_and_on_everything_before() -> None:
    ids = list(range(10))
    keys = BlockStore.chain_keys("root", ids, 4)
    assert len(keys) == 3 and len(set(keys)) == 3 and all(len(key) == 64 for key in keys)
    assert BlockStore.chain_keys("root", ids[:8], 4) == keys[:2]
    assert BlockStore.chain_keys("root", ids + [10], 4)[:2] == keys[:2]
    assert BlockStore.chain_keys("root", ids + [10], 4)[2] != keys[2]
    assert not set(BlockStore.chain_keys("other", ids, 4)) & set(keys)
    assert not set(BlockStore.chain_keys("root", [99] + ids[1:], 4)) & set(keys)
    assert BlockStore.chain_keys("root", [], 4) == []
    with pytest.raises(ValueError):
        BlockStore.chain_keys("root", ids, 0)


def test_keys_never_change_between_releases() -> None:
    """Everything stored hangs on them."""
    assert BlockStore.chain_keys("ab", [1, 2, 70000], 2) == [
        "9f730542916905ad1956c6bfbe9e6f0cfb1052d6c93ed9bca934e172712d2a26",
        "080af20b111a24f0c7ac44ca333c1152d9c58e35b6dcddded67225d1208a6be5",
    ]


def test_blocks_come_back_after_a_restart(blocks: BlockStore) -> None:
    fill(blocks)
    blocks = reopened(blocks)
    assert list(blocks.get_many(KEYS, TOKENS)) == [content(n) for n in range(len(KEYS))]
    assert blocks.get(KEYS[7], TOKENS[7]) == content(7)
    assert blocks.get_index(KEYS[7]) == blocks.get_index(KEYS[7], TOKENS[7]) == content(7)[0]
    assert blocks.stats()["blocks"] == len(KEYS)
    assert blocks.verify() == blocks_module.VerifyReport(len(KEYS), [])
    blocks.close()


def test_order_is_the_callers_over_many_fetches(blocks: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "READ_BYTES", 15_000)
    fill(blocks)
    order = random.Random(0).sample(range(len(KEYS)), len(KEYS))
    got = blocks.get_many([KEYS[n] for n in order], [TOKENS[n] for n in order])
    assert list(got) == [content(n) for n in order]
    with pytest.raises(ValueError):
        list(blocks.get_many(KEYS, TOKENS[:3]))


def test_indexes_come_alone_and_are_checked(blocks: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "INDEXES", 7)
    fill(blocks)
    assert list(blocks.get_indexes(KEYS, TOKENS)) == [content(n)[0] for n in range(len(KEYS))]
    got = blocks.get_indexes(KEYS[:2], [TOKENS[0], TOKENS[2]])
    assert next(got) == content(0)[0]
    with pytest.raises(DamagedBlock, match="other tokens"):
        next(got)
    change(blocks.path, "UPDATE block_index SET data = FLIP(data) WHERE block = 3")
    with pytest.raises(DamagedBlock, match="index fails"):
        list(blocks.get_indexes(KEYS[2:3], TOKENS[2:3]))


def test_single_rows_come_in_the_order_asked_for_and_are_checked(blocks: BlockStore) -> None:
    fill(blocks, 6)
    assert blocks.read_rows(KEYS[2], [1, 0]) == [content(2)[1][1], content(2)[1][0]]
    wanted = [(KEYS[5], 0), (KEYS[0], 1), (KEYS[5], 0), (KEYS[3], 1)]
    numbers = [(5, 0), (0, 1), (5, 0), (3, 1)]
    assert blocks.read_many_rows(wanted) == [content(n)[1][row] for n, row in numbers]
    assert blocks.read_many_rows([]) == []
    for missing in ((KEYS[2], 2), (KEYS[20], 0)):
        with pytest.raises(NotFoundError, match="row"):
            blocks.read_many_rows([(KEYS[0], 0), missing])
    change(blocks.path, "UPDATE block_kv SET data = FLIP(data) WHERE block = 3 AND bundle = 1")
    assert blocks.read_rows(KEYS[2], [0]) == [content(2)[1][0]]
    with pytest.raises(DamagedBlock):
        blocks.read_rows(KEYS[2], [0, 1])
    blocks.flush()
    with pytest.raises(NotFoundError):
        blocks.read_rows(KEYS[2], [0])


def test_a_row_that_turns_up_under_another_number_does_not_pass(blocks: BlockStore) -> None:
    fill(blocks, 2)
    change(blocks.path, "UPDATE block_kv SET bundle = 9 WHERE block = 1 AND bundle = 1")
    with pytest.raises(DamagedBlock):
        blocks.read_rows(KEYS[0], [9])


def test_held_blocks_are_not_evicted(blocks: BlockStore) -> None:
    fill(blocks, 6)
    blocks.disk_budget_bytes = 0
    blocks.hold(KEYS[:3])
    blocks.hold(KEYS[:1])
    blocks.enforce_budget(set())
    assert blocks.known_prefix(KEYS) == 3
    blocks.release(KEYS[:3])
    blocks.enforce_budget(set())
    assert blocks.known_prefix(KEYS) == 1


def test_a_block_without_kv_and_one_with_empty_rows(blocks: BlockStore) -> None:
    blocks.put("k0", [], b"", [], "raw")
    blocks.put("k1", [1], b"i", [b"", b"x"], "raw")
    blocks.flush()
    assert blocks.get("k0", []) == (b"", [])
    assert blocks.get("k1", [1]) == (b"i", [b"", b"x"])


def test_rows_over_a_mebibyte_are_refused(blocks: BlockStore) -> None:
    blocks.put("k", [1], b"", [bytes(1 << 20)], "raw")
    with pytest.raises(ValueError, match="1048577"):
        blocks.put("k", [1], b"", [bytes((1 << 20) + 1)], "raw")


def test_an_unknown_key_is_not_found(blocks: BlockStore) -> None:
    fill(blocks, 3)
    for call in (blocks.get, blocks.get_index):
        with pytest.raises(NotFoundError):
            call(KEYS[5], TOKENS[5])
    got = blocks.get_many(KEYS[:5], TOKENS[:5])
    assert [next(got) for _ in range(3)] == [content(n) for n in range(3)]
    with pytest.raises(NotFoundError):
        next(got)


def test_the_known_prefix_ends_at_the_first_gap(blocks: BlockStore) -> None:
    assert blocks.known_prefix([]) == blocks.known_prefix(KEYS) == 0
    fill(blocks, 10)
    assert blocks.known_prefix(KEYS) == 10 and blocks.known_prefix(KEYS[:4]) == 4
    blocks.delete([KEYS[6]])
    blocks.flush()
    assert blocks.known_prefix(KEYS) == 6
    assert blocks.known_prefix(BlockStore.chain_keys("another recipe", [1] * 40, GROUP)) == 0


def test_the_first_of_two_puts_stays(blocks: BlockStore) -> None:
    blocks.put("k", [1], b"first", [b"1"], "raw")
    blocks.put("k", [1], b"second", [b"2"], "raw")
    blocks.flush()
    assert blocks.get("k", [1]) == (b"first", [b"1"])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block_kv SET data = FLIP(data) WHERE block = 1 AND bundle = 0",
        "UPDATE block_kv SET data = FLIP(data) WHERE block = 1 AND bundle = 1",
        "UPDATE block_kv SET crc = FLIP(crc) WHERE block = 1 AND bundle = 1",
        "UPDATE block_kv SET bundle = 2 WHERE block = 1 AND bundle = 1",
        "DELETE FROM block_kv WHERE block = 1 AND bundle = 1",
        "UPDATE block_index SET data = FLIP(data) WHERE block = 1",
        "UPDATE block_index SET tokens = FLIP(tokens) WHERE block = 1",
        "UPDATE block_index SET crc = FLIP(crc) WHERE block = 1",
        "DELETE FROM block_index WHERE block = 1",
        "UPDATE block SET bundles = FLIP(bundles) WHERE id = 1",
        "UPDATE block SET codec = 'rav' WHERE id = 1",
    ],
)
def test_damage_is_found_refused_and_can_be_written_again(blocks: BlockStore, statement: str) -> None:
    fill(blocks, 3)
    blocks.close()
    change(blocks.path, statement)
    blocks = BlockStore(blocks.path, disk_budget_bytes=1 << 30)
    assert blocks.verify().damaged == [KEYS[0]]
    with pytest.raises(DamagedBlock, match=KEYS[0][:12]):
        blocks.get(KEYS[0], TOKENS[0])
    blocks.flush()
    assert blocks.known_prefix(KEYS) == 0 and blocks.get(KEYS[1], TOKENS[1]) == content(1)
    fill(blocks, 1)
    assert blocks.get(KEYS[0], TOKENS[0]) == content(0)
    assert blocks.verify().damaged == []
    blocks.close()


def test_damage_to_the_index_is_found_when_the_index_alone_is_read(blocks: BlockStore) -> None:
    fill(blocks, 1)
    blocks.close()
    change(blocks.path, "UPDATE block_index SET data = FLIP(data)")
    blocks = BlockStore(blocks.path, disk_budget_bytes=1 << 30)
    with pytest.raises(DamagedBlock):
        blocks.get_index(KEYS[0])
    blocks.close()


def test_a_row_under_another_key_does_not_pass(blocks: BlockStore) -> None:
    fill(blocks, 2)
    blocks.close()
    change(blocks.path, "UPDATE block_kv SET block = block + 100")
    change(blocks.path, "UPDATE block_kv SET block = 103 - block")
    blocks = BlockStore(blocks.path, disk_budget_bytes=1 << 30)
    assert blocks.verify().damaged == KEYS[:2]
    blocks.close()


def test_other_tokens_are_refused(blocks: BlockStore) -> None:
    fill(blocks, 2)
    for wrong in ([], TOKENS[0][:3], [*TOKENS[0], 1], TOKENS[1]):
        with pytest.raises(DamagedBlock, match="other tokens"):
            blocks.get(KEYS[0], wrong)
        fill(blocks, 1)
    with pytest.raises(DamagedBlock, match="other tokens"):
        blocks.get_index(KEYS[1], TOKENS[0])


def test_verify_repairs_when_asked_and_tells_progress(blocks: BlockStore) -> None:
    fill(blocks)
    blocks.close()
    change(blocks.path, "UPDATE block_kv SET data = FLIP(data) WHERE block = 5")
    blocks = BlockStore(blocks.path, disk_budget_bytes=1 << 30)
    assert blocks.verify().damaged == blocks.verify().damaged == [KEYS[4]]
    seen: list[tuple[int, int]] = []
    assert blocks.verify(lambda done, total: seen.append((done, total)), repair=True).damaged == [KEYS[4]]
    assert seen[-1] == (40, 40)
    assert blocks.verify() == blocks_module.VerifyReport(39, [])
    blocks.close()


def test_random_flips_anywhere_never_reach_a_reader(tmp_path: Path) -> None:
    """One bit of the file at a time: a block is right, missing or refused, and the store stays usable."""
    original = BlockStore(tmp_path / "kv.db", disk_budget_bytes=1 << 30)
    fill(original, 12)
    original.close()
    sound = (tmp_path / "kv.db").read_bytes()
    generator = random.Random(0)
    outcomes = {"right": 0, "refused": 0, "missing": 0}
    # Half anywhere, half in the first pages and page heads, where the structure is.
    places = [generator.randrange(8 * len(sound)) for _ in range(100)]
    pages = len(sound) // 32768
    places += [8 * 32768 * generator.randrange(pages) + generator.randrange(8 * 200) for _ in range(100)]
    for round, place in enumerate(places):
        folder = tmp_path / str(round)
        folder.mkdir()
        flipped = bytearray(sound)
        flipped[place // 8] ^= 1 << (place % 8)
        (folder / "kv.db").write_bytes(flipped)
        blocks = BlockStore(folder / "kv.db", disk_budget_bytes=1 << 30)
        for number in range(12):
            try:
                assert blocks.get(KEYS[number], TOKENS[number]) == content(number)
                outcomes["right"] += 1
            except DamagedBlock:
                outcomes["refused"] += 1
            except NotFoundError:
                outcomes["missing"] += 1
        blocks.verify(repair=True)
        fill(blocks, 12)
        assert [blocks.get(KEYS[n], TOKENS[n]) for n in range(12)] == [content(n) for n in range(12)]
        assert blocks.verify().damaged == []
        blocks.close()
    assert outcomes["right"] > 1000 and outcomes["refused"] > 20


def test_a_file_with_broken_structure_is_set_aside_while_running(blocks: BlockStore) -> None:
    fill(blocks)
    blocks.close()
    conn = sqlite3.connect(blocks.path)
    root = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'block_kv'").fetchone()[0]
    conn.close()
    with blocks.path.open("r+b") as file:
        file.seek((root - 1) * 32768)
        file.write(bytes(32768))
    blocks = BlockStore(blocks.path, disk_budget_bytes=1 << 30)
    assert blocks.notes == []
    with pytest.raises(DamagedBlock):
        blocks.get(KEYS[0], TOKENS[0])
    fill(blocks)
    assert blocks.get(KEYS[0], TOKENS[0]) == content(0)
    assert len(blocks.notes) == 1 and "set aside" in blocks.notes[0]
    assert len(list(blocks.path.parent.glob("kv.set-aside-*.db"))) == 1
    blocks.close()


@pytest.mark.parametrize("kind", ["garbage", "foreign"])
def test_a_file_that_is_not_ours_is_set_aside_at_open(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kv.db"
    if kind == "garbage":
        path.write_bytes(b"garbage" * 1000)
    else:
        conn = sqlite3.connect(path)
        conn.execute("CREATE TABLE cats (name)")
        conn.commit()
        conn.close()
    before = path.read_bytes()
    blocks = BlockStore(path, disk_budget_bytes=1 << 30)
    assert [aside.read_bytes() for aside in tmp_path.glob("kv.set-aside-*.db")] == [before]
    assert len(blocks.notes) == 1
    fill(blocks, 2)
    assert blocks.get(KEYS[1], TOKENS[1]) == content(1)
    blocks.close()


def test_deleted_blocks_are_gone_and_the_file_shrinks(blocks: BlockStore) -> None:
    fill(blocks, kv_bytes=300_000)
    before = blocks.stats()["kv_bytes"]
    blocks.delete(KEYS[:35], private=True)
    blocks.flush()
    blocks.shrink()
    blocks = reopened(blocks)
    assert blocks.stats()["blocks"] == 5 and blocks.stats()["kv_bytes"] < before / 4
    assert list(blocks.get_many(KEYS[35:], TOKENS[35:])) == [content(n, 300_000) for n in range(35, 40)]
    conn = sqlite3.connect(blocks.path)
    assert conn.execute("SELECT COUNT(*) FROM block_kv").fetchone() == (10,)
    assert conn.execute("SELECT COUNT(*) FROM block_index").fetchone() == (5,)
    conn.close()
    blocks.close()


def test_the_budget_evicts_the_least_recently_used(blocks: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter([100] * 40 + [101] * 1000)
    monkeypatch.setattr(blocks_module, "_hour", lambda: next(hours))
    fill(blocks)
    size = 200 + 2 * 3000 + 4 * GROUP
    list(blocks.get_many(KEYS[:5], TOKENS[:5]))
    blocks.disk_budget_bytes = 40 * size
    assert blocks.enforce_budget(set()) == {}
    blocks.disk_budget_bytes = 20 * size
    assert sum(blocks.enforce_budget({KEYS[39]}).values()) == 20 * size
    left = [key for key in KEYS if blocks.known_prefix([key])]
    assert left == KEYS[:19] + [KEYS[39]]
    blocks.disk_budget_bytes = 5 * size
    blocks.enforce_budget(set())
    assert [key for key in KEYS if blocks.known_prefix([key])] == KEYS[:5]
    blocks.disk_budget_bytes = 0
    assert blocks.enforce_budget(set(KEYS)) == {} and blocks.stats()["blocks"] == 5


def test_a_full_disk_surfaces_once_and_reading_goes_on(blocks: BlockStore) -> None:
    fill(blocks, 5)

    def limit(pages: int) -> None:
        blocks._file.writer.submit(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())
        blocks._file.writer.flush()

    limit(1)  # SQLite rounds it up to the present size.
    index, kv = content(5, 500_000)
    blocks.put(KEYS[5], TOKENS[5], index, kv, "raw")
    with pytest.raises(StoreError, match="disk is full"):
        blocks.flush()
    with pytest.raises(StoreError, match="disk is full"):
        while True:
            blocks.put(KEYS[6], TOKENS[6], index, kv, "raw")
    assert list(blocks.get_many(KEYS[:5], TOKENS[:5])) == [content(n) for n in range(5)]
    with suppress(StoreError):
        blocks.flush()
    limit(1 << 20)
    blocks.put(KEYS[5], TOKENS[5], index, kv, "raw")
    blocks.flush()
    assert blocks.get(KEYS[5], TOKENS[5]) == (index, kv)
    assert blocks.verify().damaged == []


def test_readers_and_a_writer_at_once(blocks: BlockStore) -> None:
    fill(blocks, 10)
    errors: list[BaseException] = []
    stop = threading.Event()

    def read(seed: int) -> None:
        generator = random.Random(seed)
        try:
            while not stop.is_set():
                number = generator.randrange(10)
                assert blocks.get(KEYS[number], TOKENS[number]) == content(number)
                assert blocks.known_prefix(KEYS) >= 10
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        fill(blocks)
        blocks.delete(KEYS[10:])
        blocks.flush()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
