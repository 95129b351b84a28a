"""The benchmark of the model that ships: whole at the size of a test, and its figures by hand."""

import json
from pathlib import Path

import pytest

from app.eval import qa, questions
from app.eval.qa import Question
from benchmarks import bars, shipped

BOOK = Path(__file__).resolve().parents[1] / "data" / "book.txt"


def asked() -> list[Question]:
    answered = [
        Question(
            f"answer-towns-{i}", "towns", f"Town {i} fell in {1000 + i}.", f"When did town {i} fall?", (str(1000 + i),)
        )
        for i in range(4)
    ]
    return [*answered, Question("none-towns-4", "towns", "Town 4 stands.", "When did town 4 fall?", ())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    questions.write(asked(), tmp_path / "questions.jsonl")
    return tmp_path / "questions.jsonl"


def run(quick: list[str], file: Path, *more: str) -> dict:
    assert shipped.main([*quick, "--questions", str(file), "--file", str(BOOK), *more]) == 0
    return json.loads(Path(quick[quick.index("--output") + 1]).read_text(encoding="utf-8"))


def test_it_runs_whole(quick: list[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qa, "ANSWER_TOKENS", 6)
    values = run(quick, file)
    assert list(values["parts"]) == ["questions", "2000-0", "6000-0", "pairs", "speed"]
    assert all("asked" not in part and "answered" not in part for part in values["parts"].values())
    assert [(row["task"], row["tokens"], row["trials"]) for row in values["needles"]] == [
        (task, tokens, 1) for task in shipped.FIND for tokens in (2000, 6000)
    ]
    assert [(row["task"], row["trials"]) for row in values["apart"]] == [(task, 1) for task in shipped.APART]
    assert values["pairs"]["planted"] == 10 and values["pairs"]["trials"] == 2
    places = {
        place: (found["n"], found["second"] and found["second"]["n"]) for place, found in values["questions"].items()
    }
    assert places == {"alone": (5, None), "6000": (5, 2)}
    assert values["refused_by_kind"]["alone"] == {"answer": [0, 4], "none": [0, 1]}
    assert values["by_set"]["6000"] == {"towns": 0.0} and values["retention"] == {"6000": None}
    assert values["speed"]["tokens_per_s"] > 0 and values["speed"]["threads"] == 2
    assert [bar["what"] for bar in values["bars"] if bar["met"]] == ["points that refusing costs"]  # it never refuses


def test_a_share_asks_less(quick: list[str], file: Path) -> None:
    args = shipped._arguments(["--questions", str(file), "--share", "0.1"])
    assert [(n.find, n.apart) for n in args.lengths] == [(1, 1), (1, 0), (0, 1), (1, 0), (1, 1), (1, 0), (1, 1)]
    assert (args.pairs.trials, args.pairs.readings, args.pairs.planted) == (30, 6, 1000)
    with pytest.raises(SystemExit):
        shipped._arguments(["--questions", str(file), "--share", "1.5"])


def test_the_whole_asks_what_is_promised(file: Path) -> None:
    args = shipped._arguments(["--questions", str(file)])
    middle = next(n for n in args.lengths if n.tokens == args.middle)
    assert middle.find * args.per_reading == 60 and middle.passages == 10 and middle.readings(300) == 30
    assert (args.pairs.trials, args.pairs.planted, args.pairs.lengths) == (300, 1000, (args.middle,))
    assert args.longest == 262_144 and args.lengths[-1].readings(300) == 13
    assert all(n.readings(300) >= n.find + n.apart for n in args.lengths)


def test_the_readings_of_a_length_hold_all_that_is_asked(file: Path) -> None:
    args = shipped._arguments(["--questions", str(file)])
    length, dealt = shipped.Length(9000, 2, 3, 2), [asked()[:2], asked()[2:4], asked()[4:]]
    contents = [shipped._content(args, length, i, 5, dealt) for i in range(5)]
    found = [{place.task for place in planted} for planted, _ in contents]
    assert found == [set(shipped.FIND)] * 2 + [set(shipped.APART)] * 3
    assert [len(questions) for _, questions in contents] == [2, 2, 1, 0, 0]
    assert len(contents[0][0]) == 40 and len(contents[4][0]) == 4


def test_two_questions_of_one_id_are_refused(quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "twice.jsonl"
    questions.write([asked()[0], asked()[0]], file)
    assert shipped.main([*quick, "--questions", str(file)]) == 1
    assert "two questions have one id" in capsys.readouterr().err


def test_an_estimate(file: Path, capsys: pytest.CaptureFixture) -> None:
    assert shipped.main(["--estimate", "--questions", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("all")


def row(task: str, tokens: int, accuracy: float) -> dict:
    return {"task": task, "tokens": tokens, "accuracy": accuracy}


def test_bars_by_hand() -> None:
    values = {
        "needles": [row("single", 64, 1.0), row("single", 8, 0.0), row("multi-key", 64, 0.9)],
        "effective_tokens": {"single": 256, "multi-key": 64, "multi-value": None, "tracking": 8},
        "pairs": {"planted": 1000, "accuracy": 0.99},
        "questions": {"alone": {"f1": 20.0, "refusal_f1": 60.0, "refusal_cost": 2.0}},
        "retention": {"64": 0.96},
        "evidence": {"right": 10, "top_3": 9},
        "elsewhere": {"keys_in_4m": None, "perplexity_varies_percent": 3.5, "streaming_over_ours_nats": 0.4},
    }
    found = {bar["what"]: bar["met"] for bar in bars.bars(64, 256, values)}
    assert found == {
        "single at 64 tokens, share right": True,
        "multi-key at 64 tokens, share right": False,
        "1,000 pairs, share right": True,
        "effective length, single": True,
        "effective length, multi-key": False,
        "effective length, multi-value": False,
        "effective length, multi-query": False,
        "F1 in the paragraph": True,
        "retention at 64 tokens": True,
        "refusal F1 in the paragraph": False,
        "points that refusing costs": True,
        "evidence in the top 3, share of right answers": True,
        "keys in 4M tokens, share right": None,
        "perplexity varies, percent": False,
        "sinks and window worse on far evidence, nats": True,
    }


def test_results_of_other_scripts_count_for_the_same_weights_only(tmp_path: Path) -> None:
    rows = [{"tokens": 64, "keys_right": 1, "keys_asked": 1}, {"tokens": 4_194_304, "keys_right": 2, "keys_asked": 3}]
    length = {"weights": "ours", "parts": {"4194304": {"rows": rows}}}
    perplexity = {"weights": "ours", "varies_percent": 2.0, "made_streaming_over_ours": {"nats": 0.4}}
    (tmp_path / "length.json").write_text(json.dumps(length), encoding="utf-8")
    (tmp_path / "perplexity.json").write_text(json.dumps(perplexity), encoding="utf-8")
    assert list(bars.elsewhere(tmp_path, "ours").values()) == [2 / 3, 2.0, 0.4]
    assert set(bars.elsewhere(tmp_path, "others").values()) == {None}
    rows.pop()
    (tmp_path / "length.json").write_text(json.dumps(length), encoding="utf-8")
    assert bars.elsewhere(tmp_path, "ours")["keys_in_4m"] is None


def test_a_search_by_words_takes_the_sentence_that_shares_most() -> None:
    text = "The king gave a ring. The queen sold her boat to him."
    questions = [
        Question("a", "", text, "What did the queen sell?", ("her boat",)),
        Question("b", "", text, "Who?", ()),
    ]
    # "queen sold her boat to him" without its article: 2 of 6 words are the answer's
    assert shipped.word_search_f1(questions) == 50.0


def test_retention_and_sets_by_hand() -> None:
    q = asked()
    answered = [qa.Answered(q[0], "1000", 9), qa.Answered(q[1], "9", 9), qa.Answered(q[4], "The text does not say.", 9)]
    answered.append(qa.Answered(q[2], "1002", 9, 2))
    assert shipped._by_set(answered) == {"towns": 50.0}
    assert shipped._refused(answered) == {"answer": [0, 2], "none": [1, 1]}
    assert shipped.retention(50.0, 45.0) == 0.9 and shipped.retention(0.0, 4.0) is None is shipped.retention(None, None)
