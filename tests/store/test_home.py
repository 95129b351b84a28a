"""One process owns a data folder; a dead owner is no obstacle."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.errors import BusyError, StoreError
from app.store import home

ROOT = Path(home.__file__).resolve().parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from app.store.home import acquire
lock = acquire(Path(sys.argv[1]))
lock.set_url("http://127.0.0.1:7860")
print("held", flush=True)
time.sleep(600)
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "held"
    return process


def test_a_live_owner_is_named_with_its_url_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    try:
        with pytest.raises(BusyError) as caught:
            home.acquire(tmp_path)
        assert caught.value.url == "http://127.0.0.1:7860"
        assert str(process.pid) in str(caught.value) and str(tmp_path) in str(caught.value)
    finally:
        process.kill()
        process.communicate()
    lock = home.acquire(tmp_path)
    assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
    lock.release()


def test_the_same_process_cannot_own_it_twice(tmp_path: Path) -> None:
    lock = home.acquire(tmp_path)
    with pytest.raises(BusyError) as caught:
        home.acquire(tmp_path)
    assert caught.value.url is None
    lock.release()
    lock.release()
    home.acquire(tmp_path).release()
    assert not (tmp_path / "owner.json").exists()


def test_stale_or_broken_owner_files_are_replaced(tmp_path: Path) -> None:
    for content in ('{"pid": 999999999, "url": "http://127.0.0.1:1"}', "not json", "[]"):
        (tmp_path / "owner.json").write_text(content)
        home.acquire(tmp_path).release()


def test_a_busy_folder_without_a_readable_owner_still_says_so(tmp_path: Path) -> None:
    lock = home.acquire(tmp_path)
    (tmp_path / "owner.json").write_text("[]")
    with pytest.raises(BusyError, match="another process"):
        home.acquire(tmp_path)
    lock.release()


def test_release_from_another_thread(tmp_path: Path) -> None:
    lock = home.acquire(tmp_path)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    home.acquire(tmp_path).release()


def test_a_path_that_is_a_file_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(StoreError, match="--home"):
        home.acquire(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a user's folders from other users by itself")
def test_no_other_account_can_read_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    (folder / "uploads" / "one").mkdir(parents=True)
    ours = [folder / "library.db", folder / "kv.db-wal", folder / "models.json", folder / "uploads" / "one" / "a.txt"]
    other = folder / "notes.txt"
    for path in (*ours, other):
        path.write_text("marker")
        path.chmod(0o644)
    folder.chmod(0o755)
    link = folder / "linked.db"
    link.symlink_to(other)
    lock = home.acquire(folder)
    later = folder / "later.db"
    later.write_text("made while the folder is ours")
    lock.release()
    (tmp_path / "after").write_text("")
    assert folder.stat().st_mode & 0o777 == (folder / "uploads").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (*ours, later)} == {0o600}
    assert other.stat().st_mode & 0o777 == 0o644, "not a file of ours"
    assert (tmp_path / "after").stat().st_mode & 0o077, "the process writes as before"


def test_what_was_left_unfinished_goes_once_the_folder_is_held(tmp_path: Path) -> None:
    left = [
        "owner.new", "library.backup.new", "exports/0123456789abcdef.lectern", "exports/0123456789abcdef.lectern.part",
        f"uploads/{'ab' * 32}/private.pdf", "uploads/tmp0a_b1c2d",
    ]  # fmt: skip
    others = ["notes.new", "exports/report.lectern", "uploads/holiday/photo.jpg", "library.db"]
    for name in (*left, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    held = home.acquire(tmp_path)
    try:
        (tmp_path / left[2]).write_text("x")
        with pytest.raises(BusyError):
            home.acquire(tmp_path)
        assert (tmp_path / left[2]).exists(), "nothing goes while another process holds the folder"
    finally:
        held.release()
    home.acquire(tmp_path).release()
    assert not any((tmp_path / name).exists() for name in left)
    assert not (tmp_path / "uploads" / ("ab" * 32)).exists()
    assert all((tmp_path / name).exists() for name in others)
