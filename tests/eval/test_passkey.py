import random
import re
from collections import Counter
from pathlib import Path

import pytest

from app.errors import CancelledError, ConfigError
from app.eval import passkey, texts
from app.eval.passkey import PasskeyCell, PasskeyConfig
from app.memory.config import GenerationConfig
from app.tasks import needles
from tests import tiny
from tests.eval.fake_engine import FakeEngine


def find_key(text: str, question: str) -> str:
    """Read the number from the text."""
    name = re.search(r"pass key(?: for (\w+))?\?", question)
    assert name is not None
    of = f" for {name[1]}" if name[1] else ""
    return re.search(rf"The pass key{of} is \d+\.", text)[0]


def plan(**config) -> list[list[passkey.Trial]]:
    return passkey.plan(random.Random(0), PasskeyConfig((1000,), **config))


def test_plan_spreads_trials_over_depths_and_readings() -> None:
    plans = plan(trials=25, per_reading=4)
    assert [len(trials) for trials in plans] == [4] * 7
    asked = [trial for trials in plans for trial in trials if trial.band is not None]
    assert set(Counter(trial.band for trial in asked).values()) == {2, 3} and len(asked) == 25
    assert all(trial.band / 10 <= trial.depth < (trial.band + 1) / 10 for trial in asked)


def test_one_key_per_reading_keeps_no_unasked_keys() -> None:
    plans = plan(trials=3)
    assert [[trial.band for trial in trials] for trials in plans] == [[0], [3], [6]]
    assert all(trial.key.name is None for trials in plans for trial in trials)


def test_distractors_are_named_and_not_asked() -> None:
    plans = plan(trials=4, per_reading=2, distractors=3)
    assert [[trial.band is None for trial in trials] for trials in plans] == [[False, False, True, True, True]] * 2
    assert all(len({trial.key.name for trial in trials} - {None}) == 5 for trials in plans)


def test_one_text_moves_the_key_through_the_same_words() -> None:
    engine = FakeEngine(find_key)
    config = PasskeyConfig((4000,), trials=10, distractors=2, one_text=True)
    cells = list(passkey.run(engine, config))
    assert sum(cell.right for cell in cells) == 10 and len({cell.depth for cell in cells}) == 10
    asked = [text.index("Remember it") for text in engine.readings]
    assert engine.kept[0] == 0 and engine.kept[1] > 2400 and sum(engine.kept) > 0.3 * 4000 * 10 > 0
    assert len(asked) == 10 and all(text.count("Remember it") == 3 for text in engine.readings)
    fresh = FakeEngine(find_key)
    fresh.policy = "h2o"
    with pytest.raises(ConfigError, match="h2o drops"):
        list(passkey.run(fresh, config))


def test_reading_on_gives_the_memory_of_a_whole_reading() -> None:
    engine = tiny.engine()
    first, second = tiny.token_ids(300), tiny.token_ids(300)
    second[203:] = reversed(second[203:])
    memory = texts.read_on(engine, None, first)
    memory = texts.read_on(engine, memory, second)
    whole = engine.read(second)
    question = [5, 6, 7]
    config = GenerationConfig(max_new_tokens=8)
    answers = [list(engine.generate(engine.open_chat([m]), question, config)) for m in (memory, whole)]
    assert memory.token_ids == second and answers[0] == answers[1]


