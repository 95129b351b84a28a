"""What readings are drawn from and how they are laid out: as the app asks, the same for a step, nothing held back."""

import random
from dataclasses import replace

import pytest
import torch

from app.errors import ConfigError
from app.models.turns import Turns
from app.train.pretrain.corpus import NO_ANSWER, Passage, Question
from app.train.reading_layout import LONG_ANSWER, ChatPieces
from app.train.readings.material import agreed, material, windows
from app.train.readings.mixture import KINDS, Limits, Mixture
from app.train.readings.rows import rows_of
from app.train.tune.recipe import ReadingsConfig, TuningRecipe, TuneConfig

PROSE = "The harbour of Varn lay quiet that night, and no boat went out before the bell had rung twice.\n" * 60
SHARES = {"passage": 2.0, "needles": 1.0, "records": 1.0}


@pytest.fixture(scope="module")
def chat(tokenizer) -> ChatPieces:
    return ChatPieces(Turns(tokenizer, "Answer from the text."))


@pytest.fixture(scope="module")
def found(data):
    """The small data folder, with prose, pages and an article enough for every kind."""
    read = material(data)
    story = next(iter(read.passages["fairytaleqa_train"]))
    article = [replace(p, title="An article") for p in (*read.passages["squad_dev_part_a"], *article_of(6))]
    passages = {**read.passages, "squad_dev_part_a": article}
    return replace(read, passages=passages, prose=[PROSE], stories=[story], talks=[read.talks[0]] * 12)


def article_of(pieces: int) -> list[Passage]:
    asked = [Question(f"Which mark has the mill of piece {i}?", f"mark{i:03d}") for i in range(pieces)]
    texts = [f"The mill of piece {i} has the mark mark{i:03d} on its door." for i in range(pieces)]
    return [Passage(text, (question,), "squad_dev_part_a") for text, question in zip(texts, asked, strict=True)]


@pytest.fixture(scope="module")
def mixture(found, chat) -> Mixture:
    return Mixture(found, chat, 3, Limits(context=400))


def test_start_trunk_and_branch_are_what_the_app_runs(chat):
    turns = [("Who keeps a cat?", "Ada"), ("What colour is it?", "grey")]
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    whole, owners = chat.turns.chat(messages)
    piece = chat.branch(turns)
    ids = [*chat.trunk, *piece.ids]
    assert ids == whole[: len(ids)] and whole[len(ids) - 1] == chat.turns.end_id
    learnt = [id for id, weight in zip(piece.ids, piece.weights, strict=True) if weight]
    assert learnt == [id for id, owner in zip(whole, owners, strict=True) if owner in (1, 3)]
    assert chat.trunk, "the system turn is run once for all questions"
    assert [*chat.trunk, *chat.asked("Who?")] == chat.turns.question([{"role": "user", "content": "Who?"}])


def test_a_long_answer_counts_as_a_short_one(chat):
    short, long = chat.branch([("Why?", "ice")]), chat.branch([("Why?", "ice and snow " * 40)])
    assert max(short.weights) == 1 and sum(long.weights) == pytest.approx(LONG_ANSWER)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_readings_whose_answers_are_learnt(mixture, kind):
    drawn = [mixture.draw(random.Random(seed), kind) for seed in range(12)]
    readings = [reading for reading in drawn if reading is not None]
    if kind in ("page", "code") and not readings:
        pytest.skip("the small data folder has nothing that such questions are made of")
    for reading in readings:
        assert reading.parts[0][:1] == mixture.chat.start and reading.branches
        assert all(sum(branch.weights) > 0 for branch in reading.branches)


def test_rows_are_the_same_for_a_step_and_others_for_another(mixture):
    first, again, other = (mixture.row(step, 500, SHARES) for step in (5, 5, 6))
    assert first == again != other
    assert 300 < sum(reading.tokens for reading in first) <= 500 or len(first) == 1


