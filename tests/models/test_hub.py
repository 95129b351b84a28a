"""Models are fetched by name from a hub; here it is a small one on loopback."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.errors import CancelledError, ModelError
from app.models import fits, hub

NAME, COMMIT = "someone/small", "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"w" * 300_000, "notes.md": b"not fetched"}


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, for one model."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith(f"/api/models/{NAME}/tree/"):
            facts = ((name, len(data), _digest(data)) for name, data in FILES.items())
            files = [{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in facts]
            self._send(json.dumps(files).encode())
        elif path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(json.dumps({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/{NAME}/resolve/"):
            self._send(FILES[path.rpartition("/")[2]])
        else:
            self.send_error(404)

    def _send(self, data: bytes) -> None:
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("ETag", f'"{_digest(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first:])

    def log_message(self, *_: object) -> None:
        pass


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub on loopback."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield tmp_path / "hub"
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_into_the_cache_and_listed_there(cache: Path) -> None:
    from app.models.folder import cached

    assert hub.here(NAME) == 0
    steps = list(hub.fetch(NAME, lambda: False))
    wanted = sum(len(data) for name, data in FILES.items() if name != "notes.md")
    assert steps[-1] == (wanted, wanted) and hub.here(NAME) == wanted
    ((name, folder),) = cached()
    assert name == NAME and (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not (folder / "notes.md").exists()
    with pytest.raises(ModelError, match="someone/other could not be fetched"):
        list(hub.fetch("someone/other", lambda: False))
    with pytest.raises(CancelledError, match="what came is kept"), closing(hub.fetch(NAME, lambda: True)) as fetching:
        list(fetching)


def test_a_computer_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "net_if_stats", dict)
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    assert "no connection" in hub.no_network()


def test_speed_is_told_from_the_nearest_model_or_from_the_computer() -> None:
    measured = [(500, 80.0), (4000, 20.0), (10**9, 0.001)]
    assert fits.expected(1000, measured) == 40.0
    assert fits.expected(8000, measured) == 10.0
    assert fits.expected(10**6, measured) == pytest.approx(1.0)  # none of that size was measured
    assert fits.expected(0, measured) == fits.expected(1000, []) == 0.0
    assert fits.fit(10, 100, 110, []).fits and not fits.fit(10, 100, 109, []).fits
