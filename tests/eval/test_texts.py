import random
from pathlib import Path

import pytest

from app.eval import needles, texts
from tests import tiny

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"
LINE = "The old tower of the harbor was built in 1066 by a man from the north."


@pytest.fixture(scope="module")
def engine():
    return tiny.engine()


def test_regions_that_hold_a_part_of_a_line(engine) -> None:
    lines = texts.lines_of(BOOK)
    ids = texts.fit(engine, lambda: iter(lines), lambda taken: texts.plant(taken, [LINE, LINE[:-1]], [0.3, 0.9]), 1500)
    memory, size = engine.read(ids), engine.shape.attention.region_tokens

    def held(regions: range) -> str:
        return engine.decode(memory.token_ids[regions[0] * size : (regions[-1] + 1) * size])

    start = LINE.index("1066")
    regions = texts.regions_of(engine, memory, LINE, start, start + 4)
    assert "1066" in held(regions) and len(regions) <= 2
    whole = texts.regions_of(engine, memory, LINE)
    assert LINE[1:-1] in held(whole) and set(regions) < set(whole)
    assert whole[-1] < len(ids) // size // 2  # the first place where it stands
    assert texts.regions_of(engine, memory, LINE, 0, 1)[0] == whole[0]
    assert not texts.regions_of(engine, memory, "No such line stands here.")
    assert not texts.regions_of(engine, memory, "?")


def test_replies_tell_what_they_looked_at(engine) -> None:
    memory = engine.read(tiny.token_ids(600))
    first, second = texts.converse(engine, [memory], ["Who?", "Where?"], 6)
    for reply in (first, second):
        assert reply.looked and len(set(reply.looked)) == len(reply.looked) <= texts.LOOKED
        assert all(0 <= region < memory.regions for region in reply.looked)
    assert texts.answer(engine, memory, "Who?", 6) == first.text


def test_filler_alone_fills_a_text(engine) -> None:
    assert texts.encode(engine, "\n") == [engine.bos_id]
    lines = [f"Line {i} of a quiet book about the sea." for i in range(40)]
    ids = texts.filled(engine, lines, [], [], 900, 3)
    assert 860 < len(ids) <= 900 and ids == texts.filled(engine, lines, [], [], 900, 3)


def test_some_are_evenly_spread() -> None:
    assert texts.evenly(3, 9) == {0, 3, 6} and texts.evenly(0, 4) == set() and texts.evenly(4, 4) == {0, 1, 2, 3}


def test_planted_facts_are_found_by_their_regions(engine) -> None:
    planted = needles.plan(random.Random(0), ["multi-key"], 3)
    memory = engine.read(needles.document(engine, texts.lines_of(BOOK), planted, 1500, 1))
    size = engine.shape.attention.region_tokens
    for place in planted:
        regions = texts.regions_of(engine, memory, place.needle.sentences[0])
        found = engine.decode(memory.token_ids[regions[0] * size : (regions[-1] + 1) * size])
        assert place.needle.values[0] in found