def test_a_name_that_was_said_becomes_a_pronoun():
    text = "Ada Lowe went to sea. She took her cat with her, and she was glad."
    first = Question("Who is Ada Lowe?", "a sailor")
    asked = Mixture._said_before(first, Question("What did Ada Lowe take?", "her cat"), text)
    assert asked == "What did she take?"
    assert Mixture._said_before(first, Question("What is Ada Lowe's cat?", "grey"), text) == "What is her cat?"
    assert Mixture._said_before(first, Question("Where is Bo Hill?", "x"), text) == "Where is Bo Hill?"


def test_pieces_of_one_text_stand_beside_the_one_that_answers(found, chat):
    pieces = [replace(p, title="Mills") for p in article_of(9)]
    alone = Mixture(replace(found, passages={"squad_dev_part_a": pieces}), chat, limits=Limits(absent=0.5))
    refused = 0
    for seed in range(8):
        reading = alone.neighbours(random.Random(seed))
        shown = "".join(chat.decode(list(part)) for part in reading.parts)
        for branch in reading.branches:
            said = chat.decode(branch.ids)
            asked = [q for p in pieces for q in p.questions if q.question in said]
            refused += NO_ANSWER in said
            assert NO_ANSWER in said or all(q.answer in said and q.answer in shown for q in asked)
        assert shown.count("The mill of piece") > 1
    assert refused, "one of a piece that is not shown is refused"


def test_what_another_text_answers_is_refused(mixture):
    """Half the time it is a text of another set, as with this seed."""
    mine = mixture.m.passages["squad_dev_part_a"][0]
    other = Passage("Bo rows a red boat.", (Question("What does Bo row?", "a red boat"),), "other")
    alone = Mixture(replace(mixture.m, passages={"squad_dev_part_a": [mine], "other": [other]}), mixture.chat)
    ids = alone._absent(random.Random(2), [mine]).ids
    said = mixture.chat.decode(ids)
    assert "Bo row" in said and NO_ANSWER in said


def test_the_reference_that_agrees_with_the_others_is_learnt():
    answers = ("sea", "the cold sea", "the cold sea by night", "cold sea")
    assert agreed(Question("Where?", "sea", answers)).answer == "cold sea"
    assert agreed(Question("Where?", "sea", ("sea", "a boat"))).answer == "sea"


def test_a_long_article_is_cut_and_keeps_questions_where_their_answers_stand():
    text = "\n".join(f"Line {i} says that the mark is number{i:04d} and nothing else at all." for i in range(80))
    asked = tuple(Question(f"Which mark has line {i}?", f"number{i:04d}") for i in (3, 70))
    made = windows(Passage(text, asked, "covidqa_part_a"), random.Random(0))
    assert [q.answer for p in made for q in p.questions] == ["number0003", "number0070"]
    assert all(q.answer in p.text and len(p.text) < 1200 for p in made for q in p.questions)


def test_held_back_documents_are_in_no_reading(data, found):
    held_back = material(data, "valid")
    texts = {p.text for passages in held_back.passages.values() for p in passages}
    assert not texts & {p.text for passages in found.passages.values() for p in passages}


def recipe(**readings) -> TuningRecipe:
    tune = TuneConfig("base", tokens=300, steps=10, attention="full")
    return TuningRecipe(tune, readings=ReadingsConfig(**{"shares": SHARES, **readings}))


def test_a_run_draws_early_and_late_kinds(data, tokenizer):
    rows = rows_of(recipe(late_shares={"records": 1.0}, late_from=0.5), tokenizer, data, {})
    early, late = (
        {rows.sources[i] for step in steps for i in rows(step, 1)["sources"][0].tolist()}
        for steps in ((0, 1, 2, 3), (5, 6))
    )
    assert late <= {"other", "records"} and early - late
    row = rows(5, 1)
    assert row["input_ids"].shape == row["weights"].shape and row["weights"].sum() > 0
    assert torch.equal(row["input_ids"], rows(5, 1)["input_ids"])


@pytest.mark.parametrize(("changes", "told"), [({"shares": {"pasage": 1.0}}, "pasage"), ({"shares": {}}, "none")])
def test_kinds_that_are_not_known_are_told(data, tokenizer, changes, told):
    with pytest.raises(ConfigError, match=told):
        rows_of(recipe(**changes), tokenizer, data, {})
