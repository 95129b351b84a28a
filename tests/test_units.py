"""Sizes and times in words."""

import pytest

from app.units import duration, size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1024, "1 KB"), (1_450_000, "1.4 MB"), (9_960_000, "10 MB"), (41e6, "41 MB"),
     (999_600_000, "1.0 GB"), (80e9, "80 GB"), (5e12, "5.0 TB")],
)  # fmt: skip
def test_size(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
