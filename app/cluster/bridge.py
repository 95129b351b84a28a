"""HTTP requests as values that travel to another process, and an ASGI app that answers them there."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = tuple[tuple[bytes, bytes], ...]
MOST_AHEAD = 64  # parts of an answer that wait to be sent


@dataclass(frozen=True)
class Request:
    """A request, whole."""

    method: str
    path: str
    query: bytes = b""
    headers: Headers = ()
    body: bytes = b""
    client: tuple[str, int] | None = None

    @property
    def scope(self) -> Scope:
        """The same for an ASGI app. Its version is one in which an app listens for a client that goes."""
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": self.method, "scheme": "http", "path": self.path, "raw_path": self.path.encode(),
            "query_string": self.query, "root_path": "", "headers": [*self.headers], "client": self.client,
            "server": None, "state": {},
        }  # fmt: skip


@dataclass(frozen=True)
class Head:
    """The beginning of an answer."""

    status: int
    headers: Headers

    def header(self, name: bytes) -> str:
        """A header, "" where there is none."""
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == name), "")


async def received(scope: Scope, receive: Receive, most_bytes: int) -> Request:
    """A request as a value; reading ends soon after so many bytes, and where its client goes."""
    body = bytearray()
    while len(body) <= most_bytes:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    client = scope.get("client")
    return Request(
        scope["method"], scope["path"], scope["query_string"], tuple((bytes(k), bytes(v)) for k, v in scope["headers"]),
        bytes(body), tuple(client) if client else None,
    )  # fmt: skip


def replayed(body: bytes) -> Receive:
    """A request's body once more, for one who reads it to its end."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def answered(
    app: ASGIApp, request: Request, known: dict[str, Any] | None = None
) -> AsyncGenerator[Head | bytes, None]:
    """The answer of an app: its head, then its body in parts. Who stops asking for parts is a client that has gone.

    Args:
        known: more for the app's scope.

    Raises:
        Exception: what the app raised.
    """
    parts: asyncio.Queue[Head | bytes | None] = asyncio.Queue(MOST_AHEAD)
    body: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> Message:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if gone.is_set():
            return
        if message["type"] == "http.response.start":
            await parts.put(Head(message["status"], tuple(message.get("headers", ()))))
        elif data := message.get("body"):
            await parts.put(bytes(data))

    async def run() -> None:
        try:
            await app({**request.scope, **(known or {})}, receive, send)
        finally:
            if not gone.is_set():
                await parts.put(None)

    task = asyncio.create_task(run())
    try:
        while (part := await parts.get()) is not None:
            yield part
        await task
    finally:
        gone.set()
        while not parts.empty():  # what waits for room to send goes on, and ends
            parts.get_nowait()


def sender(parts: AsyncGenerator[bytes, None], head: Head) -> ASGIApp:
    """An ASGI app that sends an answer that came from elsewhere; when the client goes, `parts` is closed."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending() -> None:
            await send({"type": "http.response.start", "status": head.status, "headers": [*head.headers]})
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def listening() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = {asyncio.create_task(sending()), asyncio.create_task(listening())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts.aclose()
        for task in done:
            task.result()

    return app
