import pytest

from app.ingest.clean import clean_line, clean_pages, normalise


def cleaned(text: str) -> str:
    return clean_pages([text])[0][0]


@pytest.mark.parametrize("at_line_end", ["\ufffe", "-\r\n", "- \n", "\u00ad\n", "‐\n"])
def test_a_word_broken_at_a_line_end_is_joined(at_line_end):
    assert cleaned(f"it is in{at_line_end}different to us") == "it is indifferent to us"


def test_a_hyphen_stays_where_the_document_writes_the_word_with_one():
    assert cleaned("a non-normal list\nthe non\ufffenormal one") == "a non-normal list\nthe non-normal one"


def test_a_hyphen_goes_where_the_document_writes_the_word_without_one():
    assert cleaned("of feed and forward the feedforward net, feed\ufffeforward").endswith("feedforward")


def test_a_hyphen_stays_between_two_words_that_are_never_written_as_one():
    assert cleaned("a bird of human make, readable. It is human\ufffereadable.").endswith("human-readable.")


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("Jean-\nPaul", "Jean-Paul"),
        ("the 747-\n8 flies", "the 747-8 flies"),
        ("PROPO-\nSALS", "PROPOSALS"),
        ("stretching indefi\ufffeO", "stretching indefi-\nO"),
        ("ends with a dash -\nand goes on", "ends with a dash -\nand goes on"),
    ],
)
def test_other_line_ends_with_hyphens(broken, mended):
    assert cleaned(broken) == mended


def test_halves_of_broken_words_are_not_taken_for_words():
    assert cleaned("dis\ufffeabled\ndis\ufffeplaced\nun\ufffeabled") == "disabled\ndisplaced\nunabled"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ﬁrst oﬀer", "first offer"),
        ("Ｆｕｌｌ１２", "Full12"),
        ("\u00a0a\u2003b", " a b"),
        ("\ufe8e\ufedf\ufe8c\ufeae", "\u0627\u0644\u0626\u0631"),
        ("\ufb2a\ufb4b", "\u05e9\u05c1\u05d5\u05b9"),
        ("𝐀𝑥", "Ax"),
    ],
)
def test_forms_of_letters_become_plain(raw, clean):
    assert normalise(raw) == clean


@pytest.mark.parametrize("kept", ["10²", "2½ cups", "H₂O", "ㄱㄴ", "é", "a¨"])
def test_forms_that_change_a_value_stay(kept):
    assert normalise(kept) == kept


def test_invisible_characters_go():
    assert cleaned("a\x00b\x07c\u200bd\u202ee\u00adf\ud800g\uffffh\tj") == "abcdefgh\tj"
    assert clean_line(" Chapter\n\t1\x00 ") == "Chapter 1"


def test_line_ends_and_blanks_are_tidied():
    assert cleaned("\r\na  b   c  \r\n\r\n\r\n\r\nd\r\n") == "a b c\n\nd"


def test_word_bullets_become_bullets():
    assert cleaned("\uf0b7 one\n\uf0b7") == "• one\n•"


def test_brackets_are_turned_in_right_to_left_lines_only():
    assert cleaned("סעיף 15)ב()4( לחוק") == "סעיף 15(ב)(4) לחוק"
    assert cleaned("סעיף (ב) לחוק") == "סעיף (ב) לחוק"
    assert cleaned("a smile :) and )b(") == "a smile :) and )b("


def test_lines_without_unicode_values_are_left_out_and_reported():
    pages, noisy = clean_pages(["good line\n\x04\x05\x06a\x07\x0eb\x0f", "all good", "/g12/g7/g144/g3 x\nfine"])
    assert pages == ["good line", "all good", "fine"]
    assert noisy == [0, 2]


def test_a_very_long_word_is_no_trap():
    text = "a" * 100_000 + "\ufffeb " + "-" * 100_000
    assert len(cleaned(text)) > 150_000
