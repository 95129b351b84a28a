"""The document half of the library."""

import hashlib
import random
from pathlib import Path

import pytest

from app.errors import CancelledError, NotFoundError, StoreError
from app.ingest.text import split_parts
from app.records import Document, MemoryText, Part, Skipped, Span
from app.store.store import Store

RECIPE = "aa" * 32
OTHER = "bb" * 32


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path, disk_budget_bytes=1 << 30)
    yield store
    store.close()


def make_document(title: str = "Emma", texts: tuple[str, ...] = ("It was a fine day.", "Rain fell.")) -> Document:
    parts = tuple(Part(n, f"p{n}", text, chapter=f"C{n}", group=n % 2) for n, text in enumerate(texts, start=1))
    sha256 = hashlib.sha256((title + "".join(texts)).encode("utf-8", "replace")).hexdigest()
    return Document(title, "text", sha256, parts, (Skipped("p9", "image only"),), ("one page holds an image",))


def memory(*token_ids: int) -> MemoryText:
    return MemoryText(list(token_ids), (Span(1, 1, len(token_ids)),))


def test_a_document_comes_back_as_it_was_given(store: Store) -> None:
    document = make_document()
    id = store.add_document(document)
    assert id == document.sha256[:12]
    assert store.parts(id) == list(document.parts)
    assert store.part(id, 2) == document.parts[1]
    info = store.document(id, RECIPE)
    assert (info.id, info.title, info.kind, info.parts) == (id, "Emma", "text", 2)
    assert (info.tokens, info.state, info.detail) == (0, "new", "")
    assert info.notes == document.notes and info.skipped == document.skipped


def test_parts_beside_a_document_are_found_by_kind(store: Store) -> None:
    kinds = ("front matter", "", "notes", "licence", "licence")
    parts = tuple(Part(n, str(n), "text", kind=kind) for n, kind in enumerate(kinds, start=1))
    id = store.add_document(Document("Emma", "text", "e" * 64, parts))
    assert store.parts_beside(id) == {"front matter": {1}, "licence": {4, 5}}


def test_a_cancelled_document_leaves_nothing(store: Store) -> None:
    asked = iter([False, True])
    with pytest.raises(CancelledError):
        store.add_document(make_document(), lambda: next(asked))
    assert store.documents(RECIPE) == []


def test_a_file_keeps_its_path_and_first_line(store: Store) -> None:
    part = Part(1, "src/a.py", "src/a.py (Python)\nx = 1\n", first_line=0)
    id = store.add_document(Document("repo", "code", "c" * 64, (part,)))
    assert store.parts(id) == [part]


def test_a_part_of_a_text_knows_its_line(store: Store) -> None:
    text = "".join(f"This is line {n} of a text." + "\n" * (1 + n % 3) for n in range(1, 2000))
    id = store.add_document(Document("Lines", "text", "d" * 64, tuple(split_parts(text))))
    assert len(store.parts(id)) > 10
    for part in store.parts(id):
        assert "".join(text.splitlines(keepends=True)[store.line_of(id, part.index) - 1 :]).startswith(part.text)


def test_the_same_bytes_again_change_nothing(store: Store) -> None:
    id = store.add_document(make_document())
    store.set_state(id, RECIPE, "read")
    assert store.add_document(make_document()) == id
    assert [(d.title, d.state) for d in store.documents(RECIPE)] == [("Emma", "read")]


def test_two_documents_with_one_id_are_refused(store: Store) -> None:
    store.add_document(make_document())
    forged = make_document().sha256[:12] + "0" * 52
    with pytest.raises(StoreError, match="belongs to another document"):
        store.add_document(Document("x", "text", forged, ()))


def test_documents_are_listed_newest_first(store: Store) -> None:
    ids = [store.add_document(make_document(title)) for title in ("One", "Two", "Three")]
    assert [d.id for d in store.documents(RECIPE)] == ids[::-1]


def test_a_document_answers_to_id_title_and_unique_beginning(store: Store) -> None:
    first = store.add_document(Document("Emma", "text", "ab1" + "0" * 61, ()))
    second = store.add_document(Document("Emma", "text", "ab2" + "0" * 61, ()))
    third = store.add_document(Document("ab", "text", "cd" + "0" * 62, ()))
    assert store.document(first, RECIPE).id == first
    assert store.document("ab2", RECIPE).id == second
    assert store.document("ab", RECIPE).id == third
    with pytest.raises(NotFoundError, match=f"{first}, {second}"):
        store.document("Emma", RECIPE)
    for wrong in ("", "zz", "emma", "%", "a_", "\0", "\udcff"):
        with pytest.raises(NotFoundError):
            store.document(wrong, RECIPE)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.parts("none"),
        lambda store: store.part("none", 1),
        lambda store: store.delete_document("none"),
        lambda store: store.set_state("none", RECIPE, "read"),
        lambda store: store.memories("none", RECIPE),
        lambda store: store.set_memories("none", RECIPE, [memory(1)]),
        lambda store: store.manifest("none", RECIPE, 0),
        lambda store: store.set_manifest("none", RECIPE, 0, []),
    ],
)
def test_an_unknown_document_is_named(store: Store, call) -> None:
    with pytest.raises(NotFoundError, match="none"):
        call(store)


