"""Uploads on a full disk are told why; what breaks off leaves nothing private behind."""

import errno
import shutil
import types
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.server import UPLOAD, UploadRoom, _Once


def client(home: Path, failure: BaseException | None) -> TestClient:
    """An app that keeps half an upload, and then fails or not."""

    async def take(request: Request) -> PlainTextResponse:
        (home / "uploads").mkdir(exist_ok=True)
        (home / "uploads" / "tmpabcd1234").write_text("half of a private file")
        (home / "uploads" / "whole").mkdir(exist_ok=True)
        if failure:
            raise failure
        return PlainTextResponse("kept")

    app = Starlette(routes=[Route(UPLOAD, take, methods=["POST"])])
    app.add_middleware(UploadRoom, folder=home / "uploads")
    return TestClient(app, raise_server_exceptions=False)


def parts(home: Path) -> list[str]:
    return [path.name for path in (home / "uploads").glob("tmp*")]


def test_an_upload_that_comes_whole_is_left_to_gradio(tmp_path: Path) -> None:
    assert client(tmp_path, None).post(UPLOAD, content=b"x").text == "kept" and parts(tmp_path)


def test_one_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    client(tmp_path, ClientDisconnect()).post(UPLOAD, content=b"x")
    assert parts(tmp_path) == [] and (tmp_path / "uploads" / "whole").is_dir()


def test_a_disk_that_fills_meanwhile_is_said(tmp_path: Path) -> None:
    answer = client(tmp_path, OSError(errno.ENOSPC, "No space left on device")).post(UPLOAD, content=b"x")
    assert (answer.status_code, answer.text) == (507, "The file could not be kept: No space left on device.")
    assert parts(tmp_path) == []


def test_a_full_disk_refuses_before_anything_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = types.SimpleNamespace(total=1 << 30, free=40 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert client(tmp_path, None).post(UPLOAD, content=b"x").status_code == 200
    answer = client(tmp_path, None).post(UPLOAD, content=bytes(20 << 20))
    assert answer.status_code == 507 and "the disk is full" in answer.text


@pytest.mark.parametrize("gone", [False, True])
def test_an_export_goes_when_it_was_sent_or_nobody_takes_it(tmp_path: Path, gone: bool) -> None:
    path = tmp_path / "chat.lectern"
    path.write_bytes(b"private")

    async def send_it(scope, receive, send) -> None:
        async def broken(message) -> None:
            raise OSError("connection lost")

        await _Once(path)(scope, receive, broken if gone else send)

    got = TestClient(send_it, raise_server_exceptions=False)
    if gone:
        with pytest.raises(OSError):
            TestClient(send_it).get("/")
    else:
        assert got.get("/").content == b"private"
    assert not path.exists()
