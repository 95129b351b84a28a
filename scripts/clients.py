"""Ask a running Lectern through the real client libraries: python scripts/clients.py --url URL --key KEY

In an environment of its own, aider in another one, since it pins what others need newer:
    pip install openai langchain-openai llm litellm pydantic-ai-slim[openai]      pip install aider-chat
    python launch.py serve --no-browser --model models/lectern-small    # prints the port
    python launch.py key

Each client asks a plain question, streams one, asks a second turn, asks about a file, sends a tool, is told 503 once,
and leaves in the middle of a stream. Between them and Lectern stands a server that passes everything on, says 503 when
it is told to, and notes which tokens were reused. Prints one line for each and writes benchmarks/results/clients.json,
where clients that are not installed here stay as they are.
"""

import argparse
import asyncio
import http.client
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import machine  # noqa: E402

TEXT = "The lighthouse of Skerry is kept by Ann Marlow. She has a dog named Piper.\n" * 3
QUESTION, SECOND = "Who keeps the lighthouse?", "And what is the dog called?"
MODEL, MOST = "lectern", 8
TOOL = {"type": "function", "function": {"name": "look", "description": "Look at the sea.",
                                         "parameters": {"type": "object", "properties": {}}}}  # fmt: skip


class Between(ThreadingHTTPServer):
    """Passes requests on.

    Attributes:
        refuse: so many of the next requests are told 503.
        cached: tokens that the last answer said were reused; refused: how often 503 was told.
    """

    daemon_threads = True

    def __init__(self, to: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.to = urlsplit(to)
        self.refuse = self.refused = self.cached = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{self.to.path}"


class _Passing(BaseHTTPRequestHandler):
    server: Between

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuse:
            self.server.refuse -= 1
            self.server.refused += 1
            self.send_response(503)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        to = http.client.HTTPConnection(self.server.to.netloc, timeout=300)
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        to.request("POST", self.path, body, headers)
        answer = to.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        with closing(to):
            while part := answer.read1(1 << 16):
                if found := re.findall(rb'"cached_tokens": ?(\d+)', part):
                    self.server.cached = int(found[-1])
                self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


# --- one class for each client: `ask` gives (text, reused tokens as the client shows them), `pieces` a stream


class OpenAi:
    package = "openai"

    def __init__(self, url: str, key: str) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=url, api_key=key)

    def ask(
        self, texts: list[str], *, stream: bool = False, model: str = MODEL, tools: bool = False
    ) -> tuple[str, Any]:
        given = {"model": model, "messages": _messages(texts), "max_tokens": MOST} | (
            {"tools": [TOOL]} if tools else {}
        )
        if not stream:
            reply = self.client.chat.completions.create(**given)
            return reply.choices[0].message.content, reply.usage.prompt_tokens_details.cached_tokens
        parts = list(self.client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        return text, parts[-1].usage.prompt_tokens_details.cached_tokens

    def pieces(self, text: str) -> Iterator[Any]:
        stream = self.client.chat.completions.create(
            model=MODEL, messages=_messages([text]), max_tokens=400, stream=True
        )
        with closing(stream):
            yield from stream


class OpenAiResponses(OpenAi):
    package, form = "openai", "responses"

    def ask(
        self, texts: list[str], *, stream: bool = False, model: str = MODEL, tools: bool = False
    ) -> tuple[str, Any]:
        given: dict[str, Any] = {"model": model, "input": _messages(texts), "max_output_tokens": MOST}
        given |= {"tools": [{"type": "function", **TOOL["function"]}]} if tools else {}
        if stream:
            with self.client.responses.stream(**given) as events:
                reply = next(event.response for event in events if event.type in ("response.completed",
                                                                                  "response.incomplete"))  # fmt: skip
        else:
            reply = self.client.responses.create(**given)
        return reply.output_text, reply.usage.input_tokens_details.cached_tokens

    def pieces(self, text: str) -> Iterator[Any]:
        with closing(
            self.client.responses.create(model=MODEL, input=text, max_output_tokens=400, stream=True)
        ) as stream:
            yield from stream


class LangChain:
    package = "langchain-openai"

    def __init__(self, url: str, key: str) -> None:
        self.given = {"base_url": url, "api_key": key}

    def _chat(self, model: str = MODEL, tokens: int = MOST) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(**self.given, model=model, max_tokens=tokens)

    def ask(
        self, texts: list[str], *, stream: bool = False, model: str = MODEL, tools: bool = False
    ) -> tuple[str, Any]:
        chat = self._chat(model).bind_tools([TOOL]) if tools else self._chat(model)
        said = [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
        reply = None
        for part in chat.stream(said) if stream else [chat.invoke(said)]:
            reply = part if reply is None else reply + part
        return reply.content, reply.usage_metadata["input_token_details"].get("cache_read")

    def pieces(self, text: str) -> Iterator[Any]:
        with closing(self._chat(tokens=400).stream(text)) as stream:
            yield from stream


class LiteLlm:
    package = "litellm"

    def __init__(self, url: str, key: str) -> None:
        self.given = {"base_url": url, "api_key": key}

    def ask(
        self, texts: list[str], *, stream: bool = False, model: str = MODEL, tools: bool = False
    ) -> tuple[str, Any]:
        import litellm

        more = {"tools": [TOOL]} if tools else {}
        reply = litellm.completion(f"openai/{model}", _messages(texts), max_tokens=MOST, stream=stream, num_retries=2,
                                   **more, **self.given)  # fmt: skip
        reply = litellm.stream_chunk_builder(list(reply)) if stream else reply
        details = reply.usage.prompt_tokens_details
        return reply.choices[0].message.content, details and details.cached_tokens

    def pieces(self, text: str) -> Iterator[Any]:
        import litellm

        stream = litellm.completion(f"openai/{MODEL}", _messages([text]), max_tokens=400, stream=True, **self.given)
        yield from stream
        stream.completion_stream.close()


class PydanticAi:
    package = "pydantic-ai-slim"

    def __init__(self, url: str, key: str) -> None:
        self.given = {"base_url": url, "api_key": key}

    def _agent(self, model: str, tools: bool = False, tokens: int = MOST) -> Any:
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        chat = OpenAIChatModel(model, provider=OpenAIProvider(**self.given))
        made = Agent(chat, instructions="Be brief.", system_prompt="You are a keeper.",
                     model_settings={"max_tokens": tokens})  # fmt: skip
        if tools:
            made.tool_plain(_look)
        return made

    def ask(
        self, texts: list[str], *, stream: bool = False, model: str = MODEL, tools: bool = False
    ) -> tuple[str, Any]:
        from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart

        agent, history = self._agent(model, tools), []
        for place, text in enumerate(texts[:-1]):
            parts = [UserPromptPart(text)] if place % 2 == 0 else [TextPart(text)]
            if not place:
                parts.insert(0, SystemPromptPart("You are a keeper."))
            history.append((ModelRequest, ModelResponse)[place % 2](parts=parts))

        async def run() -> tuple[str, Any]:
            if not stream:
                reply = await agent.run(texts[-1], message_history=history)
                return reply.output, _usage(reply).cache_read_tokens
            async with agent.run_stream(texts[-1], message_history=history) as reply:
                text = "".join([piece async for piece in reply.stream_text(delta=True, debounce_by=None)])
                return text, _usage(reply).cache_read_tokens

        return asyncio.run(run())

    def pieces(self, text: str) -> Iterator[Any]:
        async def first() -> str:
            async with self._agent(MODEL, tokens=400).run_stream(text) as reply:
                async for piece in reply.stream_text(delta=True, debounce_by=None):
                    return piece
            return ""

        yield asyncio.run(first())


def _usage(reply: Any) -> Any:
    return reply.usage() if callable(reply.usage) else reply.usage


def _look() -> str:
    """Look at the sea."""
    return "calm"


class Llm:
    package = "llm"

    def __init__(self, url: str, key: str) -> None:
        os.environ.setdefault("LLM_USER_PATH", tempfile.mkdtemp())
        self.url, self.key = url, key

    def _model(self, model: str) -> Any:
        from llm.default_plugins.openai_models import Chat

        made = Chat(model, model_name=model, api_base=self.url, supports_tools=True)
        made.key = self.key
        return made

    def ask(
        self, texts: list[str], *, stream: bool = False, model: str = MODEL, tools: bool = False
    ) -> tuple[str, Any]:
        import llm

        talk = llm.Conversation(model=self._model(model))
        for text in texts[::2]:  # it says by itself what was answered
            reply = talk.prompt(text, stream=stream, max_tokens=MOST, tools=[_look] if tools else None)
            said = reply.text()
        details = reply.usage().details or {}
        return said, details.get("prompt_tokens_details", {}).get("cached_tokens")

    def pieces(self, text: str) -> Iterator[Any]:
        yield from self._model(MODEL).prompt(text, stream=True, max_tokens=400)


class Aider:
    package = "aider-chat"

    def __init__(self, url: str, key: str) -> None:
        os.environ |= {"OPENAI_API_BASE": url, "OPENAI_API_KEY": key, "AIDER_ANALYTICS": "false"}

    def _coder(self, model: str, stream: bool) -> Any:
        from aider.coders import Coder
        from aider.io import InputOutput
        from aider.models import Model

        os.chdir(tempfile.mkdtemp())
        made = Model(f"openai/{model}")
        made.extra_params = {"max_tokens": MOST}
        made.use_repo_map = False
        return Coder.create(main_model=made, edit_format="ask", io=InputOutput(yes=True, pretty=False), fnames=[],
                            use_git=False, stream=stream, suggest_shell_commands=False)  # fmt: skip

    def ask(
        self, texts: list[str], *, stream: bool = False, model: str = MODEL, tools: bool = False
    ) -> tuple[str, Any]:
        if tools:
            raise NotImplementedError("sends none")
        coder = self._coder(model, stream)
        said = ""
        for text in texts[::2]:
            said = coder.run(text)
        return said, "not shown"

    def pieces(self, text: str) -> Iterator[Any]:
        raise NotImplementedError("only by the keyboard")


def _messages(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


# --- what each of them does


def plain(client: Any, between: Between, file: str) -> str:
    return f"{len(client.ask([QUESTION])[0])} characters"


def stream(client: Any, between: Between, file: str) -> str:
    text, shown = client.ask([QUESTION], stream=True)
    return f"{len(text)} characters, usage {'shown' if isinstance(shown, int) else shown}"


def turns(client: Any, between: Between, file: str) -> str:
    first, _ = client.ask([QUESTION])
    _, shown = client.ask([QUESTION, first or "-", SECOND])
    assert between.cached > 0, "nothing was reused"
    return f"{between.cached} tokens reused, shows {shown}"


def about_file(client: Any, between: Between, file: str) -> str:
    client.ask([QUESTION], model=f"{MODEL}:{file}")
    _, shown = client.ask([SECOND], model=f"{MODEL}:{file}")
    assert between.cached > len(TEXT) // 8, "the document was read again"
    return f"{between.cached} tokens reused, shows {shown}"


def tools(client: Any, between: Between, file: str) -> str:
    client.ask([QUESTION], tools=True)
    return "ignored"


def busy_once(client: Any, between: Between, file: str) -> str:
    between.refuse, before, began = 1, between.refused, time.monotonic()
    client.ask([QUESTION])
    assert between.refused == before + 1
    return f"503 once, answered after {time.monotonic() - began:.1f} s"


def leave(client: Any, between: Between, file: str) -> str:
    pieces = client.pieces("Tell a long story.")
    next(pieces)
    pieces.close()
    began = time.monotonic()
    client.ask([QUESTION])
    return f"the next was answered after {time.monotonic() - began:.1f} s"


CLIENTS = (OpenAi, OpenAiResponses, LangChain, LiteLlm, PydanticAi, Llm, Aider)
FEATURES: tuple[Callable[[Any, Between, str], str], ...] = (plain, stream, turns, about_file, tools, busy_once, leave)


def upload(url: str, key: str) -> str:
    """The id of the file in the library."""
    bound = "between-parts"
    parts = f'--{bound}\r\nContent-Disposition: form-data; name="file"; filename="skerry.txt"\r\n\r\n{TEXT}\r\n'
    headers = {"Authorization": f"Bearer {key}", "Content-Type": f"multipart/form-data; boundary={bound}"}
    request = urllib.request.Request(f"{url}/files", f"{parts}--{bound}--\r\n".encode(), headers)
    return json.load(urllib.request.urlopen(request))["id"].removeprefix("file-")


def _keep(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows down, in place of those of the same clients."""
    asked = {row["client"] for row in rows}
    before = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    kept = [row for row in before if row["client"] not in asked]
    file.write_text(
        json.dumps({"benchmark": "clients", "rows": [*kept, *rows], **machine.describe()}, indent=1) + "\n",
        encoding="utf-8",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="such as http://127.0.0.1:7860/v1")
    parser.add_argument("--key", required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "clients.json")
    args = parser.parse_args()
    between, file, rows = Between(args.url), upload(args.url, args.key), []
    for kind in CLIENTS:
        try:
            version = importlib.metadata.version(kind.package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{kind.package}: not installed")
            continue
        name = " ".join(filter(None, (kind.package, getattr(kind, "form", ""))))
        client = kind(between.url, args.key)
        for feature in FEATURES:
            row: dict[str, Any] = {"client": name, "version": version, "feature": feature.__name__}
            try:
                row |= {"works": True, "seen": feature(client, between, file)}
            except NotImplementedError as error:
                row |= {"works": None, "seen": str(error)}
            except Exception as error:  # whatever a library raises is what is looked for
                row |= {"works": False, "seen": f"{type(error).__name__}: {error}"[:300]}
            between.refuse = 0
            rows.append(row)
            print(*row.values(), sep=" | ", flush=True)
    _keep(args.output, rows)
    return 0 if rows and not any(row["works"] is False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
