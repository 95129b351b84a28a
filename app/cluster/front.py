"""The ingress: finds the replica that answers a request, lets so many in at once, and passes the answer on.

Requests under /v1 go where their documents are; all others belong to the page, which is that of replica "0".
"""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, Protocol, TypeVar

from starlette.datastructures import UploadFile
from starlette.requests import Request as FormRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import ApiError, told
from app.api.files import PREFIX
from app.api.messages import Talk, read_messages, texts
from app.api.metrics import FORM, merged
from app.api.replies import sse
from app.api.routes import MOST_BODY_BYTES, MOST_WAIT_S, MOST_WAITING, WENT_WRONG
from app.api.schema import Body, ChatBody, CompletionBody, ResponseBody, read
from app.chat.jobs import MOST_BESIDE
from app.cluster.bridge import Head, Request, received, replayed, sender
from app.cluster.catalog import Catalog
from app.cluster.line import FullError, Gate, WaitedError
from app.errors import LecternError
from app.store.documents import ID_DIGITS
from app.wellformed import parse_json

log = logging.getLogger(__name__)
T = TypeVar("T")
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
FILES = re.compile(r"/v1/files/(?:file-)?([^/]+)(?:/share)?")
PAGE = "0"  # the replica whose page is shown
AGAIN_S = 3
READY_S = 5.0
GONE = "the replica that answered has died, and another takes its place; ask again to go on from there"
LOOK_S = 5.0  # how often hot documents are looked for


class GoneError(LecternError):
    """A replica died while it was asked; Ray starts another in its place."""


class Replica(Protocol):
    """What answers requests: app.cluster.serve over Ray, or anything else in a test."""

    def ask(self, request: Request) -> AsyncGenerator[Head | bytes, None]:
        """The answer to a request.

        Raises:
            GoneError: the replica died before the end of it.
        """
        ...

    async def documents(self) -> Sequence[tuple[str, float]]:
        """(id, size) of what it holds."""
        ...

    async def find(self, name: str) -> str | None:
        """The id of the document that a name or the first letters of an id mean there."""
        ...

    async def copy(self, document: str, to: "Replica") -> None:
        """Send a document with its memory to another replica."""
        ...


