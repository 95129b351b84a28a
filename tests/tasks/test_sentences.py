from app.tasks.sentences import sentence_ends


def pieces(text: str) -> list[str]:
    ends = list(dict.fromkeys(sentence_ends(text)))
    return [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]


def test_sentences_end_where_prose_ends_them() -> None:
    assert pieces('He came. "Really?" she asked. I don\'t. So?') == [
        "He came.", '"Really?"', "she asked.", "I don't.", "So?",
    ]  # fmt: skip
    assert pieces("Mr. J. Arden met Dr. Lind, e.g. twice. No. 5 fell") == [
        "Mr. J. Arden met Dr. Lind, e.g. twice.", "No. 5 fell",
    ]  # fmt: skip
    assert pieces("彼は来た。彼女も。") == ["彼は来た。", "彼女も。"]
    assert pieces("A title\n\nA line without a stop") == ["A title", "A line without a stop"]


def test_only_ends_of_a_range_are_told() -> None:
    assert list(sentence_ends("One. Two. Three.", 5, 9)) == [9]
