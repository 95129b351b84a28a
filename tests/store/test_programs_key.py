"""The key for programs stays, is its owner's alone, and can be changed."""

import stat

import pytest

from app.errors import StoreError
from app.store.home import programs_key


def test_it_stays_until_another_is_made(tmp_path):
    home = tmp_path / "home"
    key = programs_key(home)
    assert len(key) > 30 and programs_key(home) == key
    assert stat.S_IMODE((home / "programs.key").stat().st_mode) == 0o600
    other = programs_key(home, fresh=True)
    assert programs_key(home) == other != key


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StoreError, match="the key for programs cannot be kept"):
        programs_key(tmp_path / "home")
