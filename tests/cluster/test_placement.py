"""Where documents go: shares, bounds, and what moves."""

import pytest

from app.cluster import placement

KEYS = [f"document-{number}" for number in range(4000)]
TEN = {f"replica-{number}": 1.0 for number in range(10)}


def test_every_key_ranks_all_replicas_and_always_the_same_way():
    assert sorted(placement.ranked("a", TEN)) == sorted(TEN)
    assert placement.ranked("a", TEN) == placement.ranked("a", dict(reversed(TEN.items())))
    assert len({placement.ranked(key, TEN)[0] for key in KEYS}) == 10


def test_the_score_of_a_key_does_not_change_between_releases():
    """Or every document would move with an update."""
    assert placement.score("document", "0") == pytest.approx(0.3699295, abs=1e-6)


def test_replicas_get_keys_by_their_weight():
    weights = {"small": 1.0, "large": 3.0}
    large = sum(placement.ranked(key, weights)[0] == "large" for key in KEYS)
    assert 0.72 < large / len(KEYS) < 0.78


def test_a_weight_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        placement.score("a", "b", 0.0)


def test_one_that_joins_takes_its_share_and_nothing_moves_between_others():
    before = {key: placement.ranked(key, TEN)[0] for key in KEYS}
    grown = {**TEN, "new": 1.0}
    moved = placement.moves(before, grown, "new")
    assert 0.07 < len(moved) / len(KEYS) < 0.11
    after = {key: placement.ranked(key, grown)[0] for key in KEYS}
    assert {key for key in KEYS if before[key] != after[key]} == set(moved)
    assert {after[key] for key in moved} == {"new"}


def test_one_that_leaves_gives_its_keys_to_all_others():
    fewer = {name: weight for name, weight in TEN.items() if name != "replica-3"}
    orphans = [key for key in KEYS if placement.ranked(key, TEN)[0] == "replica-3"]
    assert len({placement.ranked(key, fewer)[0] for key in orphans}) == 9
    assert all(placement.ranked(key, fewer)[0] == placement.ranked(key, TEN)[1] for key in orphans)


def test_sizes_are_bounded_by_the_slack():
    held = dict.fromkeys(TEN, 0.0)
    for number, key in enumerate(KEYS):
        size = 1.0 + 50.0 * (number % 40 == 0)
        chosen = placement.home(key, size, TEN, held)
        held[chosen] += size
    mean = sum(held.values()) / len(held)
    assert max(held.values()) <= placement.SLACK * mean + 51
    loose = dict.fromkeys(TEN, 0.0)
    for number, key in enumerate(KEYS):
        loose[placement.ranked(key, TEN)[0]] += 1.0 + 50.0 * (number % 40 == 0)
    assert max(loose.values()) > max(held.values())  # what the bound is for


def test_a_document_larger_than_all_others_goes_to_an_empty_replica_or_the_emptiest():
    assert placement.home("big", 1000.0, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0}) == "b"
    assert placement.home("big", 1000.0, {"a": 1.0, "b": 1.0}, {"a": 500.0, "b": 400.0}) == "b"
    with pytest.raises(ValueError, match="no replica"):
        placement.home("big", 1.0, {}, {})


def test_copies_follow_the_share_of_questions():
    assert placement.copies(0.0, 100) == 1
    assert placement.copies(1.0, 100) == 100
    assert placement.copies(0.1, 100, part=0.5) == 20
    first, second = placement.ranked("a", TEN)[:2]
    assert placement.next_copy("a", TEN, [first]) == second
    assert placement.next_copy("a", TEN, list(TEN)) is None
