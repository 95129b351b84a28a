"""Keys are shown once and kept as hashes; another process sees a change; a library goes with its user."""

import stat

import pytest

from app.errors import ConfigError, NotFoundError, StoreError
from app.store.users import Limits, Users


def test_a_key_is_known_by_its_hash_alone(tmp_path):
    users = Users(tmp_path)
    key = users.add("ann", Limits(documents=3))
    text = (tmp_path / "users.json").read_text()
    assert key not in text and key.rpartition("-")[2] not in text
    assert stat.S_IMODE((tmp_path / "users.json").stat().st_mode) == 0o600
    assert Users(tmp_path).of_key(key).limits == Limits(documents=3)
    for other in (key + "x", "", "ann", users.everyone()[0].digest):
        assert users.of_key(other) is None


def test_what_another_process_changes_is_seen(tmp_path):
    here, there = Users(tmp_path), Users(tmp_path)
    key = here.add("ann")
    assert there.of_key(key).name == "ann"
    here.remove("ann")
    assert there.of_key(key) is None


def test_a_user_who_is_added_again_begins_with_nothing(tmp_path):
    users = Users(tmp_path)
    users.add("ann")
    folder = users.folder(users.everyone()[0])
    folder.mkdir(parents=True)
    (folder / "library.db").write_text("texts")
    assert users.remove("ann") and not folder.exists()
    users.add("ann")
    assert users.folder(users.everyone()[0]) != folder


@pytest.mark.parametrize("name", ["", "Ann", "a b", "../x", "a/b", "a" * 33, "é"])
def test_what_is_no_name(tmp_path, name):
    with pytest.raises(ConfigError, match="use 1 to 32 small letters"):
        Users(tmp_path).add(name)


def test_a_name_is_taken_once_and_a_stranger_cannot_be_removed(tmp_path):
    users = Users(tmp_path)
    users.add("ann")
    with pytest.raises(ConfigError, match="is there already"):
        users.add("ann")
    with pytest.raises(NotFoundError, match="not there"):
        users.remove("ben")


def test_a_damaged_list_lets_nobody_in_and_is_told(tmp_path):
    (tmp_path / "users.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Users(tmp_path).of_key("x")


@pytest.mark.parametrize("limit", [{"documents": 0}, {"gigabytes": -1}, {"answers": 0}])
def test_limits_are_above_zero(limit):
    with pytest.raises(ConfigError, match="must be above 0"):
        Limits(**limit)
