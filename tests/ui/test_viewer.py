"""The page viewer: right words marked, long parts cut, foreign text harmless."""

import re
from dataclasses import replace
from html import unescape

import pytest

from app.api.replies import citation
from app.cli.evidence import by_ocr
from app.errors import NotFoundError
from app.ingest.page_image import Located
from app.records import Box, Evidence, Part, Removal
from app.ui import page_text, viewer
from app.ui.viewer import ASK, LIBRARY, Shown


def marked(html: str) -> str:
    found = re.findall(r"<mark[^>]*>(.*?)</mark>", html, re.DOTALL)
    return unescape("|".join(re.sub("<[^>]*>", "", words) for words in found))


def passage(part: Part, start: int, end: int) -> Evidence:
    return Evidence("e2-1", "d", "Book", part.label, part.index, start, end, part.text[start:end], 0.5, ((0, 0),))


def test_passage_is_marked() -> None:
    text = "Before <b>it</b>. The harbour & the sea. After."
    start = text.index("The harbour")
    html = page_text.text(Part(1, "1", text), start, start + len("The harbour & the sea."))
    assert marked(html) == "The harbour & the sea."
    assert "<b>" not in html


def test_code_is_numbered_and_marked_line_by_line() -> None:
    part = Part(1, "src/a.py", "src/a.py (Python)\ndef f(x):\n    return x < 2\n\n", first_line=0)
    start = part.text.index("f(x)")
    html = page_text.text(part, start, part.text.index(" < 2") + 4)
    assert marked(html) == "f(x):|    return x < 2"
    assert re.findall(r'lt-number">(\d*)<', html) == ["", "1", "2", "3", "4"]


def test_wrapped_lines_flow_and_short_lines_stay() -> None:
    prose = "It was a long and quiet road along the western cliffs\nof the island.\n\nRoses are red\nViolets are blue"
    html = page_text.text(Part(1, "1", prose), 0, 0)
    assert "cliffs of the island" in html
    assert "\n\nRoses are red\nViolets" in html


@pytest.mark.parametrize("start", [0, 60_000, 119_990])
def test_long_part_is_a_window_around_the_passage(start: int) -> None:
    text = "".join(f"{number:09d}\n" for number in range(12_000))
    html = page_text.text(Part(1, "1", text), start, start + 9)
    assert marked(html) == text[start : start + 9]
    assert len(html) < page_text.WINDOW_CHARS * 1.2
    assert ("begins earlier" in html) == (start > 0)
    assert ("goes on" in html) == (start < 119_990)


def test_window_of_a_code_part_keeps_its_line_numbers() -> None:
    text = "".join(f"line {number}\n" for number in range(1, 12_001))
    start = text.index("line 6000\n")
    html = page_text.text(Part(1, "a.c", text, first_line=1), start, start + 9)
    assert re.search(r'lt-number">6000</span><span><mark class="lt-mark">', html) and marked(html) == "line 6000"


def shown(part: Part, start: int = 0, end: int = 0, **facts) -> Shown:
    known = {"doing": LIBRARY, "key": "d", "document": "d", "title": "Book", "kind": "pdf", "parts": 3}
    return Shown(**(known | {"part": part, "start": start, "end": end} | facts))


def test_page_offers_the_neighbours_and_the_removal() -> None:
    parts = [Part(i, str(i), f"Text of page {i}.", chapter="Chapter <One>") for i in (1, 2, 3)]
    item = passage(parts[0], 0, 4)
    place = viewer.place_of(item, parts[0], "pdf")
    html = viewer.page(shown(parts[0], 0, 4, doing=ASK, key="e2-1", place=place), item)
    assert 'data-id="e2-1@0" disabled' in html and 'data-do="turn" data-id="e2-1@2">' in html
    assert 'data-do="without" data-id="e2-1"' in html
    assert "Chapter &lt;One&gt; · p. 1" in html and marked(html) == "Text"
    assert viewer.place_of(item, parts[2], "pdf") == "Chapter <One> · p. 3"
    turned = viewer.page(shown(parts[2], doing=ASK, key="e2-1"), item)
    assert marked(turned) == "" and 'data-id="e2-1@4" disabled' in turned and 'data-do="turn-go"' in turned


