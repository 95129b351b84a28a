"""Notes of questions about whole texts."""

from app.records import Document, Part
from app.store.store import Store


def test_notes_are_kept_by_document_task_and_model_and_go_with_the_document(tmp_path) -> None:
    store = Store(tmp_path, disk_budget_bytes=10**9)
    one = store.add_document(Document("Book", "text", "ab" * 32, (Part(1, "1", "x"), Part(2, "2", "y"))))
    store.add_part_notes(one, "1 places x", "", {1: [[0, 1, "x", 0]]})
    store.add_part_notes(one, "1 places x", "", {1: [], 2: []})  # what is there stays
    store.add_part_notes(one, "1 places y", "", {1: []})
    store.add_part_notes(one, "1 places x", "model", {2: [[0, 1, "z", 0]]})
    assert store.part_notes(one, "1 places x", "") == {1: [[0, 1, "x", 0]], 2: []}
    assert store.part_notes(one, "1 places x", "model") == {2: [[0, 1, "z", 0]]}
    store.delete_document(one)
    assert store.part_notes(one, "1 places x", "") == {}
    store.close()