class Front:
    """The ASGI app of the ingress.

    Args:
        replicas: by name; "0" has the page.
        page: whether requests for the page are passed on.
    """

    def __init__(self, replicas: Mapping[str, Replica], *, page: bool = True) -> None:
        self.replicas, self.page = dict(replicas), page
        self.catalog = Catalog(dict.fromkeys(self.replicas, 1.0))
        self.gates = {name: Gate(MOST_BESIDE, MOST_WAITING) for name in self.replicas}
        self._joined: list[str] = []
        self._copies: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[ASGIApp]]] = {
            ("POST", CHAT): self._answer, ("POST", COMPLETIONS): self._answer, ("POST", RESPONSES): self._answer,
            ("POST", "/v1/files"): self._upload,
            ("GET", "/v1/files"): self._merged, ("GET", "/v1/models"): self._merged,
            ("GET", "/health"): self._health, ("GET", "/ready"): self._ready, ("GET", "/metrics"): self._metrics,
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        app = await _unless_left(self._told(await received(scope, receive, MOST_BODY_BYTES)), receive)
        if app:
            await app(scope, receive, send)

    async def _told(self, request: Request) -> ASGIApp:
        """The answer, or why there is none."""
        try:
            if len(request.body) > MOST_BODY_BYTES:
                raise ApiError(
                    f"the request is larger than {MOST_BODY_BYTES:,} bytes; upload the file first", status=413
                )
            return await self._routed(request)
        except FullError as error:
            known = _busy(f"{error}; ask again later", "queue_full", 2 * error.waiting)
        except WaitedError:
            known = _busy("the model was busy for too long; ask again", "busy", 10)
        except GoneError:
            known = _busy(GONE, "unavailable", AGAIN_S)
        except Exception as error:
            found = told(error)
            if found is None:
                log.error("%s failed", request.path, exc_info=error)
            known = found or ApiError(WENT_WRONG, status=500)
        return known.response()

    async def _routed(self, request: Request) -> ASGIApp:
        if handler := self._routes.get((request.method, request.path.rstrip("/") or "/")):
            return await handler(request)
        if found := FILES.fullmatch(request.path):
            return await self._file(request, found[1])
        if request.path.startswith("/v1/"):
            return await self._passed(PAGE, request)
        if self.page:
            return await self._passed(PAGE, request)
        return PlainTextResponse("There is nothing here.", 404)

    # --- the catalog

    async def look(self) -> None:
        """Ask all replicas what they hold."""
        found = await asyncio.gather(*(replica.documents() for replica in self.replicas.values()))
        for name, documents in zip(self.replicas, found, strict=True):
            for document, size in documents:
                self.catalog.note(document, name, size)
        self._joined = [name for name, documents in zip(self.replicas, found, strict=True) if not documents]

    async def settle(self) -> None:
        """Give replicas that held nothing at the start the documents that rank them first."""
        for name in self._joined:
            for document in self.catalog.join(name):
                await self._try_copy(document, name)

    async def find(self, name: str) -> str:
        """The id of a document by id, title or the first letters; the name itself where nobody knows it."""
        if name in self.catalog:
            return name
        found = await asyncio.gather(
            *(replica.find(name) for replica in self.replicas.values()), return_exceptions=True
        )
        for replica, id in zip(self.replicas, found, strict=True):
            if isinstance(id, str):
                self.catalog.note(id, replica, 1.0)
        return next((id for id in found if isinstance(id, str)), name)

    async def copy(self, document: str, to: str) -> None:
        """Have a replica hold a document that another one holds; one copy at a time of each."""
        if to in self.catalog.holders(document):
            return
        task = self._copies.get((document, to))
        if task is None:
            task = self._copies[document, to] = asyncio.create_task(self._copy(document, to))
            task.add_done_callback(lambda _: self._copies.pop((document, to)))
        await asyncio.shield(task)

    async def _copy(self, document: str, to: str) -> None:
        source = self.replicas[self.catalog.holders(document)[0]]
        async with self.gates[to].closed():  # taking a document in wants the model for itself
            await source.copy(document, self.replicas[to])
        self.catalog.note(document, to, 0.0)

    async def spread(self) -> None:
        """Copy hot documents, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for document, replica in self.catalog.due(lambda name: len(self.gates[name])):
                await self._try_copy(document, replica)

    async def _try_copy(self, document: str, to: str) -> None:
        try:
            await self.copy(document, to)
        except Exception as error:  # it stays where it is, and is asked there
            log.warning("a document could not be copied to replica %s: %s", to, error)

    async def restart(self, again: Callable[[str], Awaitable[None]]) -> None:
        """Start the replicas again, one by one: each first finishes what it answers, and who comes meanwhile waits."""
        for name in self.replicas:
            async with self.gates[name].closed():
                await again(name)

    # --- answers

    async def _answer(self, request: Request) -> ASGIApp:
        body, talk = _read(request)
        named = [body.model.partition(":")[2], *body.documents, *(file.id for file in talk.files)]
        documents = [await self.find(name.removeprefix(PREFIX)) for name in dict.fromkeys(filter(None, named))]
        known = [document for document in documents if document in self.catalog]
        brought = [] if known else [(_key(file.data), len(file.data)) for file in talk.files if file.data][:1]
        about = known or [key for key, _ in brought]
        size = brought[0][1] if brought else 0
        name = self.catalog.route(about, _talk(talk, about), not talk.turns, lambda n: len(self.gates[n]), size)
        for document in known:
            await self.copy(document, name)
        async with AsyncExitStack() as held:
            await held.enter_async_context(self.gates[name].place(MOST_WAIT_S))
            return await self._passed(name, request, held)

    async def _passed(self, name: str, request: Request, held: AsyncExitStack | None = None) -> ASGIApp:
        """The answer of a replica, once it has begun.

        Args:
            held: what is given back at its end, here where nothing of it can be sent.
        """
        async with AsyncExitStack() as stack:
            parts = await stack.enter_async_context(aclosing(self.replicas[name].ask(request)))
            head = await anext(parts)
            assert isinstance(head, Head)
            stack.push_async_exit((held or AsyncExitStack()).pop_all())
            streamed = head.header(b"content-type").startswith("text/event-stream")
            return sender(_rest(parts, request.path if streamed else "", stack.pop_all()), head)

    # --- files and models

    async def _upload(self, request: Request) -> ASGIApp:
        """A file goes to the replica that its bytes rank first; the same bytes again go there again."""
        document, size = await _uploaded(request)
        name = self.catalog.home(document, size)
        head, body = await _whole(self.replicas[name].ask(request))
        if head.status == 200:
            made = json.loads(body)
            self.catalog.note(made["id"].removeprefix(PREFIX), name, made["bytes"])
        return Response(body, head.status, {"Content-Type": head.header(b"content-type")})

    async def _file(self, request: Request, id: str) -> ASGIApp:
        """A request about one document goes to its home, a deletion to all that hold it."""
        document = await self.find(id)
        holders = self.catalog.holders(document) or (PAGE,)
        if request.method != "DELETE":
            return await self._passed(holders[0], request)
        answers = [await _whole(self.replicas[name].ask(request)) for name in holders]
        head, body = max(answers, key=lambda answer: answer[0].status != 404 and answer[0].status)
        if all(answer.status in (200, 404) for answer, _ in answers):
            self.catalog.forget(document)
        return Response(body, head.status, {"Content-Type": head.header(b"content-type")})

    async def _merged(self, request: Request) -> ASGIApp:
        """The lists of all replicas as one."""
        answers = await asyncio.gather(*(_whole(replica.ask(request)) for replica in self.replicas.values()))
        if failed := next((answer for answer in answers if answer[0].status != 200), None):
            return Response(failed[1], failed[0].status, {"Content-Type": failed[0].header(b"content-type")})
        lists = [json.loads(body) for _, body in answers]
        rows = {row["id"]: row for value in reversed(lists) for row in value["data"]}
        return JSONResponse({**lists[0], "data": list(rows.values())})

    # --- how it goes

    async def _health(self, request: Request) -> ASGIApp:
        return JSONResponse({"app": "lectern", "replicas": len(self.replicas)})

    async def _ready(self, request: Request) -> ASGIApp:
        """Whether all replicas answer."""
        heads = await asyncio.gather(*(_is_ready(replica, request) for replica in self.replicas.values()))
        able = all(heads)
        return JSONResponse({"ready": able}, 200 if able else 503, headers={} if able else {"Retry-After": "5"})

    async def _metrics(self, request: Request) -> ASGIApp:
        answers = await asyncio.gather(
            *(_whole(replica.ask(request)) for replica in self.replicas.values()), return_exceptions=True
        )
        told = dict(zip(self.replicas, answers, strict=True))
        return Response(merged({n: a[1].decode() for n, a in told.items() if isinstance(a, tuple)}), media_type=FORM)


async def _unless_left(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """What is worked out, or None where the client goes before."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, listening = asyncio.create_task(work), asyncio.create_task(listen())
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = working.done()
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)
    return working.result() if ended else None


