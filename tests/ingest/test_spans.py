import pytest

from app.errors import CancelledError, InputError
from app.ingest import spans
from app.ingest.text import split_parts
from app.records import Part, Span


@pytest.fixture
def book(data) -> list[Part]:
    return split_parts((data / "book.txt").read_text(encoding="utf-8")[:30_000].rpartition(" ")[0] + "\n")


def test_the_tokens_of_each_span_spell_its_part(book, tokenizer):
    (memory,) = spans.encode(book, tokenizer, 0)
    assert memory.token_ids[0] == 0
    assert memory.spans[0].token_start == 1 and memory.spans[-1].token_end == len(memory.token_ids)
    for part, span in zip(book, memory.spans, strict=True):
        assert span.part == part.index
        assert tokenizer.decode(memory.token_ids[span.token_start : span.token_end]) == part.text


def test_parts_that_do_not_end_a_line_get_one(tokenizer):
    parts = [Part(1, "i", "one page"), Part(2, "ii", ""), Part(3, "iii", "and another\n")]
    (memory,) = spans.encode(parts, tokenizer, None)
    assert tokenizer.decode(memory.token_ids) == "one page\nand another\n"
    assert memory.spans[1].token_start == memory.spans[1].token_end == memory.spans[2].token_start


def test_one_memory_per_group(tokenizer):
    parts = [Part(1, "a", "in one", group=1), Part(2, "b", "in none"), Part(3, "c", "one more", group=1)]
    first, second = spans.encode(parts, tokenizer, 0)
    assert [span.part for span in first.spans] == [2]
    assert [span.part for span in second.spans] == [1, 3]
    assert tokenizer.decode(second.token_ids[1:]) == "in one\none more\n"
    assert spans.encode([], tokenizer, 0) == []


def test_a_large_document_is_read_in_batches(tokenizer, monkeypatch):
    parts = [Part(i, str(i), f"page {i}") for i in range(1, 30)]
    whole = spans.encode(parts, tokenizer, 0)
    monkeypatch.setattr(spans, "_BATCH_CHARS", 20)
    assert spans.encode(parts, tokenizer, 0) == whole


@pytest.mark.parametrize(
    "text", ["word and number 12\n" * 900, "x" * 40_000, "猫" * 20_000, "a" + " " * 40_000 + "b\n", "\n" * 40_000]
)
def test_long_texts_are_cut_before_the_tokenizer_gets_them(text, tokenizer):
    pieces = list(spans._pieces(text, 16_384))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 16_384
    (memory,) = spans.encode([Part(1, "1", text), Part(2, "2", "end")], tokenizer, 0)
    assert tokenizer.decode(memory.token_ids[1:]) == spans._as_read(Part(1, "1", text)) + "end\n"
    assert [span.part for span in memory.spans] == [1, 2]
    assert spans.locate(Part(1, "1", text), memory.spans[0], tokenizer, 0, 10**9) == (0, len(text))


def test_words_are_cut_as_if_they_were_not(tokenizer):
    text = "  if word and number == 12:\n        return 'a b'\n" * 900
    (memory,) = spans.encode([Part(1, "1", text)], tokenizer, None)
    assert memory.token_ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_parts_that_an_older_release_did_not_cut_are_located(tokenizer):
    part = Part(1, "1", "x" * 40_000)
    uncut = tokenizer.encode(part.text + "\n", add_special_tokens=False).ids
    assert spans.locate(part, Span(1, 0, len(uncut)), tokenizer, 0, 10**9) == (0, 40_000)