def test_an_unknown_part_is_named(store: Store) -> None:
    id = store.add_document(make_document())
    with pytest.raises(NotFoundError, match="no part 3"):
        store.part(id, 3)


def test_search_finds_words_phrases_beginnings_and_accents(store: Store) -> None:
    book = store.add_document(make_document("Book", ("The pass key of the café is amber.", "Nothing here.")))
    code = store.add_document(make_document("Code", ("def pass_key(): return key",)))
    assert {hit[0] for hit in store.search_parts("key pass")} == {book, code}
    assert store.search_parts('"key of"') == [(book, 1, "p1", "The pass key of the café is amber.")]
    assert [hit[0] for hit in store.search_parts("cafe amb")] == [book]
    assert store.search_parts("key", document=code) == [(code, 1, "p1", "def pass_key(): return key")]
    assert len(store.search_parts("key", limit=1)) == 1
    assert store.search_parts("absent") == []


def test_search_follows_deletion(store: Store) -> None:
    id = store.add_document(make_document())
    assert store.search_parts("rain")
    store.delete_document(id)
    assert store.search_parts("rain") == [] and store.documents(RECIPE) == []


def test_no_query_breaks_the_search(store: Store) -> None:
    store.add_document(make_document())
    generator = random.Random(0)
    letters = "ab \"'*:^(){}[]-+~|&,.;\\/\0\n\udc80éOR AND NOT NEAR"
    queries = ["", " ", '"', "***", "AND", "NEAR(", "text:rain", "a" * 5000, "rain " * 5000, '"' * 99]
    queries += ["".join(generator.choices(letters, k=generator.randrange(30))) for _ in range(500)]
    for query in queries:
        store.search_parts(query)
        store.chats(query)


def test_text_that_sqlite_cannot_hold_is_kept_at_its_length(store: Store) -> None:
    document = make_document("name\udcff.txt", ("a\udc80b\0c",))
    id = store.add_document(document)
    assert store.part(id, 1).text == "a\ufffdb\0c" and store.document(id, RECIPE).title == "name\ufffd.txt"


def test_memories_belong_to_a_recipe(store: Store) -> None:
    id = store.add_document(make_document())
    memories = [memory(1, 70000, 3), memory(1, 5)]
    assert store.memories(id, RECIPE) is None
    store.set_memories(id, RECIPE, memories)
    store.set_state(id, RECIPE, "reading", "41%")
    assert store.memories(id, RECIPE) == memories
    assert store.memories(id, OTHER) is None
    assert [(d.tokens, d.state, d.detail) for d in store.documents(RECIPE)] == [(5, "reading", "41%")]
    assert [(d.tokens, d.state) for d in store.documents(OTHER)] == [(0, "new")]


def test_a_manifest_grows_shrinks_and_is_rewritten(store: Store) -> None:
    id = store.add_document(make_document())
    store.set_memories(id, RECIPE, [memory(1, 2), memory(1, 3)])
    for keys in (["a"], ["a", "b", "c"], ["a", "b"], [], ["x", "y"], ["q", "r", "s"]):
        store.set_manifest(id, RECIPE, 1, keys)
        assert store.manifest(id, RECIPE, 1) == keys
    assert store.manifest(id, RECIPE, 0) == []
    with pytest.raises(NotFoundError, match="no memory 2"):
        store.manifest(id, RECIPE, 2)


def test_equal_memories_keep_their_manifest_and_others_lose_it(store: Store) -> None:
    id = store.add_document(make_document())
    store.set_memories(id, RECIPE, [memory(1, 2)])
    store.set_manifest(id, RECIPE, 0, ["a"])
    store.set_memories(id, RECIPE, [memory(1, 2)])
    assert store.manifest(id, RECIPE, 0) == ["a"]
    store.set_memories(id, RECIPE, [memory(1, 3)])
    assert store.manifest(id, RECIPE, 0) == []


def test_a_deleted_document_takes_everything_read_of_it_along(store: Store) -> None:
    document = make_document()
    id = store.add_document(document)
    store.set_memories(id, RECIPE, [memory(1, 2)])
    store.set_manifest(id, RECIPE, 0, ["a"])
    store.set_state(id, RECIPE, "read")
    store.delete_document(id)
    assert store.add_document(document) == id
    assert store.document(id, RECIPE).state == "new" and store.memories(id, RECIPE) is None
    assert store.parts(id) == list(document.parts)
