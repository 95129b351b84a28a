"""The FastAPI app: what it answers, and to whom."""

import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from app import __version__, server
from app.api.reading import BackgroundReading
from app.errors import ConfigError
from app.records import Delta
from app.ui.build import build
from tests.fake_chat import FakeDocumentChat, fake_passkey_run, model_state
from tests.ingest.pdf_maker import drawn, page_objects, pdf_bytes

HERE = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> FakeDocumentChat:
    return FakeDocumentChat(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def client(chat: FakeDocumentChat) -> TestClient:
    blocks = build(chat, run_passkey=fake_passkey_run)
    with TestClient(server.create_app(chat, blocks, "k3y"), base_url=HERE) as client:
        client.get("/?key=k3y")
        yield client


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "127.0.0.1"])
def test_own_hosts_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example:7860",
        "localhost.evil.example",
        "10.0.0.5:7860",
        "127.0.0.1@evil.example",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/health", "/", "/config", "/chats/c1/export.md"])
def test_foreign_hosts_are_refused(client: TestClient, host: str, path: str) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert "127.0.0.1 or localhost" in answer.text


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:3000",
        "http://localhost:7860",
        "http://127.0.0.1:7860.evil.example",
    ],
)
@pytest.mark.parametrize("path", ["/health", "/gradio_api/queue/join", "/gradio_api/upload"])
def test_foreign_origins_are_refused(client: TestClient, origin: str, path: str) -> None:
    assert client.post(path, headers={"Origin": origin}).status_code == 403


def test_own_origin_is_answered(client: TestClient) -> None:
    assert client.get("/health", headers={"Origin": HERE}).status_code == 200


def test_health_names_the_model_and_the_work(client: TestClient, chat: FakeDocumentChat) -> None:
    chat.state = model_state(state="failed", detail="models/x: no config.json")
    try:
        health = client.get("/health").json()
    finally:
        chat.state = model_state()
    assert health["version"] == __version__
    assert health["model"] == {"state": "failed", "name": "lectern-small", "detail": "models/x: no config.json"}
    assert health["busy"] is None


def test_page_is_private(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert not config.get("run_history")


def test_upload_has_a_limit(client: TestClient) -> None:
    assert client.get("/config").json()["max_file_size"] == 512 * 1024 * 1024


def test_a_page_of_a_pdf_is_a_picture(client: TestClient, chat: FakeDocumentChat, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bytes(page_objects([drawn("The harbour bell rings at noon.")])))
    (tmp_path / "a.txt").write_text("plain")
    book, plain = (chat.library.add_document(tmp_path / name).id for name in ("a.pdf", "a.txt"))
    answer = client.get(f"/documents/{book}/pages/1.jpg")
    assert answer.headers["content-type"] == "image/jpeg" and answer.content.startswith(b"\xff\xd8")
    assert "private" in answer.headers["cache-control"]
    for wrong in (f"{book}/pages/2.jpg", f"{plain}/pages/1.jpg", "nobody/pages/1.jpg"):
        assert client.get(f"/documents/{wrong}").status_code == 404
    chat.drawer.close()


def test_chat_is_exported(client: TestClient, chat: FakeDocumentChat) -> None:
    key = chat.saved.new_chat()
    assert any(isinstance(event, Delta) for event in chat.ask("Où est la clé? \r\nX: y", chat=key))
    answer = client.get(f"/chats/{key}/export.md")
    assert answer.headers["content-disposition"] == 'attachment; filename="o-est-la-cl-x-y.md"'
    assert "Où est la clé?" in answer.text
    for form in ("json", "lectern"):
        answer = client.get(f"/chats/{key}/export.{form}")
        assert answer.headers["content-disposition"] == f'attachment; filename="o-est-la-cl-x-y.{form}"'
        assert answer.json()["title"].startswith("Où est la clé?")
    assert list((chat.settings.folder / "exports").iterdir()) == []
    assert client.get("/chats/nobody/export.md").status_code == 404
    assert client.get(f"/chats/{key[:-1]}/export.md").status_code == 404, "a whole id"
    assert client.get(f"/chats/{key}/export.exe").status_code == 422


def test_first_free_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((server.ADDRESS, 0))
        taken.listen()
        monkeypatch.setattr(server, "FIRST_PORT", taken.getsockname()[1])
        with server.bind() as listener:
            assert listener.getsockname()[0] == "127.0.0.1"
            assert listener.getsockname()[1] > taken.getsockname()[1]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with server.bind() as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("port", [70_000, None])
def test_a_port_that_cannot_be_used_is_named(port: int | None) -> None:
    with socket.socket() as taken:
        taken.bind((server.ADDRESS, 0))
        taken.listen()
        wanted = port or taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {wanted}"):
            server.bind(wanted)


@pytest.mark.parametrize(
    ("environment", "platform", "display"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "darwin", False),
    ],
)
def test_display_is_recognised(environment: dict[str, str], platform: str, display: bool) -> None:
    assert server.has_display(environment, platform) is display


