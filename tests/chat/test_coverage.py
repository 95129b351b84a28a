"""The strip along a document: it says of every place what is stored of it."""

from dataclasses import replace

import pytest

from app.chat.coverage import CELLS, coverage, muted_parts, read_parts
from app.chat.focus import Sight
from app.records import DocumentInfo, Evidence, MemoryText, Part, Span
from tests.chat.opened import SHORT, Open, finish, open_chat, write  # noqa: F401

INFO = DocumentInfo("d1", "Book", "text", 3, 300, "read", "", "")
PARTS = [Part(1, "1", "a" * 100, "One"), Part(2, "2", "b" * 600, "Two"), Part(3, "3", "c" * 100, "Two")]


def passage(part: int, start: int, end: int, **more) -> Evidence:
    found = Evidence("e1-1", "d1", "Book", "x", part, start, end, "text", 0.4)
    return replace(found, **more)


def test_cells_make_up_the_document_in_order() -> None:
    parts = [Part(n, str(n), "x" * (50 if n % 3 else 900)) for n in range(1, 200)]
    found = coverage(INFO, parts, {}).cells
    assert sum(cell.size for cell in found) == pytest.approx(1, abs=1e-3) and len(found) <= 2 * CELLS
    places = [(cell.part, cell.char_start) for cell in found]
    assert places == sorted(places) and places[0] == (1, 0)
    assert coverage(INFO, [Part(1, "1", "")], {}).cells[0].read == 0


def test_what_a_passage_touches_is_marked_and_nothing_else() -> None:
    found = coverage(
        INFO, PARTS, {}, evidence=[passage(2, 300, 340, found_by="words"), passage(1, 0, 9, document="d2")]
    )
    marked = [cell for cell in found.cells if cell.passages]
    assert marked and all(cell.part == 2 and 280 <= cell.char_start < 340 for cell in marked)
    assert sum(cell.looked for cell in found.cells) == pytest.approx(0.4, abs=1e-4)
    assert all(cell.words == bool(cell.passages) for cell in found.cells)


def test_a_part_that_is_read_half_is_read_at_its_beginning() -> None:
    texts = [MemoryText([0] * 101, (Span(1, 1, 26), Span(2, 26, 76), Span(3, 76, 101)))]
    read = read_parts(texts, [51])
    assert read == {1: 1.0, 2: 0.5, 3: 0.0}
    found = coverage(INFO, PARTS, read)
    assert found.read == pytest.approx(0.5, abs=0.01)
    assert [cell.read for cell in found.cells] == sorted((cell.read for cell in found.cells), reverse=True)


def test_muted_is_what_focus_and_mute_leave_out() -> None:
    parts = [*PARTS, Part(4, "4", "d", "End", kind="licence")]
    assert muted_parts(INFO, parts, Sight()) == frozenset()
    assert muted_parts(INFO, parts, Sight(focus=("Book#Two",))) == {1, 4}
    assert muted_parts(INFO, parts, Sight(mute=("Book#licence", "Other#1"))) == {4}
    stats = {"mute": ["Book#Two"], "tokens_evicted": 7}
    found = coverage(INFO, PARTS, {}, stats=stats)
    assert {cell.part for cell in found.cells if cell.muted} == {2, 3} and found.tokens == {"tokens_evicted": 7}


def test_the_strip_agrees_with_the_stored_evidence(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    document = chat.library.add_document(write(tmp_path, words=200))
    assert chat.library.coverage(document.id).read == 0
    done = finish(chat.ask("who?", documents=[document.id], generation=SHORT))
    (said,) = [message for message in chat.saved.messages(done.chat) if message.role == "assistant"]
    found = chat.library.coverage(document.id, said.evidence, said.stats)
    assert found.read == 1 and said.evidence
    assert sum(cell.looked for cell in found.cells) == pytest.approx(sum(e.weight for e in said.evidence), abs=1e-4)
    edges = [(cell.part, cell.char_start) for cell in found.cells]
    ends = [*edges[1:], (10**9, 0)]
    for cell, start, end in zip(found.cells, edges, ends, strict=True):
        held = {e.id for e in said.evidence if (e.part, e.char_start) < end and (e.part, e.char_end) > start}
        assert set(cell.passages) == held
    assert found.tokens["tokens_kept"] == said.stats["tokens_kept"]


def test_while_a_document_is_read_its_beginning_is_told(open_chat: Open, tmp_path) -> None:  # noqa: F811
    chat = open_chat()
    chat.model.engine().segment_tokens = 8 * chat.model.engine().shape.attention.group_tokens
    document = chat.library.add_document(write(tmp_path, words=500))
    reading = chat.read(document.id)
    while next(reading).tokens_done == 0:
        pass
    reading.close()
    found = chat.library.coverage(document.id)
    assert 0 < found.read < 1 and found.cells[0].read == 1 and found.cells[-1].read == 0
