"""Forms of facts and questions: training and evaluation share them, so that a change would be seen."""

import random
import re
from collections import Counter

import pytest

from app.tasks import needles
from app.tasks.needles import NAMES


def test_one_question_for_several_keys() -> None:
    first, second = needles.queries(random.Random(1), 2, 3)
    found = re.fullmatch(r"What are the values of (\w+), (\w+) and (\w+)\?", first.question)
    facts = [f"The value of {key} is {value}." for key, value in zip(found.groups(), first.values, strict=True)]
    assert first.sentences == tuple(facts) and first.answer == " ".join(facts)
    assert not {*first.values} & {*second.values} and len({*first.sentences, *second.sentences}) == 6
    (two,) = needles.queries(random.Random(1), 1, 2, "digits")
    assert re.fullmatch(r"What are the values of \d{5} and \d{5}\?", two.question)
    with pytest.raises(ValueError, match="at least 2"):
        needles.queries(random.Random(1), 1, 1)


def test_passkeys_are_named_when_there_are_several() -> None:
    (alone,) = needles.passes(random.Random(1), 1)
    assert alone.question == "What is the pass key?" and alone.sentences[0].count(alone.values[0]) == 2
    several = needles.passes(random.Random(1), 2, NAMES[:2])
    assert {needle.question for needle in several} == {f"What is the pass key for {name}?" for name in NAMES[:2]}


def counted(needle: needles.Needle) -> Counter:
    """Words of a list; every line names the list that it belongs to."""
    name = re.search(r"in list (\w+)\?", needle.question)[1]
    lines = [re.fullmatch(rf"List {name}: ((?:\w+, )*\w+)\.", line)[1] for line in needle.sentences]
    assert all(len(line.split()) == needles.WORDS_A_LINE for line in lines[:-1])
    return Counter(word for line in lines for word in line.split(", "))


def test_common_words_stand_more_often_than_the_others() -> None:
    for needle in needles.common_words(random.Random(1), 3, often=4, times=6, others=20, other_times=2):
        words = counted(needle)
        assert {word for word, n in words.items() if n == 6} == {*needle.values} and len(needle.values) == 4
        assert Counter(words.values()) == {6: 4, 2: 20}
        assert needle.answer.endswith(f"are {', '.join(needle.values)}.") and "Which 4 words" in needle.question
    with pytest.raises(ValueError, match="must be less"):
        needles.common_words(random.Random(1), 1, often=4, times=2, others=20, other_times=2)


def test_frequent_words_fall_off_by_the_square_of_their_rank() -> None:
    first, second = needles.frequent_words(random.Random(1), 2, words=120, asked=3)
    counts = counted(first).most_common()
    assert [n for _, n in counts][:5] == [73, 18, 8, 5, 3] and tuple(word for word, _ in counts[:3]) == first.values
    assert 110 <= sum(n for _, n in counts) <= 125 and not {*first.values} & {*second.values}
    with pytest.raises(ValueError, match="take more words"):
        needles.frequent_words(random.Random(1), 1, words=10, asked=3)
