"""A few of the wrong inputs of scripts/wrong_inputs.py: each is told in words."""

import random

import pytest

from scripts import wrong_inputs
from scripts.wrong import values


@pytest.mark.filterwarnings("ignore")
def test_no_wrong_input_ends_in_a_traceback() -> None:
    result = wrong_inputs.run(20, seed=1)
    assert result["problems"] == []
    assert {"commands", "events", "programs"} <= set(result["outcomes"]) and result["inputs"] == 20
    told = [word for counts in result["outcomes"].values() for word in counts if word not in ("0", "200")]
    assert told, "some are refused"


def test_the_script_notices_what_it_looks_for() -> None:
    found = wrong_inputs.Found()

    def fails() -> tuple[str, int, str]:
        raise ValueError("the cause")

    for number, work in enumerate((fails, lambda: ("x", 0, "Something went wrong inside Lectern")), 1):
        found.attempt("commands", work, "the input")
        assert len(found.problems) == number and found.problems[-1]["input"] in ("the input", "x")
    found.attempt("commands", lambda: ("x", 2, "x: not known"), "the input")
    assert len(found.problems) == 2 and found.counts["commands"] == {"raised": 1, "0": 1, "2": 1}


def test_wrong_values_follow_the_seed() -> None:
    whole = {"a": [1, {"b": "c"}], "d": None}
    drawn = [values.as_json([values.broken(whole, random.Random(seed)) for seed in range(50)]) for _ in range(2)]
    assert drawn[0] == drawn[1] and whole == {"a": [1, {"b": "c"}], "d": None}
    assert sum(values.broken(whole, random.Random(seed)) != whole for seed in range(50)) > 45
