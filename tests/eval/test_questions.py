from collections import Counter
from pathlib import Path

import pytest

from app.errors import ConfigError, InputError
from app.eval import qa, questions
from app.eval.questions import MixConfig, Source


def sources() -> list[Source]:
    """A large set, one with unanswerable questions, a small one, and a text that is too long."""
    large = [Source("large", f"Large {i}.", ((f"large {i}?", (f"l{i}",)),)) for i in range(100)]
    asked = [Source("asked", f"Asked {i}.", ((f"asked {i}?", ("a", "b")), (f"not {i}?", ()))) for i in range(40)]
    small = [Source("small", f"Small {i}.", ((f"small {i}?", ("s",)),)) for i in range(3)]
    return [*large, *asked, *small, Source("long", "x" * 4000, (("long?", ("x",)),))]


def test_questions_are_spread_over_the_sets_and_each_text_has_one() -> None:
    drawn = questions.mix(sources(), MixConfig(60))
    kinds = Counter(q.id.split("-")[0] for q in drawn)
    assert kinds == {"answer": 50, "none": 5, "absent": 5}
    answered = Counter(q.title for q in drawn if q.answers)
    assert answered["small"] == 3 and abs(answered["large"] - answered["asked"]) <= 1 and "long" not in answered
    assert len({q.text for q in drawn}) == len({q.id for q in drawn}) == 60


def test_unanswerable_questions_are_of_the_text_or_of_another_set() -> None:
    drawn = questions.mix(sources(), MixConfig(60))
    for q in drawn:
        kind, number = q.id.split("-")[0], q.text.split()[-1].rstrip(".")
        assert bool(q.answers) == (kind == "answer")
        if kind == "absent":
            assert q.question.split()[0] not in (q.title, "not") or q.question.startswith("not") and q.title != "asked"
            assert q.question not in {other.question for other in drawn if other is not q}
            about = next(s for s in sources() if q.question in dict(s.questions))
            assert about.name != q.title and about.text not in {other.text for other in drawn}
        else:
            assert q.question.endswith(f" {number}?") and q.question.startswith("not") == (kind == "none")


def test_without_unanswerable_ones_in_the_sets_the_share_is_kept() -> None:
    answered = [Source(s.name, s.text, s.questions[:1]) for s in sources()]
    drawn = questions.mix([*answered, *answered], MixConfig(30))
    assert len({q.text for q in drawn}) == 30
    assert Counter(q.id.split("-")[0] for q in drawn) == {"answer": 25, "absent": 5}
    assert all(q.answers for q in questions.mix(sources(), MixConfig(30, unanswerable=0)))


def test_the_seed_decides() -> None:
    first, same, other = (questions.mix(sources(), MixConfig(30, seed=seed)) for seed in (1, 1, 2))
    assert first == same != other


def test_too_few_texts() -> None:
    with pytest.raises(InputError, match="ask for fewer"):
        questions.mix(sources(), MixConfig(150))
    with pytest.raises(InputError, match="enough for 5"):
        questions.mix([s for s in sources() if s.name == "large"], MixConfig(6))  # none of another set


@pytest.mark.parametrize("name", ["questions.jsonl", "questions.jsonl.xz"])
def test_written_questions_are_those_that_eval_qa_asks(tmp_path: Path, name: str) -> None:
    drawn = questions.mix(sources(), MixConfig(60))
    questions.write(drawn, tmp_path / name)
    assert qa.load(tmp_path / name) == (drawn, 0)
    with pytest.raises(InputError, match="cannot be written"):
        questions.write(drawn, tmp_path / "nowhere" / name)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"unanswerable": 1.0}, {"unanswerable": -0.1}, {"longest_chars": 0}])
def test_config_refuses(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        MixConfig(**wrong)
