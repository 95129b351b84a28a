"""Parts, chapters and places out of blocks."""

from app.ingest import spans
from app.ingest.blocks import Block, to_parts
from app.ingest.text import LONGEST_PART_CHARS
from app.records import Part


def made(*blocks: Block) -> list[Part]:
    return list(to_parts(blocks))


def place(part: Part, word: str) -> str:
    start = part.text.index(word)
    return spans.label(part, start, start + len(word))


def test_chapter_and_paragraph_are_counted():
    (part,) = made(
        Block("front"), Block("One", chapter="One", counted=False), Block("alpha"), Block("beta"),
        Block("Two", chapter="Two", counted=False), Block("gamma"),
    )  # fmt: skip
    assert part.text == "front\n\nOne\n\nalpha\n\nbeta\n\nTwo\n\ngamma"
    assert [place(part, word) for word in ("front", "One", "alpha", "beta", "Two", "gamma")] == [
        "paragraph 1", "One", "One, paragraph 1", "One, paragraph 2", "Two", "Two, paragraph 1",
    ]  # fmt: skip
    assert (part.label, part.chapter) == ("paragraph 1", None)


def test_a_printed_page_begins_a_part_and_keeps_the_word_on_it_whole():
    parts = made(
        Block("before"), Block("the happy end", pages=((6, "12"),)), Block("more", pages=((4, "13"),)), Block("x")
    )
    assert [(part.label, part.text) for part in parts] == [
        ("paragraph 1", "before\n\nthe happy"), ("page 12", "end\n\nmore"), ("page 13", "x"),
    ]  # fmt: skip


def test_parts_hold_about_a_page_and_lose_nothing():
    words = [f"w{i}" for i in range(6000)]
    parts = made(Block(" ".join(words[:5000])), *(Block(word) for word in words[5000:]))
    assert " ".join(part.text for part in parts).split() == words
    assert max(len(part.text) for part in parts) <= LONGEST_PART_CHARS
    assert [part.index for part in parts] == list(range(1, len(parts) + 1))


def test_what_opens_begins_a_part_and_an_empty_block_hands_it_on():
    parts = made(Block("a"), Block("", chapter="C", opens=True), Block("b", place="slide 2"), Block("c", kind="notes"))
    assert [(part.label, part.text, part.chapter, part.kind) for part in parts] == [
        ("paragraph 1", "a", None, ""), ("slide 2", "b", "C", ""), ("C, paragraph 2", "c", "C", "notes"),
    ]  # fmt: skip


def test_lines_stay_and_invisible_characters_go():
    (part,) = made(Block("\n  if x:\n\treturn\u00ad\u200b y\n"), Block("next", joined=True))
    assert part.text == "  if x:\n\treturn y\nnext"
