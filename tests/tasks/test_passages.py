"""Questions are asked about the sections that they name."""

import pytest

from app.tasks.scoring import passage_of

ENTRY = {"text": "One.\nTwo.\nThree.", "sections": [{"n": 1, "text": "One."}, {"n": "2", "text": "Two."}]}


@pytest.mark.parametrize(
    ("sections", "text"),
    [("2", "Two."), (1, "One."), ("2, 1", "Two.\nOne."), ("", ENTRY["text"]), (None, ENTRY["text"])],
)
def test_named_sections(sections, text):
    assert passage_of(ENTRY, {"question": "?", "sections": sections}) == text


def test_without_sections_the_whole_text():
    assert passage_of({"text": "All."}, {"question": "?"}) == "All."


def test_a_section_that_is_not_there():
    with pytest.raises(KeyError):
        passage_of(ENTRY, {"sections": "3"})
