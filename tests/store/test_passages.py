"""Passages of the library, found by words."""

import sqlite3
from pathlib import Path

import pytest

from app.records import Document, Part
from app.store.passages import PASSAGE_CHARS, cut
from app.store.store import Store
from app.store.text import question_query

FILLER = "The rain fell on the roofs and nobody came to the door all day. " * 60


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path, disk_budget_bytes=1 << 30)
    yield store
    store.close()


def add(store: Store, *texts: str, digest: str = "a") -> str:
    parts = tuple(Part(n, str(n), text) for n, text in enumerate(texts, start=1))
    id = store.add_document(Document(f"Book {digest}", "text", digest * 64, parts))
    store.index_passages(id)
    return id


def best(store: Store, question: str, *documents: str, before: tuple[str, ...] = ()) -> str:
    """The text of the passage that fits best."""
    found = store.find_passages(question_query(question, before), documents, 1)
    return "".join(store.part(f.document, f.part).text[f.char_start : f.char_end] for f in found)


def test_a_question_finds_the_passage_with_its_words_in_other_forms(store: Store) -> None:
    sentence = "Captain Orlov sailed for Malta with forty barrels. "
    id = add(store, FILLER + sentence + FILLER)
    assert sentence.strip() in best(store, "Where did Captain Orlov's ship sail?", id)
    assert sentence.strip() in best(store, "How many barrels were sailing?", id)


def test_only_the_documents_that_are_asked_for_are_searched(store: Store) -> None:
    first = add(store, FILLER + "The key is under the mat.", digest="a")
    second = add(store, FILLER + "The key hangs in the hall.", digest="b")
    assert "under the mat" in best(store, "Where is the key?", first)
    assert "in the hall" in best(store, "Where is the key?", second)
    assert best(store, "Where is the lighthouse?", first, second) == ""


def test_a_question_that_refers_to_something_looks_for_what_was_named_before(store: Store) -> None:
    born = "Ivan Petrov was born in Kazan in 1821. "
    id = add(store, "Anna was born in Tver, and Boris was born in Omsk. " + FILLER + born + FILLER)
    turns = ("Who wrote the letter?", "It was written by Ivan Petrov.")
    assert born.strip() in best(store, "Where was he born?", id, before=turns)
    assert question_query("Where was Anna born?", turns) == '"anna" OR "born"'


def test_names_and_quoted_strings_are_phrases_too() -> None:
    assert question_query('Who said "never again" to Lady Blanche?') == (
        '"said" OR "never" OR "again" OR "lady" OR "blanche" OR "never again" OR "Lady Blanche"'
    )
    assert question_query("How much is 4,695 * 2?") == '"4,695" OR "2"'
    assert question_query("What is it?") is None
    assert question_query("\ud800") is None


def test_a_document_is_indexed_once_and_its_passages_go_with_it(store: Store, tmp_path: Path) -> None:
    id = add(store, FILLER + "A zebra. " + FILLER, FILLER)
    store.index_passages(id)
    other = add(store, "Another zebra.", digest="b")
    assert len(store.find_passages('"zebra"', [id, other], 9)) == 2
    store.delete_document(id)
    assert [found.document for found in store.find_passages('"zebra"', [id, other], 9)] == [other]
    with sqlite3.connect(tmp_path / "library.db") as db:
        assert db.execute("SELECT COUNT(*) FROM passage").fetchone() == (1,)
        db.execute("INSERT INTO passage_fts (passage_fts, rank) VALUES ('integrity-check', 1)")


def test_passages_cover_a_text_and_end_where_sentences_end() -> None:
    text = "This is one of very many sentences of a text. " * 200
    places = cut(text)
    assert [start for start, _ in places] == [0, *(end for _, end in places[:-1])] and places[-1][1] == len(text)
    assert all(text[:end].endswith(". ") for _, end in places)
    assert all(0.7 * PASSAGE_CHARS < end - start < 1.4 * PASSAGE_CHARS for start, end in places)
    assert cut("x" * 5000)[0] == (0, 1250) and cut("") == [] and cut("  \n") == []
