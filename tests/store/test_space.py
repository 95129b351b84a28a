"""Disk space: pins, eviction, the budget, sizes, compaction."""

from pathlib import Path

import pytest

from app.errors import NotFoundError
from app.records import Tail
from app.store.space import EVICTED
from app.store.store import Store
from tests.store.test_store import RECIPE, open_store, read_document, store, stored

__all__ = ["store"]


def sizes_of(store: Store, keys: list[str]) -> int:
    costs = store.blocks.costs()
    return sum(costs[key].size_bytes for key in keys)


def test_pinned_documents_stay_and_what_goes_is_no_longer_read(store: Store) -> None:
    first, first_keys = read_document(store, "First", list(range(0, 64)))
    second, second_keys = read_document(store, "Second", list(range(100, 164)))
    for id in (first, second):
        store.set_state(id, RECIPE, "read")
    store.pin(first)
    store.blocks.disk_budget_bytes = 0
    freed = store.enforce_budget(())
    assert freed > 0 and store.pinned() == {first}
    assert stored(store, first_keys) == first_keys and stored(store, second_keys) == []
    assert store.document(first, RECIPE).state == "read"
    gone = store.document(second, RECIPE)
    assert (gone.state, gone.detail) == ("new", EVICTED)
    store.pin(first, False)
    store.enforce_budget(first_keys[:1])
    assert stored(store, first_keys) == first_keys[:1] and store.document(first, RECIPE).state == "new"
    with pytest.raises(NotFoundError):
        store.pin("none")


def test_pins_last_and_go_with_their_document(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    id, _ = read_document(store, "First", list(range(8)))
    store.pin(id)
    store.close()
    store = open_store(tmp_path)
    assert store.pinned() == {id}
    store.delete_document(id)
    assert store.pinned() == set()
    store.close()


def test_an_evicted_document_keeps_its_text_and_shared_blocks(store: Store) -> None:
    first, first_keys = read_document(store, "First", list(range(64)))
    second, second_keys = read_document(store, "Second", [*range(32), *range(200, 232)])
    store.set_state(first, RECIPE, "read")
    store.evict(first)
    store.collect_garbage()
    assert stored(store, second_keys) == second_keys and len(stored(store, first_keys)) == len(first_keys) // 2
    assert store.document(first, RECIPE).state == "new" and store.parts(first)
    assert store.memories(first, RECIPE) is not None and store.manifest(first, RECIPE, 0) == []


def test_sizes_by_document_policy_and_codec(store: Store) -> None:
    store.keep_recipe(RECIPE, {"policy": "keep-all"})
    first, first_keys = read_document(store, "First", list(range(64)))
    second, second_keys = read_document(store, "Second", list(range(64)))
    assert first_keys == second_keys
    assert store.sizes() == {first: sizes_of(store, first_keys), second: sizes_of(store, first_keys)}
    chat = store.create_chat([first], "m")
    store.blocks.put("t", [1, 2, 3], b"i", [b"x" * 9], "int8")
    store.save_turn(chat, "q", "a", {}, [], Tail("cc", (1, 2, 3), ("t",), (3,), ()))
    store.blocks.flush()
    raw, int8 = store.kept()
    assert (raw.policy, raw.codec, raw.tokens, raw.size_bytes) == ("keep-all", "raw", 64, sizes_of(store, first_keys))
    assert (int8.policy, int8.codec, int8.tokens, int8.size_bytes) == ("unknown", "int8", 3, 12 + 1 + 9)
    assert store.kept(RECIPE) == [raw] and raw.bytes_per_token == raw.size_bytes / 64


def test_compacting_gives_space_back_and_loses_nothing(store: Store) -> None:
    id, keys = read_document(store, "First", list(range(4000)))
    other, other_keys = read_document(store, "Second", list(range(5000, 5064)))
    store.delete_document(id)
    before, after = store.compact()
    assert after < before
    assert store.compact()[1] <= after
    assert stored(store, other_keys) == other_keys and store.verify().damaged == []
    assert store.search_parts("second") or store.parts(other)