def test_cancel_and_progress_are_seen_between_batches(tokenizer, monkeypatch):
    monkeypatch.setattr(spans, "_BATCH_CHARS", 100)
    parts, seen = [Part(1, "1", "word " * 100), Part(2, "2", "more " * 100)], []
    spans.encode(parts, tokenizer, 0, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (1000, 1000) and len(seen) > 1
    asked = iter([False, True])
    with pytest.raises(CancelledError):
        spans.encode(parts, tokenizer, 0, cancelled=lambda: next(asked))


class Panic(BaseException):
    """As a native library raises it: no Exception."""


@pytest.mark.parametrize("error", [Panic("not our fault"), ValueError("not our fault"), MemoryError("not our fault")])
def test_a_tokenizer_that_fails_is_a_message(error):
    class Broken:
        encode_special_tokens = True

        def encode_batch_fast(self, texts, add_special_tokens):
            raise error

    with pytest.raises(InputError, match="page 1 to page 2") as told:
        spans.encode([Part(1, "page 1", "x"), Part(2, "page 2", "y")], Broken(), None)
    assert "not our fault" in str(told.value) or isinstance(error, MemoryError)


def test_markers_in_a_document_stay_text(tokenizer):
    (memory,) = spans.encode([Part(1, "1", "say <|bos|> now")], tokenizer, 0)
    assert memory.token_ids.count(0) == 1
    assert tokenizer.decode(memory.token_ids[1:]) == "say <|bos|> now\n"


def test_a_tokenizer_that_reads_markers_is_refused(tokenizer):
    tokenizer.encode_special_tokens = False
    try:
        with pytest.raises(AssertionError, match="must stay text"):
            spans.encode([Part(1, "1", "x")], tokenizer, 0)
    finally:
        tokenizer.encode_special_tokens = True


def test_locate_gives_the_characters_of_tokens(book, tokenizer):
    (memory,) = spans.encode(book, tokenizer, 0)
    part, span = book[3], memory.spans[3]
    start, end = span.token_start + 10, span.token_start + 30
    char_start, char_end = spans.locate(part, span, tokenizer, start, end)
    said = tokenizer.decode(memory.token_ids[start:end])
    assert part.text[char_start:char_end].strip() == said.strip()
    assert spans.locate(part, span, tokenizer, 0, 10**9) == (0, len(part.text))
    assert spans.locate(part, span, tokenizer, 0, span.token_start) == (0, 0)


def test_locate_with_letters_of_many_bytes(tokenizer):
    part = Part(1, "1", "猫が好き。犬も好き。")
    (memory,) = spans.encode([part], tokenizer, None)
    seen = ""
    for token in range(len(memory.token_ids)):
        char_start, char_end = spans.locate(part, memory.spans[0], tokenizer, token, token + 1)
        seen += part.text[len(seen) : char_end]
        assert char_end - char_start <= 1 or token == len(memory.token_ids) - 1
    assert seen == part.text


def test_parts_in():
    table = [Span(1, 1, 10), Span(2, 10, 10), Span(3, 10, 20), Span(4, 20, 30)]
    assert [span.part for span in spans.parts_in(table, 0, 1)] == []
    assert [span.part for span in spans.parts_in(table, 9, 11)] == [1, 3]
    assert [span.part for span in spans.parts_in(table, 10, 20)] == [3]
    assert [span.part for span in spans.parts_in(table, 0, 99)] == [1, 3, 4]
    assert spans.parts_in([], 0, 5) == []


def test_labels_of_plain_texts_are_chapter_and_lines():
    text = "The sea.\n\nCHAPTER II. The Bell\n\nIt rang."
    assert spans.label(Part(9, "9", text), 0, 4, 1204) == "line 1,204"
    assert spans.label(Part(9, "9", text, "CHAPTER I. Dawn"), 4, 8, 1204) == "CHAPTER I. Dawn, line 1,204"
    for chapter in (None, "CHAPTER I. Dawn"):  # the heading inside the part is nearer than the part's own
        part = Part(9, "9", text, chapter)
        assert spans.label(part, text.index("It"), len(text), 1) == "CHAPTER II. The Bell, line 5"
        assert spans.label(part, text.index("CHAPTER"), len(text), 1) == "CHAPTER II. The Bell, lines 3-5"
    notes = Part(2, "2", "Before.\n\n# Use\n\nAfter.", "Install")
    assert spans.label(notes, 0, 3, 10) == "Install, line 10" and spans.label(notes, 16, 20, 10) == "Use, line 14"
    assert spans.label(Part(1, "1", "# a comment\n\nx"), 13, 14, 1) == "line 3"
    long = spans.label(Part(1, "1", "x", "Of the night in which " * 9), 0, 1, 2)
    assert len(long) < 60 and long.endswith(" …, line 2")


def test_labels_of_pages_and_lines():
    assert spans.label(Part(1, "xiv", "text"), 0, 4) == "xiv"
    text = "src/a.py (Python)\nimport os\n\ndef f():\n    return 1\n"
    part = Part(1, "src/a.py", text, first_line=0)
    assert spans.label(part, text.index("def"), text.index("return") + 3) == "src/a.py:3-4"
    assert spans.label(part, text.index("import"), text.index("\n\n") + 2) == "src/a.py:1-1"
    assert spans.label(part, text.index("os") + 2, text.index("def") + 1) == "src/a.py:3-3"
    assert spans.label(part, 0, 5) == "src/a.py:1-1"
    assert spans.label(part, 0, len(text)) == "src/a.py:1-4"


def test_characters_of_a_part_are_found_among_its_tokens(tokenizer):
    part = Part(1, "1", "one two three four")
    (memory,) = spans.encode([part], tokenizer, 0)
    offsets = spans.offsets_of(part, tokenizer)
    start, end = spans.tokens_of(memory.spans[0], offsets, 4, 13)
    char_start, char_end = spans.locate(part, memory.spans[0], tokenizer, start, end)
    assert part.text[char_start:char_end].strip() == "two three" and start > 1


def test_a_passage_over_several_places_is_called_from_the_first_to_the_last():
    places = ((0, "Ebb, paragraph 8"), (10, "Ebb, paragraph 9"), (20, "Flood"), (30, "1:00"), (40, "1:01:00"))
    part = Part(1, "1", "x" * 50, places=places)
    asked = [(0, 10), (5, 11), (12, 25), (30, 45)]
    assert [spans.label(part, start, end) for start, end in asked] == [
        "Ebb, paragraph 8", "Ebb, paragraph 8-9", "Ebb, paragraph 9 to Flood", "1:00-1:01:00",
    ]  # fmt: skip


def test_a_passage_that_begins_with_a_heading_is_named_by_its_paragraphs() -> None:
    places = ((0, "Tides"), (6, "Tides, paragraph 1"), (12, "Tides, paragraph 2"), (18, "Winds"))
    part = Part(1, "Tides", "Tides\nfirst\nsecnd\nWinds", places=places)
    assert spans.label(part, 0, 5) == "Tides"
    assert spans.label(part, 0, 11) == "Tides, paragraph 1"
    assert spans.label(part, 0, 17) == spans.label(part, 6, 17) == "Tides, paragraph 1-2"
    assert spans.label(part, 0, 22) == "Tides to Winds"
