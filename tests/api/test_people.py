"""Users of the endpoint: each has a library of their own, limits, and nothing of others; what is kept of them."""

import json
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.chat.allowance import Allowance
from app.api.metrics import Metrics
from app.api.people import Audit, ByUser, People
from app.api.routes import Endpoint
from app.api.sign_in import SignIn
from app.guard import PROGRAMS, Guard
from app.store.users import Limits, Users
from scripts import separation
from tests.api.test_routes import ASK, talk
from tests.chat.opened import open_chat, write  # noqa: F401  a fixture


@pytest.fixture
def chat(open_chat):  # noqa: F811
    return open_chat()


@pytest.fixture
def users(chat):
    return Users(chat.settings.folder)


@pytest.fixture
def client(chat, users):
    """The app as other computers see it."""
    people = People(chat, users, metrics=Metrics())
    app, endpoint = FastAPI(), Endpoint(chat, metrics=people.metrics)
    app.include_router(endpoint.router())
    app.get("/health")(lambda: {})
    app.add_middleware(ByUser, people=people)
    sign_in = SignIn(lambda key: key == "owner", people.of_key, people.of_digest)
    app.add_middleware(Guard, key="page", programs="owner", users=people.of_key, beyond=sign_in)
    app.add_middleware(Audit, home=chat.settings.folder, watched=PROGRAMS.fullmatch)
    with TestClient(app, base_url="https://lectern.example") as client:
        yield client
    people.close()
    endpoint.reading.close()


def bearer(key):
    return {"headers": {"Authorization": f"Bearer {key}"}}


def test_nothing_of_one_user_is_within_reach_of_another(client, users, chat):
    ann, ben = users.add("ann"), users.add("ben")
    user = users.everyone()[0]
    theirs = separation.have(client, ann, "ann", user.id, user.digest)
    tried, reached = separation.try_all(client, ben, theirs)
    assert reached == [] and tried.total() >= 150
    assert separation.same_text(client, ben) == [] and separation.without_key(client) == []
    assert client.get("/health").status_code == 200
    assert client.get(f"/v1/files/{theirs.document}", **bearer(ann)).status_code == 200
    assert chat.library.documents() == [] and chat.saved.chats() == []  # the owner has a library of their own too
    assert client.get("/v1/files", **bearer("owner")).json()["data"] == []


def test_a_document_is_shared_as_a_copy_with_its_memory(client, users):
    ann, ben = users.add("ann"), users.add("ben")
    file = client.post("/v1/files", files={"file": ("book.txt", b"The keeper is Ann. " * 60)}, **bearer(ann)).json()
    body = {"model": "lectern", "messages": [{"role": "user", "content": "Who?"}], **ASK, "documents": [file["id"]]}
    client.post("/v1/chat/completions", json=body, **bearer(ann))  # which reads it
    path = f"/v1/files/{file['id']}/share"
    assert client.post(path, json={"user": "nobody"}, **bearer(ann)).status_code == 404
    assert client.post(path, json={"user": "ben"}, **bearer(ben)).status_code == 404  # it is not his to share
    assert client.post(path, json={"user": "ben"}, **bearer(ann)).json()["shared_with"] == "ben"
    (theirs,) = client.get("/v1/files", **bearer(ben)).json()["data"]
    assert theirs["status"] == "processed" and theirs["filename"] == "book"
    client.delete(f"/v1/files/{file['id']}", **bearer(ann))
    reply = client.post("/v1/chat/completions", json=body | {"documents": [theirs["id"]]}, **bearer(ben)).json()
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= theirs["lectern"]["tokens"]
    assert client.get("/v1/files", **bearer(ann)).json()["data"] == []


def test_a_key_that_is_taken_away_opens_nothing_more(client, users):
    key = users.add("ann")
    assert client.get("/v1/files", **bearer(key)).status_code == 200
    users.remove("ann")
    assert client.get("/v1/files", **bearer(key)).status_code == 401


def test_what_is_kept_of_a_request_has_no_text(client, users, chat, tmp_path):
    key = users.add("ann")
    client.post("/v1/chat/completions", json=talk("Is this private?"), **bearer(key))
    client.get("/v1/files/file-secret", **bearer(key))
    client.get("/v1/files", **bearer("wrong"))
    kept = (chat.settings.folder / "audit.log").read_text()
    lines = [json.loads(line) for line in kept.splitlines()]
    assert [(line["user"], line["route"], line["status"]) for line in lines] == [
        ("ann", "/v1/chat/completions", 200), ("ann", "/v1/files", 404), ("nobody", "/v1/files", 401),
    ]  # fmt: skip
    assert "private" not in kept and "secret" not in kept and key not in kept


def test_limits_are_refused_by_name_and_with_the_time_to_wait(client, users, tmp_path):
    key = users.add("ann", Limits(documents=1, tokens_per_minute=10))
    first = {"file": ("one.txt", b"One. " * 50)}
    assert client.post("/v1/files", files=first, **bearer(key)).status_code == 200
    more = client.post("/v1/files", files={"file": ("two.txt", b"Two. " * 50)}, **bearer(key))
    assert more.status_code == 429 and "holds 1 documents" in more.json()["error"]["message"]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Who?"}], **ASK}
    assert client.post("/v1/chat/completions", json=body, **bearer(key)).status_code == 200
    again = client.post("/v1/chat/completions", json=body, **bearer(key))
    assert again.status_code == 429 and 1 <= int(again.headers["retry-after"]) <= 60


def test_tokens_are_forgotten_after_a_minute(monkeypatch):
    allowance, now = Allowance(Limits(tokens_per_minute=10)), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    allowance.spend(10)
    with pytest.raises(Exception, match="10 tokens a minute"):
        allowance.question()
    now[0] += 61
    allowance.question()


def test_many_answers_of_one_user_wait_and_then_are_told_to(client, users):
    key = users.add("ann", Limits(answers=1))
    assert client.post("/v1/chat/completions", json=talk("Who?"), **bearer(key)).status_code == 200
