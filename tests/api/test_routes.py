"""OpenAI's protocol over a real store and a tiny model."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.api import schema
from app.api.errors import ApiError, told
from app.api.messages import read_messages
from app.api.routes import Asker, Endpoint
from app.errors import CancelledError
from app.memory.config import GenerationConfig
from tests.chat.opened import open_chat, write  # noqa: F401  a fixture

ASK = {"max_tokens": 6}


@pytest.fixture
def chat(open_chat):  # noqa: F811
    return open_chat()


@pytest.fixture
def endpoint(chat):
    made = Endpoint(chat)
    yield made
    made.reading.close()


@pytest.fixture
def client(endpoint):
    app = FastAPI()
    app.include_router(endpoint.router())
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


def talk(*contents, **more):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"model": "tiny", "messages": messages, **ASK, **more}


def post(client, body, path="/v1/chat/completions"):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client, body, path="/v1/chat/completions"):
    answer = client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(part) if part != "[DONE]" else part for part in data]


def added(client, folder, name="book.txt"):
    path = write(folder, name)
    answer = client.post("/v1/files", files={"file": (name, path.read_bytes())}, data={"purpose": "user_data"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_models_are_the_loaded_one_and_each_document(client, tmp_path):
    file = added(client, tmp_path)
    listed = client.get("/v1/models").json()
    document = file["id"].removeprefix("file-")
    assert [model["id"] for model in listed["data"]] == ["tiny", f"tiny:{document}"]
    assert client.get(f"/v1/models/tiny:{document}").json()["object"] == "model"
    assert client.get("/v1/models/gone").status_code == 404


def test_a_whole_answer(client):
    reply = post(client, talk("Who?"))
    assert reply["object"] == "chat.completion" and reply["model"] == "tiny"
    message, usage = reply["choices"][0]["message"], reply["usage"]
    assert message["role"] == "assistant" and isinstance(message["content"], str)
    assert reply["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("asked", [False, True])
def test_a_stream_says_the_same_and_its_usage_once(client, asked):
    whole = post(client, talk("Who?"))["choices"][0]["message"]["content"]
    options = {"stream_options": {"include_usage": True}} if asked else {}
    *parts, end = events(client, talk("Who?", **options))
    assert end == "[DONE]" and all("choices" in part for part in parts)
    text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
    assert text.strip() == whole.strip()
    finish = [part for part in parts if part["choices"] and part["choices"][0]["finish_reason"]]
    counted = [part for part in parts if part.get("usage")]
    assert len(finish) == len(counted) == 1
    assert (counted[0]["choices"] == []) is asked and (counted[0] is finish[0]) is not asked


def test_a_stateless_client_has_its_turns_read_once(client, tmp_path, chat):
    file = added(client, tmp_path)
    documents = {"documents": [file["id"]]}
    first = post(client, talk("Who?", **documents))
    answer = first["choices"][0]["message"]["content"]
    second = post(client, talk("Who?", answer, "And then?", **documents))
    third_turn = second["choices"][0]["message"]["content"]
    details = second["usage"]["prompt_tokens_details"]
    before = first["usage"]["total_tokens"]
    assert details["cached_tokens"] >= before - 1 and len(chat.saved.chats()) == 1
    # a changed early turn is read from there, and the first chat stays as it is
    changed = post(client, talk("Who?", "Somebody else.", "And then?", **documents))
    usage = changed["usage"]
    read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    assert len("Who?Somebody else.And then?") <= read < 100 and len(chat.saved.chats()) == 2  # a letter is a token
    assert [m.content for m in chat.saved.messages(first["lectern"]["chat"])][-1] == third_turn
    forked = chat.saved.messages(changed["lectern"]["chat"])
    assert [m.content for m in forked][:3] == ["Who?", "Somebody else.", "And then?"]


def test_turns_that_were_had_elsewhere_are_run_as_if_answered_here(client, chat):
    turns = [("user", "Who?", {}, ()), ("assistant", "Ann.", {}, ())]
    id = chat.saved.new_chat()
    chat.store.import_messages(id, turns, None)  # of a chat without memory all turns are run again
    *_, done = chat.ask("And then?", chat=id, generation=GenerationConfig(max_new_tokens=6))
    chat.saved.delete_chat(id)
    assert post(client, talk("Who?", "Ann.", "And then?"))["choices"][0]["message"]["content"] == done.answer


def test_system_text_takes_the_place_of_the_models_own(client, chat):
    body = talk("Who?")
    body["messages"].insert(0, {"role": "system", "content": "Speak like a sailor."})
    reply = post(client, body)
    assert chat.saved.chat(reply["lectern"]["chat"]).system == "Speak like a sailor."
    assert reply["usage"]["prompt_tokens"] > post(client, talk("Who?"))["usage"]["prompt_tokens"]


@pytest.mark.parametrize("name", ["documents", "model", "part", "data"])
def test_documents_are_named_in_four_ways(client, tmp_path, name):
    import base64

    file = added(client, tmp_path)
    body = talk("Who?")
    if name == "documents":
        body["documents"] = [file["id"]]
    elif name == "model":
        body["model"] = f"tiny:{file['id'].removeprefix('file-')}"
    else:
        data = base64.b64encode((tmp_path / "book.txt").read_bytes()).decode()
        part = {"file_id": file["id"]} if name == "part" else {"filename": "book.txt", "file_data": data}
        body["messages"][0]["content"] = [{"type": "file", "file": part}, {"type": "text", "text": "Who?"}]
    reply = post(client, body)
    found = reply["choices"][0]["message"]["annotations"]
    assert found and {item["file_citation"]["file_id"] for item in found} == {file["id"]}
    assert found[0]["type"] == "url_citation" and found[0]["url_citation"]["title"].startswith("book, ")
    assert found[0]["file_citation"]["filename"] == "book" and found[0]["file_citation"]["label"]


def test_a_file_is_read_in_the_background_and_its_status_told(client, tmp_path):
    file = added(client, tmp_path)
    assert file["object"] == "file" and file["bytes"] > 1000 and file["purpose"] == "user_data"
    until = time.monotonic() + 30
    while client.get(f"/v1/files/{file['id']}").json()["status"] == "uploaded" and time.monotonic() < until:
        time.sleep(0.05)
    assert client.get(f"/v1/files/{file['id']}").json()["status"] == "processed"
    reply = post(client, talk("Who?", documents=[file["id"]]))
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= file["lectern"]["tokens"]
    assert [f["id"] for f in client.get("/v1/files").json()["data"]] == [file["id"]]
    assert client.delete(f"/v1/files/{file['id']}").json()["deleted"] is True
    assert client.get(f"/v1/files/{file['id']}").status_code == 404


def test_responses_whole_and_streamed(client):
    body = {"model": "tiny", "input": "Who?", "instructions": "Be brief.", "max_output_tokens": 6}
    whole = post(client, body, "/v1/responses")
    message = whole["output"][0]
    assert (whole["object"], message["type"]) == ("response", "message")
    assert whole["status"] in ("completed", "incomplete")
    assert whole["usage"]["input_tokens_details"] == {"cached_tokens": 0}
    stream = events(client, body, "/v1/responses")
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    assert (stream[0]["type"], stream[-1]["type"]) == ("response.created", f"response.{whole['status']}")
    deltas = "".join(e["delta"] for e in stream if e["type"] == "response.output_text.delta")
    last = stream[-1]["response"]["output"][0]["content"][0]["text"]
    assert deltas.strip() == message["content"][0]["text"].strip() == last


def test_a_response_by_the_id_of_another_is_refused(client):
    body = {"model": "tiny", "input": "Who?", "previous_response_id": "resp_1"}
    answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 400 and "send the turns in input" in answer.json()["error"]["message"]


def test_completions(client):
    body = {"model": "tiny", "prompt": "Who?", **ASK}
    reply = post(client, body, "/v1/completions")
    *parts, end = events(client, body, "/v1/completions")
    assert reply["object"] == "text_completion" and end == "[DONE]"
    assert "".join(part["choices"][0]["text"] for part in parts).strip() == reply["choices"][0]["text"].strip()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 2}, "n = 2: one answer"),
        ({"tool_choice": "required", "tools": [{}]}, "tool_choice = 'required': the loaded model calls no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format = 'json_object'"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"temperature": 9}, "temperature"),
        ({"messages": []}, "messages"),
        ({"stop": 3}, "stop"),
        ({"policy": "magic"}, "magic"),
        ({"documents": ["gone"]}, "gone"),
        ({"focus": ["nowhere"]}, "nowhere"),
        ({"model": "gpt-9"}, "'gpt-9': is not loaded; 'tiny' is"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_before_anything_is_sent(client, chat, change, words):
    answer = client.post("/v1/chat/completions", json={**talk("Who?"), **change, "stream": True})
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert words in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert chat.saved.chats() == []


@pytest.mark.parametrize("change", [{"tools": [{"type": "function"}], "tool_choice": "auto"}, {"user": "u", "odd": 1}])
def test_what_is_not_known_is_left_alone(client, change):
    assert post(client, talk("Who?", **change))["choices"]


@pytest.mark.parametrize("body", ["no json", "[]", "3"])
def test_a_body_that_is_no_request(client, body):
    answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400 and "body" in answer.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_again(client, endpoint):
    endpoint.queue.most = 0
    answer = client.post("/v1/chat/completions", json=talk("Who?"))
    assert answer.status_code == 503 and 1 <= int(answer.headers["retry-after"]) <= 120


def test_while_the_page_answers_a_client_waits(client, chat):
    began = threading.Event()

    def hold():
        with chat.jobs.claim("answering"):
            began.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    began.wait()
    assert post(client, talk("Who?"))["choices"]
    thread.join()


def test_a_client_that_waits_too_long_is_told(client, chat, endpoint):
    endpoint.queue.wait_s = 0.2
    with chat.jobs.claim("answering"):
        answer = client.post("/v1/chat/completions", json=talk("Who?"))
    assert answer.status_code == 503 and "busy: answering" in answer.json()["error"]["message"]
    assert chat.saved.chats() == []


def test_log_probabilities_of_each_token_in_the_three_shapes(client):
    body = talk("Who?", logprobs=True, top_logprobs=2)
    whole = post(client, body)
    scored = whole["choices"][0]["logprobs"]["content"]
    assert len(scored) == whole["usage"]["completion_tokens"] and all(len(s["top_logprobs"]) == 2 for s in scored)
    assert "".join(s["token"] for s in scored).strip() == whole["choices"][0]["message"]["content"]
    for s in scored:  # greedy: the token that was taken is the likeliest
        assert s["logprob"] == s["top_logprobs"][0]["logprob"] >= s["top_logprobs"][1]["logprob"] and s["logprob"] < 0
    *parts, _ = events(client, body)
    assert [p["choices"][0]["logprobs"] for p in parts if p["choices"] and p["choices"][0]["logprobs"]] == [
        whole["choices"][0]["logprobs"]
    ]
    text = post(client, {"model": "tiny", "prompt": "Who?", "logprobs": 2, **ASK}, "/v1/completions")["choices"][0]
    assert text["logprobs"]["token_logprobs"] == [s["logprob"] for s in scored]
    assert text["logprobs"]["text_offset"][0] == 0 and len(text["logprobs"]["top_logprobs"]) == len(scored)
    asked = {"model": "tiny", "input": "Who?", "include": ["message.output_text.logprobs"], "max_output_tokens": 6}
    part = post(client, asked, "/v1/responses")["output"][0]["content"][0]
    assert [s["logprob"] for s in part["logprobs"]] == [s["logprob"] for s in scored]
    assert post(client, talk("Who?"))["choices"][0]["logprobs"] is None


def test_an_answer_that_is_stopped_on_the_page_does_not_pass_for_whole(client, chat, endpoint):
    asked = iter(endpoint._events(schema.read(schema.ChatBody, talk("Who?")), read_messages(talk("Who?")["messages"]),
                                  Asker()))  # fmt: skip
    next(asked)
    chat.jobs.stop()
    with pytest.raises(CancelledError, match="was stopped"):
        list(asked)
    assert told(CancelledError("stopped")).status == 503


def test_metrics_count_answers_and_tokens_and_tell_the_queue_and_memory(client, endpoint):
    first = post(client, talk("Who?"))
    second = post(client, talk("Who?", first["choices"][0]["message"]["content"], "And then?"))
    assert client.post("/v1/chat/completions", json=talk("Who?", n=2)).status_code == 400
    assert client.post("/v1/chat/completions", json=talk("Who?", documents=["gone"])).status_code == 404
    lines = dict(line.rsplit(" ", 1) for line in endpoint.metrics.text().decode().splitlines() if line[0] != "#")
    usages = [reply["usage"] for reply in (first, second)]
    reused = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert float(lines['lectern_tokens_total{kind="reused"}']) == reused > 0
    assert float(lines['lectern_tokens_total{kind="said"}']) == sum(u["completion_tokens"] for u in usages)
    assert float(lines['lectern_tokens_total{kind="read"}']) == sum(u["prompt_tokens"] for u in usages) - reused
    assert lines['lectern_answers_total{ended="refused"}'] == "1.0"  # what is no request never came so far
    assert lines["lectern_first_token_seconds_count"] == "2.0" and lines["lectern_ready"] == "1.0"
    assert lines["lectern_answers_waiting"] == lines["lectern_answers_running"] == "0.0"
    assert float(lines['lectern_memory_bytes{tier="disk"}']) > 0


def test_clients_are_answered_beside_each_other_each_in_a_chat_of_its_own(client, chat):
    alone = post(client, talk("Who?"))["choices"][0]["message"]["content"]
    turns = [talk("Who?"), talk("Who?", alone, "And then?")] * 3
    with ThreadPoolExecutor(len(turns)) as pool:
        replies = list(pool.map(lambda body: post(client, body), turns))
    assert {reply["choices"][0]["message"]["content"] for reply in replies[::2]} == {alone}
    assert len({reply["choices"][0]["message"]["content"] for reply in replies[1::2]}) == 1
    chats = [reply["lectern"]["chat"] for reply in replies]
    assert len(set(chats)) == len(chats)
    for body, id in zip(turns, chats, strict=True):
        assert [m.content for m in chat.saved.messages(id)][:-1] == [m["content"] for m in body["messages"]]


@pytest.mark.parametrize("contents", [("Who?",), ("Who?", "Ann. " * 200, "And then?")])
def test_the_work_for_a_client_that_has_gone_ends(client, chat, endpoint, contents):
    """In its place in the queue, while its earlier turns are run, and while its question is."""
    body, asker = talk(*contents), Asker()
    asked = endpoint._events(schema.read(schema.ChatBody, body), read_messages(body["messages"]), asker)
    ran, run = [], chat.model.engine().forward

    def forward(cache, token_ids):
        asker.leave()  # at the first segment
        ran.append(len(token_ids))
        return run(cache, token_ids)

    chat.model.engine().forward = forward
    with suppress(CancelledError, ApiError):
        assert list(asked) == []
    assert ran[1:] in ([], [1, 1]) and endpoint.queue.lengths() == (0, 0) and chat.jobs.busy() is None
    before = len(ran)
    late = Asker()
    late.leave()
    with pytest.raises(ApiError, match="has gone"):
        list(endpoint._events(schema.read(schema.ChatBody, body), read_messages(body["messages"]), late))
    assert len(ran) == before