def test_a_chapter_is_named_once() -> None:
    parts = [Part(i, str(i), "Some text.", chapter="Chapter 5") for i in (1, 2)]
    found = replace(passage(parts[0], 0, 4), label="Chapter 5, line 9")
    assert viewer.place_of(found, parts[0], "text") == "Chapter 5, line 9"
    assert viewer.place_of(found, parts[1], "text") == "Chapter 5 · part 2"
    assert viewer.place_of(passage(parts[0], 0, 4), parts[0], "text") == "Chapter 5 · part 1"


def test_contents_name_the_chapters_and_where_one_is() -> None:
    html = viewer.page(shown(Part(2, "2", "x"), contents=[(1, "<One>"), (3, "Two")]))
    assert re.findall(r'@(\d)"( aria-current=true)?>(.+?)<', html)[:2] == [
        ("1", " aria-current=true", "&lt;One&gt;"), ("3", "", "Two")]  # fmt: skip
    assert "Contents" not in viewer.page(shown(Part(2, "2", "x"), contents=[(1, "One")]))


def test_turn_target_is_read_back() -> None:
    assert viewer.target("e12-3@45") == ("e12-3", 45, "")
    assert viewer.target("d@4|a@b | c") == ("d", 4, "a@b | c")
    for wrong in ("", "nobody", "e12-3@", "e12-3@x", "e12-3@-1", "e12-3@²", f"e12-3@{'9' * 10_000}"):
        with pytest.raises(NotFoundError):
            viewer.target(wrong)


def test_removal_marks_the_words_that_rest_on_the_passage() -> None:
    found = Removal("e2-1", ("Yes", " <b>"), (-0.1, -0.2), (-0.05, -1.7), -0.25, 5)
    html = viewer.removal(found)
    assert [float(share) for share in re.findall(r"--f:([0-9.]+)", html)] == [0.0, 0.5]
    assert (
        "falls by 1.45 nats; without another of this size it rises by 0.25 (median of 5)." in html
        and " &lt;b&gt;" in html
    )
    alone = viewer.removal(Removal("e2-1", ("Yes",), (-0.1,), (-4.1,)))
    assert "--f:1.00" in alone and "falls by 4.00 nats.<" in alone


def test_a_page_is_shown_with_boxes_and_its_text_beside() -> None:
    page = Located(600, 800, ((0.1, 0.3, 0.6, 0.35),))
    html = viewer.page(shown(Part(7, "7", "First\nlines"), 6, 11, page=page))
    assert 'src="/documents/d/pages/7.jpg"' in html and "aspect-ratio:600/800" in html and marked(html) == "lines"
    assert re.findall(r'lt-where" style="([^"]+)"', html) == ["left:10.00%;top:30.00%;width:50.00%;height:5.00%"]
    assert 'data-view="text"' in html
    lost = viewer.page(shown(Part(7, "7", "First"), 0, 5, page=Located(600, 800)))
    assert "could not be found on the page" in lost
    assert "data-view" not in viewer.page(shown(Part(7, "7", "First"), 0, 5)), "there is one view only"


def test_what_ocr_read_says_so() -> None:
    boxes = (Box(0, 5, 0.1, 0.2, 0.5, 0.25, 0.9), Box(6, 11, 0.1, 0.3, 0.6, 0.35, 0.8))
    part = Part(1, "1", "First\nlines", boxes=boxes)
    assert "read by OCR, mean confidence 80%" in viewer.page(shown(part, 6, 11))
    assert part.confidence(0, 11) == pytest.approx(0.85) and part.confidence(0, 0) is None
    passage = Evidence("e2-1", "d1", "Scan", "2", 2, 6, 11, "lines", 0.5, confidence=part.confidence(6, 11))
    assert citation(passage)["ocr_confidence"] == 0.8 and "mean confidence 80%" in by_ocr(passage)


