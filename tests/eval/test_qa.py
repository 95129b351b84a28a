import json
import lzma
from pathlib import Path

import pytest

from app.errors import ConfigError, InputError
from app.eval import qa, texts
from app.eval.qa import Answered, QaConfig, Question
from app.tasks.scoring import REFUSALS, holds, is_refusal, only_refuses
from tests import tiny
from tests.eval.fake_engine import FakeEngine


def entries(count: int) -> list[dict]:
    return [
        {
            "id": f"d{i}",
            "title": f"t{i % 3}",
            "text": f"In the year {1000 + i} the town of Place{i} was built.",
            "qas": [
                {
                    "id": f"q{i}",
                    "question": f"When was Place{i} built?",
                    "answers": [{"text": str(1000 + i), "answer_start": 12}],
                },
                {"id": f"u{i}", "question": f"Who built Place{i}?", "answers": [], "answerable": False},
            ],
        }
        for i in range(count)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(map(json.dumps, entries(12))) + "\n", encoding="utf-8")
    return path


def reply(text: str, question: str) -> str:
    """Knows every year that stands in the text."""
    place = question.split()[-2]
    if question.startswith("Who") or place not in text:
        return "The text does not say."
    return "It was in " + text[: text.index(f" the town of {place} ")].split()[-1] + "."


def question(*answers: str) -> Question:
    return Question("q", "", "text", "?", answers)


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("The Amazon!", "amazon", 1.0),
        ("in 1066", "1066", 2 / 3),
        ("red red blue", "red", 0.5),
        ("", "x", 0.0),
        ("cat", "dog", 0.0),
    ],
)
def test_f1(answer: str, gold: str, score: float) -> None:
    assert qa.f1(answer, gold) == pytest.approx(score)


def test_exact_ignores_case_articles_and_punctuation() -> None:
    assert qa.exact("the  Old-Town.", "an oldtown") == 1
    assert qa.exact("old town", "oldtown") == 0


def test_a_quotation_holds_the_answer_word_for_word() -> None:
    assert holds("The king gave a golden ring.", "the golden Ring") == 1
    assert holds("golden, then a ring", "golden ring") == 0
    assert holds("ring", "") == 0
    found = Answered(question("1066", "in 1067"), "it fell in 1067", 9)
    assert found.holds == 1 and found.exact == 0
    assert qa.summary([found, Answered(question("red"), "a red one", 9, 1, 1)])["holds"] == 100


def test_best_gold_counts_and_a_refusal_scores_nothing() -> None:
    assert Answered(question("1066", "in 1066"), "in 1066", 9).f1 == 1
    refusal = Answered(question("say"), "The text does not say.", 9)
    assert refusal.refused and refusal.f1 == 0 and refusal.exact == 0


def test_refusals() -> None:
    assert is_refusal("I don\u2019t  know that.")
    assert is_refusal("Unanswerable")
    assert not is_refusal("")
    assert not is_refusal("She did not answer the door.")


def test_summary_scores_only_answerable_questions() -> None:
    says = "The text does not say."
    answered = [
        Answered(question("red"), "red", 9),
        Answered(question("blue"), "green", 9),
        Answered(question("gold"), says, 9),
        Answered(question(), says, 9),
        Answered(question(), says, 9),
        Answered(question(), "red", 9),
    ]
    values = qa.summary(answered)
    assert values["f1"] == values["exact"] == 33.33
    assert values["refusal_f1"] == 66.67  # precision 2/3, recall 2/3
    assert (values["n"], values["answerable"], values["unanswerable"], values["refused"]) == (6, 3, 3, 3)


def test_what_refusing_costs() -> None:
    says = "The text does not say."
    answered = [Answered(question("red"), answer, 9) for answer in ("red", "red", "blue", says)]
    assert qa.summary(answered)["f1"] == 50 and qa.summary(answered)["refusal_cost"] == 16.67  # of 66.67
    assert qa.summary([Answered(question("red"), says, 9)])["refusal_cost"] is None
    assert qa.summary(answered[:3])["refusal_cost"] == 0


def test_second_questions_and_evidence_are_told_apart() -> None:
    ranks = [1, 3, 4, None, 0]  # the last has no place in its passage
    answered = [Answered(question("red"), "red", 9, 1, rank) for rank in ranks]
    answered += [Answered(question("red"), "blue", 9, 1, 1), Answered(question("red"), "blue", 9, 2, 1)]
    values = qa.summary(answered)
    assert (values["evidence"]["right"], values["evidence"]["top_3"]) == (4, 2)
    assert values["n"] == 6 and values["second"]["n"] == 1 and values["second"]["f1"] == 0
    assert values["second"]["evidence"]["right"] == 0 and values["evidence"]["lower_bound_95"] == pytest.approx(0.0976)


def test_the_regions_of_an_answer_are_those_of_its_passage() -> None:
    engine = tiny.engine()
    passage = "The 12 towns fell.\nIn May the town of York fell on May 12 to the Danes."
    other = "On May 12 the king left for the sea, and the queen stayed behind in the old castle."
    asked = Question("q", "", passage, "When?", ("May 12", "12 may"))
    ids = texts.encode(engine, "\n".join([other, "A quiet line about the sea.", passage, other]) + "\n")
    memory, size = engine.read(ids), engine.shape.attention.region_tokens
    regions = qa.regions_of(engine, memory, asked)
    assert "May 12" in engine.decode(memory.token_ids[min(regions) * size : (max(regions) + 1) * size])
    assert len(regions) <= 2 and min(regions) > len(texts.encode(engine, other)) // size
    for answers in ((), ("June",), ("",), ("Ma",)):
        assert not qa.regions_of(engine, memory, Question("q", "", passage, "When?", answers))


