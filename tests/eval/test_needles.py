import random
import re
from collections import Counter
from pathlib import Path

import pytest

from app.errors import CancelledError, ConfigError
from app.eval import needles
from app.eval.needles import Asked, NeedlesConfig
from app.tasks import needles as forms
from tests import tiny
from tests.eval.fake_engine import FakeEngine


def oracle(text: str, question: str) -> str:
    """Answers every question form from the text."""
    if match := re.search(r"What is the pass key(?: for (\w+))?\?", question):
        return re.search(rf"The pass key{f' for {match[1]}' if match[1] else ''} is \d+\.", text)[0]
    if match := re.search(r"What is the value of (\S+)\?", question):
        return re.search(rf"The value of {match[1]} is \S+\.", text)[0]
    if match := re.search(r"What are the values of (.+) and (\w+)\?", question):
        return " ".join(re.search(rf"The value of {k} is \d+\.", text)[0] for k in [*match[1].split(", "), match[2]])
    if match := re.search(r"What are the numbers of (\S+)\?", question):
        return ", ".join(re.findall(rf"One of the numbers of {match[1]} is (\d+)\.", text)) + "."
    if match := re.search(r"Which (\d+) words stand most often in list (\w+)\?", question):
        words = ", ".join(re.findall(rf"List {match[2]}: (.*)\.", text)).split(", ")
        return "They are " + ", ".join(word for word, _ in Counter(words).most_common(int(match[1]))) + "."
    held = {re.search(r"Which variables hold (\d+)\?", question)[1]}
    for name, value in re.findall(r"Variable (\w+) is set to (?:variable )?(\w+)\.", text):
        held |= {name} if value in held else set()
    return "The variables are " + ", ".join(sorted(held)) + "."


def test_every_task_is_found_by_an_oracle_in_both_turns() -> None:
    engine = FakeEngine(oracle)
    config = NeedlesConfig(needles.TASKS, (16_000, 24_000), trials=7, per_reading=3, second=1, filler="repeat")
    seen = []
    asked = list(needles.run(engine, config, on_progress=lambda done, total: seen.append((done, total))))
    assert len(engine.readings) == 2 * 3 and seen[-1] == (3 * 40_000, 3 * 40_000)
    values = needles.summary(asked)
    assert values["score"] == values["accuracy"] == 1 and values["misses"] == []
    assert [(row["task"], row["tokens"], row["trials"]) for row in values["rows"]] == [
        (task, tokens, 7) for task in needles.TASKS for tokens in (16_000, 24_000)
    ]
    assert sum(row["second"]["trials"] for row in values["rows"] if row["second"]) == 9 * 3 * 2
    assert engine.turns.count(1) == 54 and all(15_900 < row["document_tokens"] <= 24_000 for row in values["rows"])


def test_an_engine_that_forgets_the_first_half_finds_half() -> None:
    def half(text: str, question: str) -> str:
        try:
            return oracle(text[len(text) // 2 :], question)
        except TypeError:
            return "It does not say."

    config = NeedlesConfig(("multi-key",), (8000,), trials=40, per_reading=10, second=0, filler="repeat")
    asked = list(needles.run(FakeEngine(half), config))
    assert needles.summary(asked)["accuracy"] == pytest.approx(0.5, abs=0.13)
    assert all((a.score == 1) == (a.depth > 0.5) for a in asked if abs(a.depth - 0.5) > 0.1)


def test_sentences_of_a_chain_keep_their_order_and_names_differ() -> None:
    planted = needles.plan(random.Random(3), ("tracking", "multi-key", "multi-value"), 3)
    names = [re.findall(r"[a-z]+", " ".join(p.needle.values + (p.needle.question,))) for p in planted]
    words = [{w for w in found if w in forms.NAMES} for found in names]
    assert all(not (a & b) for i, a in enumerate(words) for b in words[:i])
    assert all(list(p.depths) == sorted(p.depths) for p in planted)
    depths = sorted(depth for p in planted for depth in p.depths)
    assert [int(depth * len(depths)) for depth in depths] == list(range(len(depths)))


def test_second_questions_are_scored_apart() -> None:
    engine = FakeEngine(oracle)
    second = []
    engine.reply = lambda text, question: "No." if second else oracle(text, question)
    generate = engine.generate

    def flagged(cache, *args, **options):
        second[:] = [True] if cache.turns else []
        return generate(cache, *args, **options)

    engine.generate = flagged
    config = NeedlesConfig(("uuid",), (5000,), trials=6, per_reading=6, second=3, filler="repeat")
    (row,) = needles.summary(list(needles.run(engine, config)))["rows"]
    assert row["accuracy"] == 1 and row["trials"] == 6
    assert row["second"]["accuracy"] == 0 and row["second"]["trials"] == 3


def test_score_counts_parts_of_an_answer() -> None:
    asked = [Asked("multi-value", 9, 9, 1, 0.5, score, ("1", "2"), "") for score in (1.0, 0.5, 0.0)]
    values = needles.summary(asked)
    assert values["score"] == 0.5 and values["right"] == 1 and len(values["misses"]) == 2
    assert values["rows"][0]["second"] is None


def test_effective_length_ends_before_the_first_that_falls_short() -> None:
    scores = {("uuid", 8): 0.8, ("uuid", 16): 0.68, ("uuid", 32): 0.6, ("uuid", 64): 0.8}
    scores |= {("single", 8): 1.0, ("single", 16): 0.85, ("tracking", 8): 0.0, ("tracking", 16): 1.0}
    rows = [{"task": task, "tokens": tokens, "score": score} for (task, tokens), score in reversed(scores.items())]
    assert needles.effective_tokens(rows) == {"tracking": None, "single": 16, "uuid": 16}


def test_answers_by_hand_score_as_they_should() -> None:
    asked = ["What are the values of {} and {}?", "Which 3 words stand most often in list {}?"]
    query = forms.queries(random.Random(0), 1, 2)[0]
    words = forms.frequent_words(random.Random(0), 1, words=60, asked=3)[0]
    keys = [sentence.split()[3] for sentence in query.sentences]
    assert query.question == asked[0].format(*keys) and words.question == asked[1].format(
        words.sentences[0].split()[1][:-1]
    )
    assert [n.score(n.answer) for n in (query, words)] == [1, 1]
    assert query.score(query.sentences[1]) == 0.5 and words.score(f"They are {words.values[2]}, and more.") == 1 / 3
    assert query.score("The text does not say.") == words.score("") == 0


def test_cancel() -> None:
    config = NeedlesConfig(("uuid",), (5000,), trials=6, per_reading=3, filler="repeat")
    engine = FakeEngine(oracle)
    with pytest.raises(CancelledError):
        list(needles.run(engine, config, cancelled=lambda: engine.chats > 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": ()},
        {"tasks": ("many",)},
        {"lengths": ()},
        {"trials": 0},
        {"per_reading": 0},
        {"second": -1},
        {"tasks": ("tracking",), "per_reading": 100},
        {"filler": "prose"},
        {"filler": "noise"},
    ],
)
def test_config_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        NeedlesConfig(**({"tasks": ("uuid",), "lengths": (100,), "filler": "repeat"} | wrong))


def test_prose_and_a_model_that_knows_nothing(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n".join(f"Line {i} of a quiet book about the sea." for i in range(40)) + "\n", encoding="utf-8")
    config = NeedlesConfig(("multi-key", "tracking"), (1500,), trials=2, per_reading=2, second=1, filler_file=book)
    asked = list(needles.run(tiny.engine(), config))
    assert len(asked) == 6 and all(a.score == 0 for a in asked) and {a.turn for a in asked} == {1, 2}