@pytest.mark.parametrize("per_reading", [1, 3])
def test_run_reads_documents_of_the_length_and_finds_every_key(per_reading: int) -> None:
    engine = FakeEngine(find_key)
    config = PasskeyConfig(lengths=(1000, 2500), trials=10, per_reading=per_reading)
    seen = []
    cells = list(passkey.run(engine, config, on_progress=lambda done, total: seen.append((done, total))))
    readings = -(-10 // per_reading)
    assert len(engine.readings) == 2 * readings and engine.chats == 20
    assert [(cell.right, cell.trials) for cell in cells] == [(1, 1)] * 20
    line = len(needles.REPEAT_FILLER) + 1
    for text, tokens in zip(engine.readings, [1000] * readings + [2500] * readings, strict=True):
        assert tokens - line <= len(text) + 1 <= tokens
        assert len(re.findall("Remember it", text)) == per_reading
    assert seen[-1] == (3500 * readings, 3500 * readings)


def test_keys_stand_at_their_depth() -> None:
    engine = FakeEngine(find_key)
    for _ in passkey.run(engine, PasskeyConfig(lengths=(20_000,), trials=10)):
        pass
    depths = [text.index("Remember it") / len(text) for text in engine.readings]
    assert [int(depth * 10) for depth in depths] == pytest.approx(list(range(10)), abs=1)
    assert depths == sorted(depths)


def test_a_wrong_answer_is_a_miss() -> None:
    cells = list(passkey.run(FakeEngine(lambda text, question: "The pass key is 123456."), PasskeyConfig((600,), 4)))
    assert sum(cell.right for cell in cells) == 0
    assert all(answer == "The pass key is 123456." for cell in cells for _, answer in cell.misses)
    summary = passkey.summary(cells)
    assert summary["accuracy"] == 0 and len(summary["misses"]) == 4


def test_seed_decides_the_documents() -> None:
    def texts(seed: int) -> list[str]:
        engine = FakeEngine(find_key)
        list(passkey.run(engine, PasskeyConfig((900,), 3, seed=seed)))
        return engine.readings

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_prose_filler_is_the_file(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n".join(f"Line {i} of a quiet book about the sea." for i in range(40)) + "\n", encoding="utf-8")
    engine = FakeEngine(find_key)
    config = PasskeyConfig((3000,), 2, filler="prose", filler_file=book)
    list(passkey.run(engine, config))
    for text in engine.readings:
        assert len(text) + 1 > 2960
        lines = [line for line in text.splitlines() if "pass key" not in line]
        assert all(re.fullmatch(r"Line \d+ of a quiet book about the sea\.", line) for line in lines[:-1])
    assert engine.readings[0].splitlines()[0] != engine.readings[1].splitlines()[0]


def test_a_length_without_room_says_so() -> None:
    with pytest.raises(ConfigError, match="a text of 60 tokens has no room"):
        list(passkey.run(FakeEngine(find_key), PasskeyConfig((60,), 1)))


def test_cancel_between_readings() -> None:
    engine = FakeEngine(find_key)
    cells = []
    with pytest.raises(CancelledError):
        for cell in passkey.run(engine, PasskeyConfig((600,), 10), cancelled=lambda: len(engine.readings) == 3):
            cells.append(cell)
    assert len(cells) == 2


def test_summary_adds_up() -> None:
    cells = [
        PasskeyCell(100, 0.25, 2, 2, 98),
        PasskeyCell(100, 0.75, 1, 2, 99, (("11111", "22222"),)),
        PasskeyCell(200, 0.5, 3, 3, 200),
    ]
    summary = passkey.summary(cells)
    assert (summary["right"], summary["trials"], summary["accuracy"]) == (6, 7, 6 / 7)
    assert [row["tokens"] for row in summary["lengths"]] == [100, 200]
    assert summary["lengths"][0]["accuracy"] == 0.75 and summary["lengths"][0]["document_tokens"] == 99
    assert [row["depth"] for row in summary["lengths"][0]["depths"]] == [0.25, 0.75]
    assert summary["misses"] == [{"tokens": 100, "depth": 0.75, "wanted": "11111", "answer": "22222"}]


@pytest.mark.parametrize(
    "wrong",
    [
        {"lengths": ()},
        {"lengths": (0,)},
        {"trials": 0},
        {"per_reading": 0},
        {"per_reading": 1000},
        {"filler": "noise"},
        {"filler": "prose"},
        {"distractors": -1},
        {"distractors": 1000},
        {"one_text": True, "per_reading": 2},
    ],
)
def test_config_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        PasskeyConfig(**({"lengths": (100,)} | wrong))


def test_a_model_that_knows_nothing_gets_nothing_right() -> None:
    engine = tiny.engine()
    cells = list(passkey.run(engine, PasskeyConfig((400,), trials=4, per_reading=2)))
    assert [(cell.right, cell.trials) for cell in cells] == [(0, 1)] * 4
    assert all(300 <= cell.document_tokens <= 400 for cell in cells)
