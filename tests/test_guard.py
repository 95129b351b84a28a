"""Who is answered: requests with the key of this start, from this computer's own page, in the form of the page."""

import http.cookies
import json
import logging
import random
from collections import Counter
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app import guard, server
from app.ui.build import build
from tests.fake_chat import FakeDocumentChat, fake_passkey_run

HERE = "http://127.0.0.1:7860"
SESSION = "session1"
OTHER_PATHS = ("/", "/config", "/assets/x.js", "/gradio_api/upload", "/gradio_api/queue/join", "/chats/c1/export.md")
NOT_OURS = (
    "/gradio_api/call/ask", "/gradio_api/run/ask", "/gradio_api/api/predict", "/gradio_api/component_server",
    "/gradio_api/file=x", "/gradio_api/proxy=x", "/gradio_api/info", "/gradio_api/vibe-edit", "/monitoring", "/docs",
    "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/run/predict/../ask", "/openapi.json", "/login",
)  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> FakeDocumentChat:
    return FakeDocumentChat(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def blocks(chat: FakeDocumentChat):
    return build(chat, run_passkey=fake_passkey_run)


@pytest.fixture(scope="module")
def stranger(chat: FakeDocumentChat, blocks) -> TestClient:
    """A program that found the port."""
    with TestClient(server.create_app(chat, blocks, "k3y"), base_url=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def owner(stranger: TestClient) -> TestClient:
    stranger.cookies.set("lectern-7860", "k3y", domain="127.0.0.1")
    yield stranger
    stranger.cookies.clear()


def event(client: TestClient, **call: object):
    return client.post("/gradio_api/run/predict", json={"session_hash": SESSION, **call})


def named(blocks, elem_id: str) -> int:
    """The event whose click comes through our own HTML."""
    block = next(key for key, block in blocks.blocks.items() if getattr(block, "elem_id", None) == elem_id)
    return next(key for key, fn in blocks.fns.items() if fn.fn and (block, "click") in fn.targets)


@pytest.mark.parametrize("path", OTHER_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT"])
@pytest.mark.parametrize("cookie", ["", "wrong", "k3", "k3y "])
def test_without_the_key_nothing_is_answered(stranger: TestClient, path: str, method: str, cookie: str) -> None:
    answer = stranger.request(method, path, headers={"Cookie": f'lectern-7860="{cookie}"'} if cookie else {})
    assert answer.status_code == 403
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Referrer-Policy"] == "same-origin"


def test_the_page_without_the_key_says_what_to_do(stranger: TestClient) -> None:
    assert "python launch.py" in stranger.get("/").text and "python launch.py" in stranger.get("/?key=wrong").text
    assert stranger.get("/?key=wrong&key=k3y").status_code == 403


def test_health_says_nothing_of_the_owner_to_strangers(stranger: TestClient) -> None:
    health = stranger.get("/health").json()
    assert set(health) == {"app", "version", "model"} and set(health["model"]) == {"state"}


def test_the_printed_address_sets_the_cookie_and_leaves_a_clean_one(stranger: TestClient) -> None:
    answer = stranger.get(guard.address(f"{HERE}/", "k3y"), follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = http.cookies.SimpleCookie(answer.headers["set-cookie"])["lectern-7860"]
    assert (cookie.value, cookie["httponly"], cookie["samesite"].lower()) == ("k3y", True, "strict")
    assert not cookie["max-age"] and not cookie["expires"]
    assert stranger.get("/").status_code == 200
    stranger.cookies.clear()
    linked = stranger.get("/?key=k3y", headers={"Sec-Fetch-Site": "cross-site"}, follow_redirects=False)
    assert linked.status_code == 200 and "url=/" in linked.text and "k3y" not in linked.text
    stranger.cookies.clear()


def test_keys_differ_and_are_long() -> None:
    assert len({guard.new_key() for _ in range(100)}) == 100 and len(guard.new_key()) >= 32


@pytest.mark.parametrize("path", NOT_OURS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_the_page_does_not_need_is_not_there(owner: TestClient, path: str, method: str) -> None:
    assert owner.request(method, path, json={}).status_code == 404


def test_two_origins_or_hosts_are_refused(owner: TestClient) -> None:
    twice = [("Origin", HERE), ("Origin", "https://evil.example")]
    assert owner.get("/", headers=twice).status_code == 403
    assert owner.get("/", headers=[("Host", "127.0.0.1"), ("Host", "localhost")]).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_exports_are_for_our_own_page(owner: TestClient, chat: FakeDocumentChat, site: str) -> None:
    key = chat.saved.new_chat()
    list(chat.ask("Hello?", chat=key))
    assert owner.get(f"/chats/{key}/export.md", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert owner.get(f"/chats/{key}/export.md", headers={"Sec-Fetch-Site": site}).status_code == 403


def test_an_event_reaches_no_file_but_an_upload(
    owner: TestClient, chat: FakeDocumentChat, blocks, tmp_path: Path
) -> None:
    """All events that take files, with a marker file elsewhere; then with an upload."""
    marker = tmp_path / "marker.txt"
    marker.write_text("marker", encoding="utf-8")
    known = [info.title for info in chat.library.documents()]
    inside = chat.settings.folder / "uploads" / "older.txt"
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_text("an upload of an earlier start", encoding="utf-8")
    takers = [key for key, fn in blocks.fns.items() if any("upload" == kind for _, kind in fn.targets)]
    assert len(takers) == 4
    for path in (marker, inside, "http://127.0.0.1:1/x.txt", f"{inside.parent}/../marker.txt", "", "/dev/stdin"):
        record = {"path": str(path), "orig_name": "a.txt", "meta": {"_type": "gradio.FileData"}}
        for key in takers:
            for value in (record, [record]):
                values = [value, *[""] * (len(blocks.fns[key].inputs) - 1)]
                assert event(owner, fn_index=key, data=values).status_code == 400
    assert marker.exists() and inside.exists() and [info.title for info in chat.library.documents()] == known
    sent = owner.post("/gradio_api/upload", files={"files": ("a book.txt", b"The harbour master kept a lantern.")})
    values = [[{"path": sent.json()[0]}], "", False]
    for key in takers[:3]:  # two in Ask, one in Library; the last takes chats
        data = values[: len(blocks.fns[key].inputs)]
        assert blocks.check({"session_hash": SESSION, "fn_index": key, "data": data}) is None


def test_gradio_looks_at_files_itself_too(blocks) -> None:
    assert blocks.has_launched


def test_an_event_has_the_form_of_the_page(owner: TestClient, blocks, caplog: pytest.LogCaptureFixture) -> None:
    delete = named(blocks, "do-chat-delete")
    click = {"id": "c1", "text": ""}
    good = {"fn_index": delete, "data": ["", None], "event_data": click}
    assert event(owner, **good).status_code == 200
    bad = [
        good | {"fn_index": None}, good | {"fn_index": "chat-delete"}, good | {"fn_index": 10_000}, good | {"data": []},
        good | {"data": [7, None]}, good | {"data": [None, None]}, good | {"event_data": None}, good | {"data": {}},
        good | {"event_data": {"id": 7, "text": ""}}, good | {"session_hash": None}, good | {"session_hash": "a/b"},
        good | {"batched": True}, good | {"simple_format": True}, good | {"api_name": "delete", "fn_index": None},
        good | {"event_data": click | {"more": {"path": "/x", "meta": {}}}},
    ]  # fmt: skip
    caplog.set_level(logging.WARNING)
    for call in bad:
        caplog.clear()
        assert event(owner, **call).status_code == 400, call
        assert len(caplog.records) == 1 and "\n" not in caplog.messages[0]
    assert owner.post("/gradio_api/run/predict", content=b"{").status_code == 400
    assert owner.post("/gradio_api/queue/join", content=b"[" * 100_000).status_code == 400


def test_wrong_values_make_no_traceback(owner: TestClient, blocks, capfd: pytest.CaptureFixture) -> None:
    """Every event that answers at once, with generated values of wrong types, four times."""
    generator = random.Random(5)
    values = [None, True, -1, 1e308, "", "\ud800", "c1@x", "x" * 10_000, [], [[]], ["nobody"], {}, {"path": "/x"}, [7]]
    events = [key for key, fn in blocks.fns.items() if fn.fn and not fn.queue]
    assert len(events) > 20
    answers = Counter[int]()
    for number in range(4 * len(events)):
        key = events[number % len(events)]
        data = [generator.choice(values) for _ in blocks.fns[key].inputs]
        click = {"id": generator.choice(["", "nobody", "c1", "x@y"]), "text": generator.choice(["", "\ud800", "x"])}
        call = {"session_hash": SESSION, "fn_index": key, "data": data, "event_data": click}
        json_type = {"Content-Type": "application/json"}  # without it Gradio itself looks at nothing
        answer = owner.post("/gradio_api/run/predict", content=json.dumps(call), headers=json_type)
        told = answer.status_code == 500 and answer.json()["error"]  # in words, on the page
        assert answer.status_code in (200, 400) or told, (call, answer.text)
        answers[answer.status_code] += 1
        assert "Something went wrong" not in answer.text, call
    assert "Traceback" not in "".join(capfd.readouterr())
    assert answers[200] > 10 and answers[400] > 10, answers


def test_pages_that_were_left_are_let_go_of(owner: TestClient, blocks) -> None:
    delete = named(blocks, "do-chat-delete")
    call = {"fn_index": delete, "data": ["", None], "event_data": {"id": "c1", "text": ""}}
    with blocks.sessions.open("stays"):
        for number in range(20):
            with blocks.sessions.open(f"load{number}"):
                for session in (f"load{number}", "stays"):
                    assert event(owner, **call | {"session_hash": session}).status_code == 200
        kept = list(blocks.state_holder.session_data)
        assert "stays" in kept and "load19" in kept and "load0" not in kept and len(kept) <= 10


# --- programs


@pytest.mark.parametrize(
    ("header", "status"),
    [("Bearer right", 200), ("bearer  right", 200),
     ("Bearer wrong", 401), ("right", 401), ("", 401), ("Basic right", 401)],
)  # fmt: skip
def test_routes_for_programs_want_their_own_key(header, status):
    app = FastAPI()
    app.get("/v1/models")(lambda: {})
    app.add_middleware(guard.Guard, key="page", programs="right")
    client = TestClient(app, base_url="http://127.0.0.1:7860", cookies={"lectern-7860": "page"})
    answer = client.get("/v1/models", headers={"Authorization": header} if header else {})
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "invalid_api_key"
    foreign = client.get("/v1/models", headers={"Authorization": header, "Origin": "https://evil.example"})
    assert foreign.status_code == 403


def test_metrics_want_the_key_for_programs_and_readiness_none():
    app = FastAPI()
    app.get("/metrics")(lambda: {})
    app.get("/ready")(lambda: {})
    app.add_middleware(guard.Guard, key="page", programs="right")
    client = TestClient(app, base_url="http://127.0.0.1:7860", cookies={"lectern-7860": "page"})
    assert client.get("/ready").status_code == 200 and client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer right"}).status_code == 200


def test_without_a_key_for_programs_nothing_opens_their_routes():
    app = FastAPI()
    app.add_middleware(guard.Guard, key="page")
    client = TestClient(app, base_url="http://127.0.0.1:7860")
    assert client.get("/v1/models", headers={"Authorization": "Bearer "}).status_code == 401
