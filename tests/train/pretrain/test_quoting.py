"""Answers as quotations: words of the text, from what the question names to the answer's end."""

import random

import pytest

from app.tasks.scoring import f1
from app.train.pretrain.corpus import NO_ANSWER, Passage, Question
from app.train.pretrain.quoting import LONGEST, asked_words, inverse_cloze, quoted

TEXT = """\
Mr. Harker lived in Dunwich with his sister. In the spring the old king gave his youngest daughter a golden ring. \
The sister of the king had walked down to the cold sea, for she wanted to hear the waves.
The ring was lost in the sea; nobody found the golden ring again."""


def answers(*asked: tuple[str, str]) -> list[str]:
    made = quoted(Passage(TEXT, tuple(Question(q, a, (a, "another")) for q, a in asked)))
    return [question.answer for question in made.questions]


@pytest.mark.parametrize(
    ("question", "answer", "quotation"),
    [
        ("What did the king give to his daughter?", "a golden ring", "king gave his youngest daughter a golden ring"),
        ("Who gave a ring?", "the old king", "the old king"),  # nothing asked stands before it
        (
            "Where did the ring go?",
            "the sea",
            "ring was lost in the sea",
        ),  # of two seas the one asked about
        ("Where did the sister walk?", "down to the cold sea", "sister of the king had walked down to the cold sea"),
        ("Where does Harker live?", "DUNWICH", "Harker lived in Dunwich"),
    ],
)
def test_from_what_is_asked_to_the_end_of_the_answer(question, answer, quotation):
    assert answers((question, answer)) == [quotation]


def test_an_answer_in_other_words_is_the_sentence_that_shares_most():
    (answer,) = answers(("Why did the sister walk to the sea?", "She liked hearing waves."))
    assert answer.startswith("sister of the king had walked down") and len(answer.split()) == LONGEST


def test_yes_no_and_refusals_stay_and_what_no_sentence_answers_goes():
    asked = [("Was it lost?", "Yes"), ("Who is Tom?", NO_ANSWER), ("Who wrote it?", "Shakespeare")]
    assert answers(*asked) == ["Yes", NO_ANSWER]


def test_reference_answers_are_kept():
    (question,) = quoted(Passage(TEXT, (Question("Where did Harker live?", "Dunwich"),))).questions
    assert question.answers == ("Dunwich",) and f1(question.answer, "Dunwich") == pytest.approx(2 / 5)


def test_questions_made_from_a_text_quote_its_words():
    made = [q for seed in range(40) for q in inverse_cloze(TEXT, random.Random(seed))]
    flat = " ".join(TEXT.split())
    assert len(made) > 40
    for question in made:
        assert question.answer in flat
        assert len(asked_words(question.question)) >= 2
    assert len({q.question for q in made}) > 40
