"""The endpoint as OpenAI's own client sees it; `scripts/clients.py` asks the others too."""

import io
import threading

import openai
import pytest

from tests.api.test_routes import chat, client, endpoint  # noqa: F401  fixtures
from tests.api.test_reading import until
from tests.chat.opened import open_chat  # noqa: F401  a fixture

WORDS = b"The lighthouse is kept by Ann. " * 20
ASK = {"model": "tiny", "max_tokens": 6}


@pytest.fixture
def program(client):  # noqa: F811
    return openai.OpenAI(base_url="http://127.0.0.1:7860/v1", api_key="key", http_client=client, max_retries=1)


def said(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_a_stream_with_usage_and_a_second_turn_that_reuses(program):
    create = program.chat.completions.create
    parts = list(create(messages=said("Who?"), stream=True, stream_options={"include_usage": True}, **ASK))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    reply = create(messages=said("Who?", text, "And then?"), **ASK)
    cached = reply.usage.prompt_tokens_details.cached_tokens
    assert parts[-1].choices == [] and cached >= parts[-1].usage.total_tokens - 1


def test_a_file_and_a_question_about_it(program):
    file = program.files.create(file=("book.txt", io.BytesIO(WORDS)), purpose="user_data")
    content = [{"type": "text", "text": "Who keeps it?"}, {"type": "file", "file": {"file_id": file.id}}]
    reply = program.chat.completions.create(messages=said(content), **ASK)
    found = reply.choices[0].message.annotations
    assert {item.file_citation["file_id"] for item in found} == {file.id}
    assert program.files.wait_for_processing(file.id, poll_interval=0.05).status == "processed"
    assert [one.id for one in program.files.list()] == [file.id] and program.files.delete(file.id).deleted


def test_responses_whole_and_streamed(program):
    whole = program.responses.create(model="tiny", input="Who?", max_output_tokens=6)
    with program.responses.stream(model="tiny", input="Who?", max_output_tokens=6) as stream:
        kinds = [event.type for event in stream]
    assert whole.output_text is not None and kinds[0] == "response.created" and kinds[-1].startswith("response.")


def test_a_forced_tool_is_refused_and_another_one_left_alone(program):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    given = {"messages": said("Who?"), "tools": [tool], **ASK}
    assert program.chat.completions.create(**given).choices
    with pytest.raises(openai.BadRequestError, match="calls no tools"):
        program.chat.completions.create(tool_choice="required", **given)


def test_when_it_is_busy_the_client_waits_as_told_and_asks_again(program, endpoint):  # noqa: F811
    endpoint.queue.most = 0
    threading.Timer(0.5, lambda: setattr(endpoint.queue, "most", 32)).start()  # before the client's second try
    assert program.chat.completions.create(messages=said("Who?"), **ASK).choices


def test_a_stream_that_is_closed_frees_its_place(program, endpoint):  # noqa: F811
    stream = program.chat.completions.create(messages=said("Who?"), stream=True, model="tiny", max_tokens=30)
    next(iter(stream))
    stream.close()
    assert program.chat.completions.create(messages=said("Who?"), **ASK).choices
    until(lambda: endpoint.queue.lengths() == (0, 0))
