"""Small runs of scripts/bit_flips.py and scripts/concurrency.py."""

from scripts import bit_flips, concurrency


def test_flipped_bits_are_found_or_harmless() -> None:
    result = bit_flips.run(40, 10, answers=2, seed=5)
    assert result["problems"] == []
    assert result["flips"]["index"] == {"found": 10}
    assert sum(result["flips"]["data"].values()) == 40 and result["flips"]["data"]["found"] > 10


def test_many_threads_at_once_lose_nothing() -> None:
    result = concurrency.run(400)
    assert result["problems"] == []
    assert result["operations"] == {"answer": 40, "upload": 80, "look": 280}
