"""The page viewer: right words marked, long parts cut, foreign text harmless."""

import re
from dataclasses import replace
from html import unescape

import pytest

from app.errors import NotFoundError
from app.records import Box, Evidence, Part, Removal
from app.ui import viewer


def marked(html: str) -> str:
    return unescape("|".join(re.findall(r'<mark class="lt-mark">(.*?)</mark>', html, re.DOTALL)))


def passage(part: Part, start: int, end: int) -> Evidence:
    return Evidence("e2-1", "d", "Book", part.label, part.index, start, end, part.text[start:end], 0.5)


def test_passage_is_marked() -> None:
    text = "Before <b>it</b>. The harbour & the sea. After."
    start = text.index("The harbour")
    html = viewer.text(Part(1, "1", text), start, start + len("The harbour & the sea."))
    assert marked(html) == "The harbour & the sea."
    assert "<b>" not in html


def test_code_is_numbered_and_marked_line_by_line() -> None:
    part = Part(1, "src/a.py", "src/a.py (Python)\ndef f(x):\n    return x < 2\n\n", first_line=0)
    start = part.text.index("f(x)")
    html = viewer.text(part, start, part.text.index(" < 2") + 4)
    assert marked(html) == "f(x):|    return x < 2"
    assert re.findall(r'lt-number">(\d*)<', html) == ["", "1", "2", "3", "4"]


def test_wrapped_lines_flow_and_short_lines_stay() -> None:
    prose = "It was a long and quiet road along the western cliffs\nof the island.\n\nRoses are red\nViolets are blue"
    html = viewer.text(Part(1, "1", prose), 0, 0)
    assert "cliffs of the island" in html
    assert "\n\nRoses are red\nViolets" in html


@pytest.mark.parametrize("start", [0, 60_000, 119_990])
def test_long_part_is_a_window_around_the_passage(start: int) -> None:
    text = "".join(f"{number:09d}\n" for number in range(12_000))
    html = viewer.text(Part(1, "1", text), start, start + 9)
    assert marked(html) == text[start : start + 9]
    assert len(html) < viewer.WINDOW_CHARS * 1.2
    assert ("begins earlier" in html) == (start > 0)
    assert ("goes on" in html) == (start < 119_990)


def test_window_of_a_code_part_keeps_its_line_numbers() -> None:
    text = "".join(f"line {number}\n" for number in range(1, 12_001))
    start = text.index("line 6000\n")
    html = viewer.text(Part(1, "a.c", text, first_line=1), start, start + 9)
    assert re.search(r'lt-number">6000</span><span><mark class="lt-mark">line 6000</mark>', html)


def test_page_offers_the_neighbours_and_the_removal() -> None:
    parts = [Part(i, str(i), f"Text of page {i}.", chapter="Chapter <One>") for i in (1, 2, 3)]
    html = viewer.page(passage(parts[0], 0, 4), parts[0], 3, "pdf")
    assert 'data-id="e2-1@0" disabled' in html and 'data-id="e2-1@2">' in html
    assert 'data-do="without" data-id="e2-1"' in html
    assert "Chapter &lt;One&gt; · p. 1" in html and marked(html) == "Text"
    turned = viewer.page(passage(parts[0], 0, 4), parts[2], 3, "pdf")
    assert "p. 3" in turned and marked(turned) == "" and 'data-id="e2-1@4" disabled' in turned


def test_a_chapter_is_named_once() -> None:
    parts = [Part(i, str(i), "Some text.", chapter="Chapter 5") for i in (1, 2)]
    found = replace(passage(parts[0], 0, 4), label="Chapter 5, line 9")
    assert "<p>Chapter 5, line 9</p>" in viewer.page(found, parts[0], 2, "text")
    assert "<p>Chapter 5 · part 2</p>" in viewer.page(found, parts[1], 2, "text")
    older = passage(parts[0], 0, 4)
    assert "<p>Chapter 5 · part 1</p>" in viewer.page(older, parts[0], 2, "text")


def test_turn_target_is_read_back() -> None:
    assert viewer.target("e12-3@45") == ("e12-3", 45)
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


def test_a_scan_is_shown_with_boxes_where_the_passage_stands() -> None:
    boxes = (Box(0, 5, 0.1, 0.2, 0.5, 0.25, 0.9), Box(6, 11, 0.1, 0.3, 0.6, 0.35, 0.8))
    part = Part(1, "1", "First\nlines", boxes=boxes)
    html = viewer.picture(b"jpeg", part, 6, 11)
    assert 'src="data:image/jpeg;base64,anBlZw=="' in html and marked(html) == "lines"
    assert re.findall(r'lt-where" style="([^"]+)"', html) == ["left:10.00%;top:30.00%;width:50.00%;height:5.00%"]
    assert "<img" not in viewer.picture(None, part, 6, 11)


def test_the_passages_of_an_answer_follow_each_other() -> None:
    part = Part(1, "1", "Some text")
    html = viewer.page(passage(part, 0, 4), part, 1, "pdf", siblings=["e2-0", "e2-1"])
    assert 'data-id="e2-0" aria-label="Previous passage"' in html and "Passage 2 of 2" in html
    assert 'disabled aria-label="Next passage"' in html
    assert "Passage 1 of" not in viewer.page(passage(part, 0, 4), part, 1, "pdf", siblings=["e2-1"])