def test_second_questions_follow_another_in_the_same_chat(file: Path, tmp_path: Path) -> None:
    hay = tmp_path / "hay.txt"
    hay.write_text("\n".join(f"Straw number {i} lay in the barn." for i in range(50)), encoding="utf-8")
    questions, _ = qa.load(file)
    engine = FakeEngine(reply)
    answered = list(qa.run(engine, questions, QaConfig(haystack=hay, tokens=2000, per_reading=4, second=3)))
    assert engine.chats == 24 and engine.turns.count(1) == 9
    assert qa.summary(answered)["second"]["n"] == 9 and qa.summary(answered)["n"] == 24
    assert {a.turn for a in answered} == {1, 2} and qa.summary(answered)["second"]["refusal_f1"] == 100


def test_refusal_f1_without_anything_to_refuse() -> None:
    assert qa.summary([Answered(question("red"), "red", 9)])["refusal_f1"] is None
    assert qa.summary([Answered(question("red"), "no answer", 9)])["refusal_f1"] == 0


def test_load_keeps_what_can_be_scored(tmp_path: Path) -> None:
    lines = [
        {
            "id": "a",
            "text": "x",
            "qas": [{"question": "1?", "answers": ["yes"]}, {"question": "2?", "answers": []}],
        },
        {"id": "b", "text": "y", "qas": [{"question": "3?", "answers": ["no"], "answerable": False}]},
    ]
    path = tmp_path / "qa.jsonl.xz"
    path.write_bytes(lzma.compress("\n".join(map(json.dumps, lines)).encode()))
    questions, skipped = qa.load(path)
    assert [(q.id, q.answers) for q in questions] == [("a-0", ("yes",)), ("b-0", ())]
    assert skipped == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no question"),
        ("not json", "cannot be read"),
        ('{"lines": []}', "line 1: need an object"),
        ('{"text": "x", "qas": [{"answers": ["x"]}]}', "question 1"),
        ('{"text": "x", "qas": ["why"]}', "question 1"),
    ],
)
def test_load_names_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        qa.load(path)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        qa.load(tmp_path / "nowhere.jsonl")


def test_draw_depends_on_seed_and_limit_only(file: Path) -> None:
    questions, _ = qa.load(file)
    assert qa.draw(questions, 5, 1) == qa.draw(questions, 5, 1) != qa.draw(questions, 5, 2)
    assert qa.draw(questions, None, 1) == questions


def test_passages_of_one_title_are_spread() -> None:
    passages = [(f"t{i % 2}", f"text{i}") for i in range(8)]
    readings = qa.together(passages, 4)
    assert sorted(len(reading) for reading in readings) == [4, 4]
    assert sorted(text for reading in readings for text in reading) == sorted(text for _, text in passages)
    assert all(sum(int(text[4:]) % 2 for text in reading) == 2 for reading in readings)


def test_each_passage_is_read_once_alone(file: Path) -> None:
    engine = FakeEngine(reply)
    questions, _ = qa.load(file)
    answered = list(qa.run(engine, questions, QaConfig()))
    assert len(engine.readings) == 12 and engine.chats == 24
    values = qa.summary(answered)
    assert values["refusal_f1"] == 100 and values["exact"] == 0
    assert values["f1"] == pytest.approx(40)  # "It was in 1000" against "1000"


def test_haystack_asks_the_same_questions_of_long_readings(file: Path, tmp_path: Path) -> None:
    hay = tmp_path / "hay.txt"
    hay.write_text("\n".join(f"Straw number {i} lay in the barn." for i in range(50)), encoding="utf-8")
    questions, _ = qa.load(file)
    chosen = qa.draw(questions, 10, 3)
    engine = FakeEngine(reply)
    config = QaConfig(limit=10, seed=3, haystack=hay, tokens=2000, per_reading=4)
    answered = list(qa.run(engine, chosen, config))
    assert sorted(a.question.id for a in answered) == sorted(q.id for q in chosen)
    assert len(engine.readings) == -(-len({q.text for q in chosen}) // 4)
    assert all(1960 <= len(text) + 1 <= 2000 for text in engine.readings)
    assert qa.summary(answered)["refusal_f1"] == 100  # every passage stood in the reading it was asked of


def test_haystack_too_short_for_its_passages(file: Path) -> None:
    questions, _ = qa.load(file)
    config = QaConfig(haystack=file, tokens=100, per_reading=10)
    with pytest.raises(ConfigError, match="no room"):
        list(qa.run(FakeEngine(reply), questions, config))


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"tokens": 5}, {"haystack": Path("x")}, {"per_reading": 0}, {"second": -1}]
)
def test_config_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        QaConfig(**wrong)


def test_an_answer_that_tells_something_does_more_than_refuse() -> None:
    assert only_refuses("The text doesn\u2019t say.") and not only_refuses("In Rye.")
    assert not only_refuses("The text does not say when. " + "She left the house before the others came back. " * 3)


def test_docs_list_the_refusals() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
    text = " ".join(docs.read_text(encoding="utf-8").lower().split())
    assert [phrase for phrase in REFUSALS if phrase not in text] == []
