"""Ask a running Lectern through the real client libraries: python scripts/clients.py --url URL --key KEY

In an environment of its own:
    pip install openai langchain-openai llm litellm pydantic-ai-slim[openai]
    python launch.py serve --no-browser --model models/lectern-small    # prints the port
    python launch.py key

Each client asks a plain question, streams one with usage, and asks a second turn. With `openai` a file is uploaded and
asked about, responses are used, and tools are sent: ignored, or refused where one is forced. Prints one line for each
and, last, JSON. A client that is not installed is told, not failed.
"""

import argparse
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

TEXT = "The lighthouse of Skerry is kept by Ann Marlow. She has a dog named Piper.\n" * 3
QUESTION, SECOND = "Who keeps the lighthouse?", "And what is the dog called?"
MODEL, MOST = "lectern", 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="such as http://127.0.0.1:7860/v1")
    parser.add_argument("--key", required=True)
    args = parser.parse_args()
    found = []
    for name, checks in CLIENTS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")
            continue
        for check in checks:
            found.append({"client": name, "version": version, "feature": check.__name__.split("_", 1)[1]})
            try:
                found[-1] |= {"works": True, "seen": check(args.url, args.key)}
            except Exception as error:  # whatever a library raises is what is looked for
                found[-1] |= {"works": False, "seen": f"{type(error).__name__}: {error}"[:300]}
            print(" ".join(str(found[-1][key]) for key in ("client", "version", "feature", "works", "seen")))
    print(json.dumps(found))
    return 0 if found and all(row["works"] for row in found) else 1


def _openai(url: str, key: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=url, api_key=key, max_retries=2)


def _messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def openai_plain(url: str, key: str) -> str:
    reply = _openai(url, key).chat.completions.create(model=MODEL, messages=_messages(QUESTION), max_tokens=MOST)
    return f"{reply.usage.total_tokens} tokens"


def openai_stream(url: str, key: str) -> str:
    parts = list(
        _openai(url, key).chat.completions.create(
            model=MODEL, messages=_messages(QUESTION), max_tokens=MOST, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert parts[-1].usage.total_tokens and not parts[-1].choices
    return f"{len(parts)} chunks, {parts[-1].usage.total_tokens} tokens"


def openai_turns(url: str, key: str) -> str:
    client = _openai(url, key)
    first = client.chat.completions.create(model=MODEL, messages=_messages(QUESTION), max_tokens=MOST)
    talk = _messages(QUESTION, first.choices[0].message.content or "-", SECOND)
    second = client.chat.completions.create(model=MODEL, messages=talk, max_tokens=MOST)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached > 0
    return f"{cached} of {second.usage.prompt_tokens} tokens reused"


def openai_file(url: str, key: str) -> str:
    client = _openai(url, key)
    file = client.files.create(file=("skerry.txt", io.BytesIO(TEXT.encode())), purpose="user_data")
    reply = client.chat.completions.create(
        model=MODEL, messages=_messages(QUESTION), max_tokens=MOST, extra_body={"documents": [file.id]}
    )
    again = client.chat.completions.create(model=f"{MODEL}:{file.id.removeprefix('file-')}",
                                           messages=_messages(SECOND), max_tokens=MOST)  # fmt: skip
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert reply.choices[0].message.annotations and cached > 20
    return f"{len(reply.choices[0].message.annotations)} passages, then {cached} tokens reused"


def openai_responses(url: str, key: str) -> str:
    client = _openai(url, key)
    whole = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=MOST)
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=MOST) as stream:
        kinds = [event.type for event in stream]
    return f"{whole.status}, {len(kinds)} events, last {kinds[-1]}"


def openai_tools(url: str, key: str) -> str:
    from openai import BadRequestError

    client = _openai(url, key)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    given = {"model": MODEL, "messages": _messages(QUESTION), "max_tokens": MOST, "tools": [tool]}
    assert client.chat.completions.create(**given).choices
    try:
        client.chat.completions.create(**given, tool_choice="required")
    except BadRequestError as error:
        return f"ignored; forced: {error.body['message'][:60]}"
    raise AssertionError("a forced tool was not refused")


def openai_cancel(url: str, key: str) -> str:
    client = _openai(url, key)
    stream = client.chat.completions.create(model=MODEL, messages=_messages(QUESTION), max_tokens=500, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=MODEL, messages=_messages(QUESTION), max_tokens=MOST).choices
    return "the next one was answered"


def langchain_plain(url: str, key: str) -> str:
    from langchain_openai import ChatOpenAI

    reply = ChatOpenAI(base_url=url, api_key=key, model=MODEL, max_tokens=MOST).invoke(QUESTION)
    return str(reply.usage_metadata)


def langchain_stream(url: str, key: str) -> str:
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=url, api_key=key, model=MODEL, max_tokens=MOST)
    whole = None
    for part in chat.stream([("system", "Be brief."), ("user", QUESTION)]):
        whole = part if whole is None else whole + part
    assert whole.usage_metadata["total_tokens"] < 2000
    return str(whole.usage_metadata)


def litellm_plain(url: str, key: str) -> str:
    import litellm

    reply = litellm.completion(f"openai/{MODEL}", _messages(QUESTION), base_url=url, api_key=key, max_tokens=MOST)
    return f"{reply.usage.total_tokens} tokens"


def litellm_stream(url: str, key: str) -> str:
    import litellm

    parts = list(litellm.completion(f"openai/{MODEL}", _messages(QUESTION), base_url=url, api_key=key, max_tokens=MOST,
                                    stream=True))  # fmt: skip
    built = litellm.stream_chunk_builder(parts)
    return f"{len(parts)} chunks, {built.usage.prompt_tokens} prompt tokens"


def pydantic_plain(url: str, key: str) -> str:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=url, api_key=key))
    settings = {"max_tokens": MOST}
    agent = Agent(model, instructions="Be brief.", system_prompt="You are a keeper.", model_settings=settings)
    first = agent.run_sync(QUESTION)
    second = agent.run_sync(SECOND, message_history=first.all_messages())
    return f"two turns, {second.usage.cache_read_tokens} tokens reused in the second"


def llm_plain(url: str, key: str) -> str:
    import llm
    from llm.default_plugins.openai_models import Chat

    model = Chat(MODEL, model_name=MODEL, api_base=url)
    model.key = key
    os.environ.setdefault("LLM_USER_PATH", os.path.join(os.getcwd(), "llm-home"))
    talk = llm.Conversation(model=model)
    first = talk.prompt(QUESTION, stream=True, max_tokens=MOST)
    text = first.text()
    second = talk.prompt(SECOND, stream=False, max_tokens=MOST)
    second.text()
    return f"{len(text)} characters, then {second.usage()}"


CLIENTS: dict[str, list[Callable[[str, str], str]]] = {
    "openai": [openai_plain, openai_stream, openai_turns, openai_file, openai_responses, openai_tools, openai_cancel],
    "langchain-openai": [langchain_plain, langchain_stream],
    "litellm": [litellm_plain, litellm_stream],
    "pydantic-ai-slim": [pydantic_plain],
    "llm": [llm_plain],
}

if __name__ == "__main__":
    sys.exit(main())
