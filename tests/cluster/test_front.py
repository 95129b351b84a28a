"""The ingress over two replicas with stores of their own, in one process: Ray is not needed for any of it."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.api.routes import MOST_WAITING
from app.cluster.bridge import Head, Request, answered
from app.cluster.engine import Engine, folder
from app.cluster.front import Front, GoneError
from app.cluster.placement import ranked
from app.settings import SMALL_MODEL, Settings

TWO = {"0": 1.0, "1": 1.0}
LIMIT = {"max_tokens": 6}


class Local:
    """A replica in this process that can be made to die after some parts of an answer."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.parts_left, self.asked, self.copies = engine, None, [], []

    async def ask(self, request: Request) -> AsyncGenerator[Head | bytes, None]:
        self.asked.append(request.path)
        async with aclosing(self.engine.ask(request)) as parts:
            async for part in parts:
                if self.parts_left is not None:
                    self.parts_left -= 1
                    if self.parts_left < 0:
                        raise GoneError("gone")
                yield part

    async def documents(self):
        return await self.engine.documents()

    async def find(self, name: str) -> str | None:
        return await self.engine.find(name)

    async def copy(self, document: str, to: "Local") -> None:
        self.copies.append(document)
        await to.engine.take(document, self.engine.give(document))


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> Iterator[dict[str, Engine]]:
    settings = Settings(home=tmp_path_factory.mktemp("cluster"), model=str(SMALL_MODEL), threads=1)
    made = {name: Engine(name, settings) for name in TWO}
    yield made
    for engine in made.values():
        engine.close()


@pytest.fixture
def replicas(engines) -> dict[str, Local]:
    return {name: Local(engine) for name, engine in engines.items()}


@pytest.fixture
def front(replicas) -> Front:
    return Front(replicas)


@pytest.fixture
def client(front) -> Iterator[TestClient]:
    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        await front.look()
        yield

    app = Starlette(routes=[Mount("/", front)], lifespan=life)
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        client.front = front
        yield client


def upload(client: TestClient, name: str, words: str) -> str:
    text = " ".join(f"{words} {number}" for number in range(120))
    answer = client.post("/v1/files", files={"file": (f"{name}.txt", text.encode())}, data={"purpose": "user_data"})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"].removeprefix("file-")


def somewhere(client: TestClient, replica: str, words: str) -> str:
    """A document that lives on this replica."""
    for number in range(40):
        id = upload(client, f"{words}{number}", f"{words}{number}")
        if client.front.catalog.holders(id) == (replica,):
            return id
    raise AssertionError


def ask(client: TestClient, *contents: str, path: str = "/v1/chat/completions", **more) -> httpx.Response:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return client.post(path, json={"model": "lectern", "messages": messages, **LIMIT, **more})


def chats(engine: Engine) -> int:
    return len(engine.chat.saved.chats())


def test_folders_of_replicas_lie_in_the_library_of_the_first(tmp_path):
    assert folder(tmp_path, "0") == tmp_path and folder(tmp_path, "3") == tmp_path / "replicas" / "3"


def test_a_document_goes_where_its_bytes_rank_first_and_is_found_there(client, front, engines):
    for replica in TWO:
        id = somewhere(client, replica, f"place{replica}")
        assert front.catalog.holders(id) == (replica,)
        assert [info.id for info in engines[replica].chat.library.documents() if info.id == id] == [id]
        assert client.get(f"/v1/files/file-{id}").json()["id"] == f"file-{id}"
        assert f"lectern-small:{id}" in [model["id"] for model in client.get("/v1/models").json()["data"]]
        listed = [file["id"] for file in client.get("/v1/files").json()["data"]]
        assert listed.count(f"file-{id}") == 1


