"""A few of the kills of scripts/kill_test.py, with everything the app does."""

from scripts.kill_test import run


def test_a_killed_app_loses_nothing_that_was_seen() -> None:
    result = run(kills=5, seed=1, longest_s=2.0)
    assert result["problems"] == []
    assert sum(result["after"].values()) == 5
