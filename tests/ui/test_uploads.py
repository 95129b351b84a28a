"""Only what a browser uploaded since the start is opened, and it is deleted once it was taken."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import LecternError
from app.ui.uploads import Uploads


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file of the owner that no event may reach."""
    file = tmp_path / "marker.txt"
    file.write_text("marker", encoding="utf-8")
    return file


def refused(uploads: Uploads, path: object) -> bool:
    with pytest.raises(LecternError, match="not uploaded"), uploads.taken(str(path)):
        pass
    return True


def test_an_upload_is_taken_once_and_deleted(uploads: Uploads, send: Callable[[Path], str], marker: Path) -> None:
    path = send(marker)
    with uploads.taken(path) as file:
        assert file.read_text(encoding="utf-8") == "marker"
    assert not Path(path).exists() and not Path(path).parent.exists() and marker.exists()
    assert refused(uploads, path)


def test_an_upload_that_fails_is_deleted_too(uploads: Uploads, send: Callable[[Path], str], marker: Path) -> None:
    path = send(marker)
    with pytest.raises(ZeroDivisionError), uploads.taken(path):
        raise ZeroDivisionError
    assert not Path(path).exists()


def test_other_paths_are_refused_and_stay(uploads: Uploads, send: Callable[[Path], str], marker: Path) -> None:
    inside = Path(send(marker))
    older = uploads.folder / "older.txt"
    older.write_text("of another start", encoding="utf-8")
    for path in (marker, older, inside.parent / ".." / ".." / ".." / "marker.txt", "", "\0", inside.parent):
        assert refused(uploads, path)
    assert marker.exists() and older.exists() and inside.exists()


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_links_to_elsewhere_are_refused_and_stay(
    uploads: Uploads, send: Callable[[Path], str], marker: Path, make: Callable[[Path, Path], None]
) -> None:
    path = Path(send(marker))
    path.unlink()
    make(marker, path)
    assert refused(uploads, path)
    assert marker.exists() and path.exists()


def test_a_linked_folder_leads_nowhere(uploads: Uploads, marker: Path) -> None:
    uploads.folder.mkdir(parents=True)
    (uploads.folder / "out").symlink_to(marker.parent)
    path = uploads.folder / "out" / "marker.txt"
    uploads.received.add(str(path))
    assert refused(uploads, path)
    assert marker.exists()