@pytest.mark.parametrize("replica", sorted(TWO))
def test_a_talk_goes_to_its_document_turn_after_turn(client, engines, replica):
    id = somewhere(client, replica, f"talk{replica}")
    before = {name: chats(engine) for name, engine in engines.items()}
    first = ask(client, "Who?", documents=[id]).json()
    said = first["choices"][0]["message"]["content"]
    second = ask(client, "Who?", said, "And then?", model=f"lectern:{id}").json()
    assert second["lectern"]["chat"] == first["lectern"]["chat"]
    usage = second["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] - 40
    after = {name: chats(engine) - before[name] for name, engine in engines.items()}
    assert after == {name: int(name == replica) for name in TWO}


def test_documents_of_two_replicas_in_one_question_come_together(client, front, replicas, engines):
    here, there = somewhere(client, "0", "left"), somewhere(client, "1", "right")
    assert ask(client, "Warm?", documents=[there]).status_code == 200  # it is read now
    reply = ask(client, "Both?", documents=[here, there])
    assert reply.status_code == 200 and replicas["1"].copies == [there]
    assert set(front.catalog.holders(there)) == {"0", "1"}
    copy = engines["0"].chat.library.document(there)
    assert copy.id == there and copy.state == "read"
    again = ask(client, "Once more?", documents=[here, there]).json()
    assert replicas["1"].copies == [there] and again["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert client.delete(f"/v1/files/{there}").json()["deleted"] is True
    assert all(there not in [info.id for info in engine.chat.library.documents()] for engine in engines.values())
    assert client.get(f"/v1/files/{there}").status_code == 404


def test_a_copy_that_was_read_elsewhere_is_not_read_again(client, front, engines):
    id = somewhere(client, "0", "hot")
    first = ask(client, "Read it?", documents=[id]).json()
    assert first["usage"]["prompt_tokens"] > 200
    asyncio.run(front.copy(id, "1"))
    done = list(engines["1"].chat.ask("What?", documents=[id]))[-1]
    other = list(engines["0"].chat.ask("What?", documents=[id]))[-1]
    assert done.answer == other.answer and done.stats.tokens_read < 40
    assert engines["1"].chat.store.verify().damaged == []


def test_the_catalog_is_made_from_what_the_replicas_hold(client, front, replicas):
    id = somewhere(client, "1", "known")
    fresh = Front(replicas)
    asyncio.run(fresh.look())
    assert fresh.catalog.holders(id) == front.catalog.holders(id)
    assert fresh.catalog.held("1") == pytest.approx(front.catalog.held("1"), rel=0.01)


def test_one_that_held_nothing_at_the_start_gets_what_ranks_it_first(engines, tmp_path):
    settings = engines["0"].chat.settings
    new = Engine("2", settings)
    try:
        three = {**{name: Local(engine) for name, engine in engines.items()}, "2": Local(new)}
        front = Front(three)

        async def run() -> None:
            await front.look()
            await front.settle()

        asyncio.run(run())
        held = {info.id for info in new.chat.library.documents()}
        every = {info.id for engine in engines.values() for info in engine.chat.library.documents()}
        assert held == {id for id in every if ranked(id, dict.fromkeys("012", 1.0))[0] == "2"} and held
        assert all(front.catalog.holders(id)[0] == "2" for id in held)
    finally:
        new.close()


def test_what_is_wrong_is_told_before_a_replica_is_asked(client, replicas):
    assert ask(client, n=2).status_code == 400
    assert client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert client.post("/v1/responses", json={"model": "lectern", "input": []}).status_code == 400
    assert all(replica.asked == [] for replica in replicas.values())
    assert ask(client, "Who?", documents=["nobody"]).status_code == 404
    assert client.post("/v1/files", data={"purpose": "user_data"}).status_code == 400


def test_files_in_a_message_go_to_their_home_and_stay_there(client, engines):
    import base64

    data = base64.b64encode(b"A letter about the harbour. " * 30).decode()
    file = {"type": "file", "file": {"filename": "letter.txt", "file_data": data}}
    content = [{"type": "text", "text": "What is it about?"}, file]
    before = {name: chats(engine) for name, engine in engines.items()}
    said = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **LIMIT})
    assert said.status_code == 200
    turns = [{"role": "user", "content": content}, said.json()["choices"][0]["message"],
             {"role": "user", "content": "And then?"}]  # fmt: skip
    again = client.post("/v1/chat/completions", json={"messages": turns, **LIMIT})
    assert again.json()["lectern"]["chat"] == said.json()["lectern"]["chat"]
    assert sorted(chats(engine) - before[name] for name, engine in engines.items()) == [0, 1]


