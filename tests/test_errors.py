"""What the system refuses is told with the file's name; what nobody foresaw is not."""

from pathlib import Path

import pytest

from app.errors import refusal


@pytest.mark.parametrize("name", ["x" * 300, "missing/a", "loop"])
def test_a_file_that_the_system_refuses_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError) as caught:
        (tmp_path / name).read_bytes()
    told = refusal(caught.value)
    assert told and name[:20] in told and "choose another" in told and len(told) < 500


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), OSError(5, "Input/output error", "x"), TypeError()])
def test_other_errors_stay_unforeseen(error: Exception) -> None:
    assert refusal(error) is None