@pytest.mark.parametrize(
    ("text", "passage", "sentences"),
    [
        ("One ends. The harbour was dark, as Mr. Grey saw. Two.", "dark, as", "The harbour was dark, as Mr. Grey saw."),
        ("One ends. Two begins here. Three.", "Two begins here.", "Two begins here."),
        ("A title\n\nwithout an end\n\nMore.", "an", "without an end"),
        ("“Is it?” he said. Then “no!” she said.", "no", "Then “no!”"),
        ("海は深い。港は暗い。船がある。", "暗", "港は暗い。"),
        ("word " * 400, "word word", "word word"),
    ],
)
def test_a_mark_begins_and_ends_at_sentences(text: str, passage: str, sentences: str) -> None:
    start = text.index(passage, 800 if text.startswith("word") else 0)
    first, last = page_text.whole_sentences(Part(1, "1", text), start, start + len(passage))
    assert text[first:last] == sentences


def test_a_mark_in_code_is_whole_lines() -> None:
    part = Part(1, "a.py", "def f(x):\n    return x\n", first_line=1)
    start = part.text.index("turn")
    assert part.text[slice(*page_text.whole_sentences(part, start, start + 2))] == "    return x"


def test_code_has_colours_and_the_mark_goes_through_them() -> None:
    part = Part(1, "src/a.py", 'src/a.py (Python)\nreturn "<b>"  # why\n', first_line=0)
    html = page_text.text(part, part.text.index("return"), part.text.index("  # why"))
    assert '<mark class="lt-mark"><span class="lt-token-keyword">return</span>' in html
    assert '<span class="lt-token-string">' in html and '<span class="lt-token-comment"># why</span>' in html
    assert "<b>" not in html


def test_markdown_is_formatted_and_marked() -> None:
    text = "# The *harbour*\n\n- one\n- two **bold** <b>\n\n```\ncode\n```\n"
    part = Part(1, "1", text)
    start = text.index("two")
    html = page_text.formatted(part, start, text.index(" <b>"), "text")
    assert "<h1>The <em>harbour</em></h1>" in html and marked(html) == "two |bold" and "<b>" not in html
    whole = page_text.formatted(part, 0, len(text), "text")
    assert marked(whole).startswith("The |harbour|one")
    assert page_text.formatted(Part(1, "1", "Prose. *Not* marked up."), 0, 5, "text") == ""
    file = Part(1, "docs/a.md", "docs/a.md (markdown)\n# Title\n", first_line=0)
    assert "<h1>Title</h1>" in page_text.formatted(file, 0, 0, "code")


def test_a_web_page_has_headings_lists_and_tables() -> None:
    text = "Big\n\nSome words.\n\n- one\n- two\n\nA | B\n1 | <2>"
    part = Part(1, "Big", text, places=((0, "Big"), (5, "Big, paragraph 1")))
    html = page_text.text(part, text.index("two"), len(text), "web")
    assert "<h4>Big</h4><p>Some words.</p>" in html and '<ul><li style="--d:0">- one</li>' in html
    assert '<td><mark class="lt-mark">&lt;2&gt;</mark></td>' in html and marked(html) == "two|A|B|1|<2>"


def test_the_passages_of_an_answer_follow_each_other() -> None:
    part = Part(1, "1", "Some text")
    html = viewer.page(shown(part), passage(part, 0, 4), siblings=["e2-0", "e2-1"])
    assert 'data-id="e2-0" aria-label="Previous passage"' in html and "Passage 2 of 2" in html
    assert 'disabled aria-label="Next passage"' in html
    assert "Passage 1 of" not in viewer.page(shown(part), passage(part, 0, 4), siblings=["e2-1"])
