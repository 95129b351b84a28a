"""A few of the kills of scripts/kill_test.py, with everything the app does."""

import os

import pytest

from scripts.kill_test import run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_app_loses_nothing_that_was_seen() -> None:
    result = run(kills=5, seed=1)
    assert result["problems"] == []
    assert sum(result["landed"].values()) == sum(result["after"].values()) == 5
