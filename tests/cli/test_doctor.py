import json
import shutil
import sqlite3
import sys
import types
from pathlib import Path

import pytest

from app.cli import doctor
from app.settings import Settings
from app.setup import builds, state
from app.store import home
from app.store.store import Store


class Printed:
    """Stands for app.cli.output.Output."""

    def result(self, values, text=""):
        self.values, self.text = values, text


def examine(**settings) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(Settings(**settings))}


def make_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE row (text TEXT)")
    connection.executemany("INSERT INTO row VALUES (?)", [("x" * 500,)] * 200)
    connection.commit()
    connection.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 4096}')
    (folder / "lectern.json").write_text('{"trained_tokens": 2048}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    return folder


def test_report_and_exit_code(tmp_path, model, monkeypatch):
    monkeypatch.setattr(state, "is_ready", lambda target, **_: True)
    settings, out = Settings(home=tmp_path / "home", model=str(model)), Printed()
    assert doctor.run(settings, out) == 0
    assert out.values["ok"] is True and json.loads(json.dumps(out.values)) == out.values
    for name in ("python", "set-up", "torch", "cuda", "kernels", "data folder", "disk", "library.db", "kv.db", "model"):
        assert name in out.values and name in out.text
    assert not (tmp_path / "home").exists(), "looking must not make the folder"
    (model / "model.safetensors").unlink()
    assert doctor.run(settings, out) == 1
    assert out.values["ok"] is False and "problem" in out.text


def test_before_the_setup(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.delenv("LECTERN_HOME", raising=False)
    for name in state.TEST_FILES:
        (tmp_path / name).write_text("")
    found = examine()
    assert found["set-up"].state == "problem" and "python launch.py" in found["set-up"].text
    assert found["torch"].state == "problem"
    assert found["data folder"].text == doctor.AFTER_SETUP


def test_a_busy_folder_names_its_owner(tmp_path):
    lock = home.acquire(tmp_path)
    lock.set_url("http://127.0.0.1:7999")
    try:
        finding = examine(home=tmp_path)["data folder"]
    finally:
        lock.release()
    assert finding.state == "note" and "http://127.0.0.1:7999" in finding.text
    assert "free to use" in examine(home=tmp_path)["data folder"].text


def test_a_sound_database_and_one_that_is_written_meanwhile(tmp_path):
    make_database(tmp_path / "library.db")
    writer = sqlite3.connect(tmp_path / "library.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    finding = examine(home=tmp_path)["library.db"]
    writer.close()
    assert finding.state == "ok" and "sound" in finding.text


@pytest.mark.parametrize("damage", ["not a database", "a page overwritten", "cut"])
def test_a_damaged_database(tmp_path, damage):
    path = tmp_path / "library.db"
    make_database(path)
    data = bytearray(path.read_bytes())
    if damage == "not a database":
        data = bytearray(b"hello" * 1000)
    elif damage == "cut":
        del data[-8192:]
    else:
        data[8192 : 8192 + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    finding = examine(home=tmp_path)["library.db"]
    assert finding.state == "problem" and "damaged" in finding.text


def test_memories_are_counted_and_every_block_is_checked(tmp_path):
    store = Store(tmp_path, disk_budget_bytes=1 << 30)
    assert examine(home=tmp_path)["memories"].text == "none yet, 0 B of 50 GB"
    for key in ("k1", "k2"):
        store.blocks.put(key, [1, 2, 3, 4], b"index", [bytes(1000)], "raw")
    store.blocks.flush()
    finding = examine(home=tmp_path)["memories"]  # while another process holds the folder
    assert finding.state == "ok" and "8 tokens, 2 KB of 50 GB, 255 bytes per token (raw)" in finding.text
    store.close()
    with sqlite3.connect(tmp_path / "kv.db") as db:
        db.execute("UPDATE block_kv SET data = zeroblob(999) WHERE block = 1")
    finding = examine(home=tmp_path)["memories"]
    assert finding.state == "problem" and "1 of 2 blocks damaged" in finding.text


def test_files_set_aside_are_told(tmp_path):
    (tmp_path / "kv.set-aside-20260101-000000-000000.db").touch()
    assert "set-aside-2026" in examine(home=tmp_path)["set aside"].text


def test_little_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**8))
    finding = examine(home=tmp_path / "not" / "yet")["disk"]
    assert finding.state == "problem" and "100 MB" in finding.text


class TestTorch:
    def fake(self, monkeypatch, version: str, cuda: str | None, devices: int = 0) -> None:
        device = types.SimpleNamespace(name="Test GPU", total_memory=80 * 10**9)
        module = types.SimpleNamespace(
            __version__=version,
            version=types.SimpleNamespace(cuda=cuda),
            cuda=types.SimpleNamespace(
                is_available=lambda: devices > 0,
                device_count=lambda: devices,
                get_device_properties=lambda index: device,
            ),
        )
        monkeypatch.setitem(sys.modules, "torch", module)

    def test_cpu_torch_beside_a_gpu(self, tmp_path, monkeypatch):
        self.fake(monkeypatch, "2.13.0+cpu", None)
        monkeypatch.setattr(builds, "nvidia_seen", lambda: True)
        finding = examine(home=tmp_path)["cuda"]
        assert finding.state == "note" and "CUDA device present but CPU torch" in finding.text

    def test_an_old_driver(self, tmp_path, monkeypatch):
        self.fake(monkeypatch, "2.13.0", "13.0")
        monkeypatch.setattr(builds, "nvidia_seen", lambda: True)
        assert "driver" in examine(home=tmp_path)["cuda"].text

    def test_a_gpu_in_use(self, tmp_path, monkeypatch):
        self.fake(monkeypatch, "2.13.0", "13.0", devices=2)
        finding = examine(home=tmp_path)["cuda"]
        assert finding.state == "ok" and finding.text.count("Test GPU with 80 GB") == 2

    @pytest.mark.parametrize(
        ("devices", "wanted", "expected"),
        [
            (0, "auto", "ok: PyTorch on the CPU"),
            (1, "auto", "ok: PyTorch on CUDA"),
            (1, "cpu", "ok: PyTorch on the CPU"),
            (0, "cuda", "problem: --device cuda, but torch sees no CUDA device"),
        ],
    )
    def test_backend(self, tmp_path, monkeypatch, devices, wanted, expected):
        self.fake(monkeypatch, "2.13.0", "13.0", devices)
        finding = examine(home=tmp_path, device=wanted)["backend"]
        assert f"{finding.state}: {finding.text}" == expected

    def test_a_torch_out_of_range(self, tmp_path, monkeypatch):
        self.fake(monkeypatch, "2.9.1", None)
        assert examine(home=tmp_path)["torch"].state == "problem"


class TestModel:
    def test_complete(self, tmp_path, model):
        finding = examine(home=tmp_path, model=str(model))["model"]
        assert finding.state == "ok" and "2,048 tokens" in finding.text

    def test_incomplete(self, tmp_path, model):
        (model / "tokenizer.json").unlink()
        finding = examine(home=tmp_path, model=str(model))["model"]
        assert finding.state == "problem" and "tokenizer.json" in finding.text

    def test_damaged(self, tmp_path, model):
        (model / "config.json").write_text("{")
        finding = examine(home=tmp_path, model=str(model))["model"]
        assert finding.state == "problem" and "config.json" in finding.text

    def test_absent(self, tmp_path):
        assert examine(home=tmp_path, model=str(tmp_path / "none"))["model"].state == "problem"
        assert examine(home=tmp_path, model="someone/some-model")["model"].state == "note"


class TestWordsOfTheStore:
    """Only a failed check is damage."""

    def refused(self, monkeypatch, code: int, words: str) -> None:
        real = sqlite3.connect

        def connect(place, **options):
            if "immutable" in place:
                return real(place, **options)
            error = sqlite3.OperationalError(words)
            error.sqlite_errorcode = code
            raise error

        monkeypatch.setattr(sqlite3, "connect", connect)

    def finding(self, tmp_path: Path) -> doctor.Finding:
        return doctor._database(tmp_path / "library.db")

    def test_a_full_disk(self, tmp_path, monkeypatch):
        make_database(tmp_path / "library.db")
        self.refused(monkeypatch, sqlite3.SQLITE_CANTOPEN, "unable to open database file")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
        found = self.finding(tmp_path)
        assert found.state == "note" and "the disk is full; structure sound" in found.text
        assert "damaged" not in found.text

    def test_a_locked_library(self, tmp_path, monkeypatch):
        make_database(tmp_path / "library.db")
        self.refused(monkeypatch, sqlite3.SQLITE_BUSY, "database is locked")
        found = self.finding(tmp_path)
        assert found.state == "note" and "held by another program" in found.text and "damaged" not in found.text

    def test_a_read_only_folder(self, tmp_path, monkeypatch):
        make_database(tmp_path / "library.db")
        self.refused(monkeypatch, sqlite3.SQLITE_CANTOPEN, "unable to open database file")
        monkeypatch.setattr(doctor.os, "access", lambda path, mode: mode == doctor.os.R_OK)
        found = self.finding(tmp_path)
        assert found.state == "note" and "is read-only; structure sound" in found.text

    def test_a_file_of_another_account(self, tmp_path, monkeypatch):
        make_database(tmp_path / "library.db")
        self.refused(monkeypatch, sqlite3.SQLITE_CANTOPEN, "unable to open database file")
        monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
        found = self.finding(tmp_path)
        assert found.state == "problem" and "permissions" in found.text and "damaged" not in found.text

    def test_a_lost_library_beside_its_copy(self, tmp_path):
        make_database(tmp_path / "library.backup.db")
        assert examine(home=tmp_path)["library.db"].text.endswith("in its place (library.backup.db)")
        (tmp_path / "library.db").touch()
        assert examine(home=tmp_path)["library.db"].state == "problem"

    def test_errors_that_nobody_foresaw_are_counted_with_their_cause(self, tmp_path):
        assert "log" not in examine(home=tmp_path)
        log = "2026-11-30 11:00:00,123 WARNING app.store: something known\n"
        for cause in ("TypeError: not this", "KeyError: 'x'"):
            log += "2026-11-30 11:00:01,123 ERROR app.cli.log: command failed\nTraceback (most recent call last):\n"
            log += f'  File "a.py", line 1, in a\n{cause}\n'
        (tmp_path / "lectern.log").write_text(log)
        found = examine(home=tmp_path)["log"]
        assert found.state == "note"
        assert found.text == "2 errors that nobody foresaw in lectern.log, the last 2026-11-30 11:00:01: KeyError: 'x'"