async def _rest(parts: AsyncIterator[Any], path: str, held: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    """The body of an answer; a stream of a replica that died ends with an error, never as if it were complete."""
    async with held:
        try:
            async for part in parts:
                yield part
        except GoneError:
            if not path.startswith("/v1/"):
                raise
            yield _broken(path).encode()


async def _whole(parts: AsyncGenerator[Head | bytes, None]) -> tuple[Head, bytes]:
    """An answer in one piece."""
    async with aclosing(parts):
        head = await anext(parts)
        assert isinstance(head, Head)
        return head, b"".join([part async for part in parts if isinstance(part, bytes)])


async def _is_ready(replica: Replica, request: Request) -> bool:
    try:
        head, _ = await asyncio.wait_for(_whole(replica.ask(request)), READY_S)
    except (GoneError, TimeoutError):
        return False
    return head.status == 200


def _busy(message: str, code: str, retry_after_s: int) -> ApiError:
    return ApiError(message, status=503, code=code, retry_after_s=retry_after_s)


def _broken(path: str) -> str:
    """The event that ends a stream which cannot go on, as the routes of one replica send it."""
    error = _busy(GONE, "unavailable", AGAIN_S).body
    if path != RESPONSES:
        return sse(error)
    failed = {"status": "failed", "output": [], "error": {"code": "server_error", "message": GONE}}
    return sse({"type": "response.failed", "response": {"object": "response", **failed}}, "response.failed")


def _read(request: Request) -> tuple[Body, Talk]:
    """A question, checked before it goes anywhere.

    Raises:
        ApiError: what is wrong with it.
    """
    try:
        value = parse_json(request.body)
    except ValueError as error:
        raise ApiError(f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object")
    if request.path == CHAT:
        body = read(ChatBody, value)
        return body, read_messages(body.messages)
    if request.path == COMPLETIONS:
        prompt = read(CompletionBody, value)
        said = [{"role": "user", "content": texts(prompt.prompt)}]
        return prompt, read_messages(said, field="prompt")
    asked = read(ResponseBody, value)
    given = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    return asked, read_messages(given, asked.instructions or "", "input")


def _talk(talk: Talk, documents: Sequence[str]) -> str:
    """The name of a talk in all its turns: what it is about, and how it began."""
    first = talk.turns[0][0] if talk.turns else talk.question
    said = json.dumps([*sorted(documents), talk.system, first])
    return hashlib.blake2b(said.encode(), digest_size=12).hexdigest()


def _key(data: bytes) -> str:
    """The id that a library gives to a file of these bytes."""
    return hashlib.sha256(data).hexdigest()[:ID_DIGITS]


async def _uploaded(request: Request) -> tuple[str, int]:
    """(id, bytes) of the file in an upload; the replica says what is wrong with one that has none."""
    receive = replayed(request.body)
    async with FormRequest(request.scope, receive).form(max_files=1, max_fields=20) as form:
        file = form.get("file")
        data = await file.read() if isinstance(file, UploadFile) else b""
    return _key(data), len(data)
