"""The line of what is being read."""

import json
from dataclasses import replace

from app.api.reading import Queued, Waiting
from app.ui import reading

NOW, NEXT = Waiting("a1", "Long <Book>", 1000, 430, 12.0), Waiting("b2", "Notes", 100, None, 3.0)
QUEUED = Queued((NOW, NEXT), number=2, of=3, finished=1, tokens_per_s=50.0)


def test_the_line_tells_which_how_far_and_how_long() -> None:
    html = reading.strip(QUEUED)
    assert "Reading 2 of 3: <i>Long &lt;Book&gt;</i>" in html.replace("</span>", "").replace("<span>", "")
    assert "43%, 12 s left" in html and "15 s for all" in html
    assert 'data-do="reading-first" data-id="b2"' in html and 'data-do="reading-first" data-id="a1"' not in html
    assert 'data-do="reading-pause"' in html and 'data-do="reading-cancel" data-id="a1"' in html


def test_a_pause_and_what_has_the_model_are_told() -> None:
    paused = reading.strip(replace(QUEUED, paused=True, held="answering"))
    assert "Reading is paused:" in paused and 'data-do="reading-go"' in paused and "waits for" not in paused
    assert "waits for: answering" in reading.strip(replace(QUEUED, held="answering"))


def test_problems_are_told_and_can_be_closed() -> None:
    html = reading.strip(Queued(problems=(("c3", "Bad <one>", "the disk is full"),)))
    assert "<b>Bad &lt;one&gt;</b> could not be read: the disk is full" in html
    assert 'data-do="reading-cancel" data-id="c3"' in html
    assert reading.strip(Queued()) == ""


def test_numbers_change_without_drawing_anew() -> None:
    further = replace(QUEUED, documents=(replace(NOW, done=900, eta_s=2.0), NEXT))
    assert reading.mark(further) == reading.mark(QUEUED)
    told = json.loads(reading.live(further))
    assert told["a1"] == "90%, 2.0 s left" and told["bar"] == "90%" and told["now"] == "90%, 2.0 s left · 5.0 s for all"


def test_a_question_that_is_found_is_news_too() -> None:
    assert reading.mark(Queued(suggested=1)) != reading.mark(Queued())