def test_a_replica_that_dies_before_an_answer_is_told_with_503(client, replicas, front):
    id = somewhere(client, "1", "mortal")
    replicas["1"].parts_left = 0
    reply = ask(client, "Who?", documents=[id])
    assert reply.status_code == 503 and 0 < int(reply.headers["retry-after"]) <= 120
    assert "another takes its place" in reply.json()["error"]["message"]
    assert len(front.gates["1"]) == 0
    replicas["1"].parts_left = None
    assert ask(client, "Who?", documents=[id]).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_stream_of_a_replica_that_dies_ends_with_an_error(client, replicas, front, path):
    id = somewhere(client, "1", "stream" + path[-4:])
    body = {"messages": [{"role": "user", "content": "Who?"}], "input": "Who?", "documents": [id], "stream": True}
    replicas["1"].parts_left = 2
    text = client.post(path, json=body).text
    last = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")][-1]
    assert "[DONE]" not in text and "another takes its place" in json.dumps(last)
    assert ("error" in last) if path.endswith("completions") else (last["type"] == "response.failed")
    assert len(front.gates["1"]) == 0
    replicas["1"].parts_left = None
    assert ask(client, "Who?", documents=[id]).status_code == 200  # no half turn is in the way


def test_metrics_say_whose_they_are(client):
    text = client.get("/metrics").text
    assert 'lectern_ready{replica="0"} 1.0' in text and 'lectern_ready{replica="1"} 1.0' in text
    assert text.count("# TYPE lectern_ready ") == 1


def test_ready_only_when_all_replicas_are(client, replicas):
    assert client.get("/ready").status_code == 200
    replicas["1"].parts_left = 0
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200


def test_other_paths_belong_to_the_page(client, replicas):
    client.get("/config")
    assert replicas["0"].asked == ["/config"] and replicas["1"].asked == []


def test_too_many_are_told_with_503_and_those_who_go_give_their_place_back(replicas):
    async def run() -> None:
        front = Front(replicas)
        async with front.gates["0"].closed(), front.gates["1"].closed():
            body = json.dumps({"messages": [{"role": "user", "content": "Who?"}], "documents": []}).encode()
            gone = asyncio.Event()
            calls = [asyncio.create_task(call(front, body, gone)) for _ in range(2 * MOST_WAITING)]
            while sum(map(len, front.gates.values())) < MOST_WAITING:
                await asyncio.sleep(0.01)
            statuses = [await call(front, body, gone) for _ in range(2)]
            full = [name for name in TWO if len(front.gates[name]) == MOST_WAITING]
            assert full and statuses == [503, 503]
            gone.set()
            await asyncio.gather(*calls)
            assert sum(map(len, front.gates.values())) == 0

    asyncio.run(run())


async def call(front: Front, body: bytes, gone: asyncio.Event) -> int | None:
    """The status of an answer; None when the client went before."""
    statuses, sent = [], [{"type": "http.request", "body": body}]
    scope = Request("POST", "/v1/chat/completions").scope

    async def receive():
        if sent:
            return sent.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message) -> None:
        statuses.append(message.get("status"))

    await front(scope, receive, send)
    return statuses[0] if statuses else None


def test_replicas_are_restarted_one_by_one(replicas):
    async def run() -> list[str]:
        front, seen = Front(replicas), []

        async def again(name: str) -> None:
            assert front.gates[name].line.held and sum(gate.line.held for gate in front.gates.values()) == 1
            seen.append(name)

        await front.restart(again)
        return seen

    assert asyncio.run(run()) == ["0", "1"]


def test_an_app_learns_that_its_client_has_gone():
    heard = []

    async def app(scope, receive, send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):  # more than fits between
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        heard.append((await receive())["type"])

    async def run() -> None:
        parts = answered(app, Request("GET", "/"))
        assert await anext(parts) == Head(200, ()) and await anext(parts) == b"x"
        await parts.aclose()
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert heard == ["http.disconnect"]


def test_an_error_of_an_app_comes_out():
    async def app(scope, receive, send) -> None:
        raise RuntimeError("inside")

    async def run() -> None:
        with pytest.raises(RuntimeError, match="inside"):
            await anext(answered(app, Request("GET", "/")))

    asyncio.run(run())
