"""Which passage a sentence of an answer comes from."""

import pytest

from app.chat.citations import cite, sentences
from app.records import Evidence, Look


def passage(region: int, text: str) -> Evidence:
    return Evidence("", "d1", "Book", "1", 1, 0, len(text), text, 0.3, ((0, region),))


FIRST, SECOND = passage(4, "Orlov sailed for Malta in May."), passage(9, "The lantern was green and old.")


def looks(*pieces: tuple[str, int]) -> list[Look]:
    return [Look(text, (("d1", 0, region, 0.6), ("d1", 0, 77, 0.2))) for text, region in pieces]


def test_a_sentence_is_cited_where_its_tokens_looked() -> None:
    said = looks((" He", 4), (" left", 4), (".", 4), (" It", 9), (" shone", 9), (".", 9))
    assert cite("He left. It shone.", said, (FIRST, SECOND)) == ((8, 1), (18, 2))
    same = looks((" He", 4), (" left.", 4), (" It", 4), (" shone.", 4))
    assert cite("He left. It shone.", same, (FIRST,)) == ((18, 1),)
    assert cite("He left.\n\nIt shone.", looks((" He left.", 4), ("\n\nIt shone.", 4)), (FIRST,)) == ((8, 1), (19, 1))


def test_words_of_a_passage_cite_it_though_the_model_looked_elsewhere() -> None:
    said = looks((" A green", 50), (" lantern", 50), (".", 50))
    assert cite("A green lantern.", said, (FIRST, SECOND)) == ((16, 2),)
    assert cite("Something else.", looks((" Something", 50), (" else.", 50)), (FIRST, SECOND)) == ()


@pytest.mark.parametrize("answer", ["The text does not say.", ""])
def test_a_refusal_cites_nothing(answer: str) -> None:
    assert cite(answer, looks((answer, 4)), (FIRST,)) == ()
    assert cite("He left.", looks((" He", 4)), ()) == ()


def test_sentences_end_where_a_reader_says_so() -> None:
    text = 'Mr. Orlov paid 3.50 to J. Smith. "Why?" he asked.\n- one\n- two'
    assert [text[start:end].strip() for start, end, _ in sentences(text)] == [
        "Mr. Orlov paid 3.50 to J. Smith.", '"Why?"', "he asked.", "- one", "- two",
    ]  # fmt: skip
    code = "So:\n```py\nx = 1\ny = 2\n```\nDone."
    assert [code[start:end].strip() for start, end, _ in sentences(code)] == ["So:", "Done."]