@pytest.mark.parametrize("display", [True, False])
def test_serve_says_the_url_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, display: bool) -> None:
    chat = FakeDocumentChat(tmp_path)
    said: list[str] = []
    opened: list[str] = []
    monkeypatch.setattr(server, "has_display", lambda: display)
    monkeypatch.setattr(server, "show_page", lambda url, home: opened.append(url))
    monkeypatch.setattr(server, "create_app", lambda chat, blocks, key, programs, people, beyond: None)

    class Instant:
        def __init__(self, ready):
            self.ready = ready

        def run(self, sockets):
            self.ready()
            raise KeyboardInterrupt  # what Ctrl-C does; serve returns, so that the caller can close the chat

    monkeypatch.setattr(server, "_server", lambda app, ready, ending, network: Instant(ready))
    server.serve(chat, SimpleNamespace(reading=BackgroundReading(chat)), say=said.append)
    assert said[-1] == f"Lectern is open at {chat.lock.url}"
    assert chat.lock.url.startswith("http://127.0.0.1:")
    port, key = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?key=([\w-]{32,})", chat.lock.url).groups()
    if display:
        assert len(said) == 1
    else:
        assert f"ssh -L {port}:127.0.0.1:{port} " in said[0]
        assert opened == []


def test_beyond_this_computer_only_with_tls(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("c")
    pair = {"certificate": tmp_path / "cert.pem", "certificate_key": tmp_path / "cert.pem"}
    assert not server.Network().beyond and server.Network(behind_proxy=True).beyond
    assert server.Network("0.0.0.0", **pair).url(443) == "https://0.0.0.0:443/v1"
    assert server.Network("::", behind_proxy=True).url(80) == "http://[::]:80/v1"
    for given, words in (
        ({"host": "0.0.0.0"}, "keys would cross the network as they are"),
        ({"certificate": tmp_path / "cert.pem"}, "are needed together"),
        ({**pair, "certificate_key": tmp_path / "gone.pem"}, "--certificate-key .*is no file"),
    ):
        with pytest.raises(ConfigError, match=words):
            server.Network(**given)


def test_the_key_stands_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other accounts see what a browser is started with: a file that only its owner reads."""
    opened: list[str] = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr(server, "SNAPS", ())
    for key in ("one", "two"):
        server.show_page(f"http://127.0.0.1:1/?key={key}", tmp_path)
        file = tmp_path / "open.html"
        assert opened.pop() == file.as_uri()
        assert f"url=http://127.0.0.1:1/?key={key}" in file.read_text(encoding="utf-8")
        assert file.stat().st_mode & 0o077 == 0


def test_the_page_is_made_once_for_each_address() -> None:
    made: list[str] = []

    async def page(scope, receive, send):
        made.append(dict(scope["headers"])[b"host"].decode())
        body = f"page of {made[-1]}, {len(made)}".encode()
        status = 500 if made[-1] == "broken" else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"x", b"1")]})
        await send({"type": "http.response.body", "body": body})

    client = TestClient(server.FirstPage(page), base_url="http://one")
    assert [client.get("/").text for _ in range(3)] == ["page of one, 1"] * 3
    assert client.get("/", headers={"Host": "two"}).text == "page of two, 2"
    assert client.get("/?deep_link=x").text == "page of one, 3" and client.get("/config").text == "page of one, 4"
    assert [client.get("/", headers={"Host": "broken"}).text[-1] for _ in range(2)] == ["5", "6"]
    for number in range(server.FirstPage.KEPT):
        client.get("/", headers={"Host": f"name{number}"})
    assert client.get("/").text == "page of one, 15" and client.get("/").headers["x"] == "1"


def test_the_pages_files_go_out_as_they_are_and_stay_in_the_browser(client: TestClient) -> None:
    page = client.get("/", headers={"Accept-Encoding": "br"})
    assert "content-encoding" not in page.headers and "immutable" not in page.headers.get("cache-control", "")
    file = client.get("/" + re.search(r"assets/[\w.-]+\.js", page.text)[0], headers={"Accept-Encoding": "br, gzip"})
    assert file.status_code == 200 and "content-encoding" not in file.headers
    assert file.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert "immutable" not in client.get("/assets/none.js").headers.get("cache-control", "")


def test_the_page_that_was_kept_is_the_one_that_gradio_made(client: TestClient) -> None:
    first, second = client.get("/"), client.get("/")
    assert first.text == second.text and dict(first.headers) == dict(second.headers)
    other = client.get("/", headers={"Host": "localhost:7860", "Cookie": "lectern-7860=k3y"})
    assert "http://localhost:7860" in other.text and "http://localhost:7860" not in first.text
