"""The routes under /v1. Work on the model runs in threads; a client that leaves frees its place within one step."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.api.errors import ApiError, told
from app.api.files import FileRoutes, Share
from app.api.metrics import Metrics
from app.api.messages import FilePart, Talk, add_files, place, read_messages, split_model, texts
from app.api.reading import BackgroundReading
from app.api.replies import ChatReply, CompletionReply, Event, Head, Reply, ResponseReply
from app.api.schema import Body, ChatBody, CompletionBody, ResponseBody, read, read_json
from app.chat.jobs import MOST_BESIDE
from app.errors import CancelledError, InUseError
from app.records import Delta, Done
from app.store.users import Limits

if TYPE_CHECKING:
    from app.chat import DocumentChat

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST_WAITING = 32
MOST_BODY_BYTES = 700_000_000  # a file of 512 MB in base64
MOST_WAIT_S = 110  # for the model: under what clients wait for a Retry-After
POLL_S = 0.05
LOADING_S = 5
THREADS_BESIDE = 8  # for requests that are refused because the queue is full
WENT_WRONG = "Something went wrong inside Lectern; its log has the details."


class Asker:
    """Who waits for an answer.

    Attributes:
        cancel: ends the work for it, set when the client has `left` or somebody pressed Stop.
    """

    def __init__(self) -> None:
        self.left, self.cancel = threading.Event(), threading.Event()

    def leave(self) -> None:
        """The client has gone."""
        self.left.set()
        self.cancel.set()


class Queue:
    """Answers wait here for the model, in the order in which they came, so many and so long at most.

    Attributes:
        most, wait_s: how many wait or are given, and how long one waits.
        at_once: how many are given at the same time.
    """

    def __init__(self, limits: Limits | None = None, wait_s: float = MOST_WAIT_S) -> None:
        self.at_once, self.most = (limits.answers, 2 * limits.answers) if limits else (MOST_BESIDE, MOST_WAITING)
        self.wait_s, self._status = wait_s, 429 if limits else 503
        self._turn = threading.Condition()
        self._waiting: list[object] = []

    def lengths(self) -> tuple[int, int]:
        """How many wait, and how many are answered."""
        with self._turn:
            running = min(len(self._waiting), self.at_once)
            return len(self._waiting) - running, running

    @contextmanager
    def place(self, left: threading.Event) -> Iterator[None]:
        """Come to the front of the queue, and stay there for the time of the block.

        Args:
            left: set when the client has gone.

        Raises:
            ApiError: too many wait, or for too long, or the client has gone.
        """
        ticket, until = object(), time.monotonic() + self.wait_s
        with self._turn:
            if len(self._waiting) >= self.most:
                raise ApiError(
                    f"{len(self._waiting)} answers are waited for already; ask again later",
                    status=self._status, code="queue_full", retry_after_s=2 * len(self._waiting),
                )  # fmt: skip
            self._waiting.append(ticket)
        try:
            with self._turn:
                while ticket not in self._waiting[: self.at_once] and not left.is_set():
                    if time.monotonic() > until:
                        raise ApiError("the model was busy for too long; ask again", status=503, code="busy",
                                       retry_after_s=10)  # fmt: skip
                    self._turn.wait(POLL_S * 4)
            if left.is_set():
                raise ApiError("the client has gone", status=503, code="gone")
            yield
        finally:
            with self._turn:
                self._waiting.remove(ticket)
                self._turn.notify_all()


class Endpoint:
    """OpenAI's protocol over one DocumentChat.

    Attributes:
        reading: the queue of documents, which the page may share.
        metrics: what is counted, of all users together; `app.server` shows it.
    """

    def __init__(
        self, chat: "DocumentChat", reading: BackgroundReading | None = None, share: Share | None = None,
        metrics: Metrics | None = None,
    ) -> None:  # fmt: skip
        self.chat, self._share = chat, share
        self.reading = reading or BackgroundReading(chat)
        self.queue = Queue(chat.allowance.limits)
        self.metrics = metrics or Metrics()
        self.metrics.watch(chat, self.queue, self.reading)
        self._placing = threading.Lock()
        self._taken: set[str] = set()  # chats in which something is answered
        self._threads: CapacityLimiter | None = None

    def router(self) -> APIRouter:
        """All routes under /v1."""
        router = APIRouter(prefix="/v1")
        router.add_api_route("/models", _safe(self.models), methods=["GET"])
        router.add_api_route("/models/{name:path}", _safe(self.model), methods=["GET"])
        router.add_api_route("/chat/completions", _safe(self.chat_completions), methods=["POST"])
        router.add_api_route("/completions", _safe(self.completions), methods=["POST"])
        router.add_api_route("/responses", _safe(self.responses), methods=["POST"])
        for path, method, handler in self._files().routes():
            router.add_api_route(path, _safe(handler), methods=[method])
        return router

    def _files(self) -> FileRoutes:
        return FileRoutes(self.chat, self.reading, self._share)

    # --- models

    async def models(self, request: Request) -> Response:
        """The loaded model, and the same over each document of the library."""
        return JSONResponse({"object": "list", "data": await run_in_threadpool(self._models)})

    async def model(self, request: Request) -> Response:
        wanted = request.path_params["name"]
        found = next((m for m in await run_in_threadpool(self._models) if m["id"] == wanted), None)
        if found is None:
            raise ApiError(f"model {wanted!r}: not here; GET /v1/models lists those that are", status=404,
                           code="model_not_found")  # fmt: skip
        return JSONResponse(found)

    def _models(self) -> list[dict[str, Any]]:
        name, created = self._name(), int(time.time())
        names = [name, *(f"{name}:{document.id}" for document in self.chat.library.documents())]
        return [{"id": n, "object": "model", "created": created, "owned_by": "lectern"} for n in names]

    def _name(self) -> str:
        return self.chat.model.model_state().name or self.chat.settings.model_name

    # --- answers

    async def chat_completions(self, request: Request) -> Response:
        body = read(ChatBody, await read_json(request, MOST_BODY_BYTES))
        reply = ChatReply(
            Head(body.model or self._name()), with_usage=body.wants_usage, with_progress=body.return_progress
        )
        return await self._answer(request, body, read_messages(body.messages), reply)

    async def completions(self, request: Request) -> Response:
        body = read(CompletionBody, await read_json(request, MOST_BODY_BYTES))
        prompt = texts(body.prompt)
        reply = CompletionReply(
            Head(body.model or self._name()), with_usage=body.wants_usage, echo=prompt if body.echo else ""
        )
        talk = read_messages([{"role": "user", "content": prompt}], field="prompt")
        return await self._answer(request, body, talk, reply)

    async def responses(self, request: Request) -> Response:
        body = read(ResponseBody, await read_json(request, MOST_BODY_BYTES))
        given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
        talk = read_messages(given, body.instructions or "", "input")
        reply = ResponseReply(Head(body.model or self._name()), instructions=body.instructions)
        return await self._answer(request, body, talk, reply)

    async def _answer(self, request: Request, body: Body, talk: Talk, reply: Reply) -> Response:
        """Run the first step before anything is sent: what is refused is refused with a status."""
        self._check_ready()
        asker = Asker()
        events = self._events(body, talk, asker)
        watch = asyncio.create_task(_watch(request, asker))
        try:
            first = await self._in_thread(_until_text, events)
            if body.stream:
                watch.cancel()
                return _Stream(self._sent(first, events, reply), events, asker)
            done = await self._in_thread(_last, _chained(first, events))
            return JSONResponse(reply.whole(done))
        except Exception:
            self.metrics.refused()
            raise
        finally:
            watch.cancel()

    def _check_ready(self) -> None:
        state = self.chat.model.model_state()
        if state.state == "loading":
            raise ApiError("the model is loading; ask again in a moment", status=503, code="loading",
                           retry_after_s=LOADING_S)  # fmt: skip
        if state.state == "failed":
            raise ApiError(f"no model is loaded: {state.detail}", status=503, code="unavailable", retry_after_s=60)

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Run what waits for the model in threads of its own, so that the page always finds one."""
        self._threads = self._threads or CapacityLimiter(self.queue.most + THREADS_BESIDE)
        return await to_thread.run_sync(partial(work, *given), limiter=self._threads)

    def _events(self, body: Body, talk: Talk, asker: Asker) -> Iterator[Event]:
        """The answer, when the model is free."""
        named = [*split_model(body.model, self._name()), *body.documents]
        wanted = [*(FilePart(id=name) for name in named), *talk.files]
        self.chat.allowance.question()
        documents = list(dict.fromkeys(add_files(self.chat, wanted)))
        with self.queue.place(asker.left):
            generation = body.generation()
            with self._placed(talk, documents, body.policy) as (chat, rest):
                ask = partial(
                    self.chat.ask, talk.question, chat=chat, generation=generation, focus=body.focus, mute=body.mute,
                    through=body.through, cancel=asker.cancel,
                )  # fmt: skip
                take = partial(self.chat.take_turns, chat, rest, cancel=asker.cancel)
                before = self._patiently(take, asker.left) if rest else 0
                for event in self._free(ask, asker.left):
                    if asker.left.is_set():
                        return
                    if isinstance(event, Done):
                        if event.stats.stopped:  # on the page, or at the end of Lectern: half an answer is none
                            raise CancelledError("the answer was stopped")
                        event = _with_read(event, before)
                        self.metrics.answered(event)
                    yield event

    @contextmanager
    def _placed(self, talk: Talk, documents: list[str], policy: str) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
        """The chat in which a talk goes on, for one answer, and the turns that have to be run there first."""
        with self._placing:
            chat, rest = place(self.chat, talk, documents, policy, self._taken)
            self._taken.add(chat)
        try:
            yield chat, rest
        finally:
            self._taken.discard(chat)
            self.chat.saved.forget_empty(chat)

    def _free(self, ask: Callable[[], Iterator[Event]], left: threading.Event) -> Iterator[Event]:
        """The events of `ask`, begun again as long as the page has the model."""

        def begin() -> tuple[list[Event], Iterator[Event]]:
            events = ask()
            first = next(events, None)
            return [] if first is None else [first], events

        first, events = self._patiently(begin, left)
        try:
            yield from first
            yield from events
        finally:
            events.close()

    def _patiently(self, work: Callable[[], T], left: threading.Event) -> T:
        until = time.monotonic() + self.queue.wait_s
        while True:
            try:
                return work()
            except InUseError:
                if time.monotonic() > until or left.is_set():
                    raise
                time.sleep(POLL_S)

    async def _sent(self, first: list[Event], events: Iterator[Event], reply: Reply) -> AsyncIterator[str]:
        """Server-sent events. A stream that cannot go on ends with an error, never as if it were complete."""
        parts = reply.stream(_chained(first, events))
        try:
            while (part := await self._in_thread(next, parts, None)) is not None:
                yield part
        except Exception as error:
            known = told(error) or ApiError(WENT_WRONG, status=500)
            if known.status == 500:
                log.error("an answer failed", exc_info=error)
            yield reply.broken(known.body)


class _Stream(StreamingResponse):
    """Server-sent events of an answer, which ends with them, also when the client has gone before the first."""

    def __init__(self, parts: AsyncIterator[str], events: Iterator[Event], asker: Asker) -> None:
        super().__init__(parts, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._events, self._asker = events, asker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asker.leave()
            # A task that is cancelled waits for nothing, but what it waits for goes on.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._events.close))


def _safe(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """A route that answers errors in OpenAI's shape."""

    async def route(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            known = told(error)
            if known is None:
                log.error("%s failed", request.url.path, exc_info=error)
                known = ApiError(WENT_WRONG, status=500)
            return known.response()

    return route


async def _watch(request: Request, asker: Asker) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.2)
    asker.leave()


def _until_text(events: Iterator[Event]) -> list[Event]:
    """Events up to the first piece of the answer, or its end."""
    found: list[Event] = []
    for event in events:
        found.append(event)
        if isinstance(event, Delta | Done):
            break
    return found


def _chained(first: list[Event], events: Iterator[Event]) -> Iterator[Event]:
    yield from first
    yield from events


def _with_read(done: Done, tokens: int) -> Done:
    """An answer for which so many tokens were run before it, which it found in memory then."""
    stats = done.stats
    read, reused = stats.tokens_read + tokens, stats.tokens_reused - tokens
    return replace(done, stats=replace(stats, tokens_read=read, tokens_reused=reused))


def _last(events: Any) -> Done:
    """The end of an answer.

    Raises:
        ApiError: it was stopped before.
    """
    done = None
    for event in events:
        done = event if isinstance(event, Done) else done
    if done is None:
        raise ApiError("the answer was stopped; ask again", status=503, code="stopped", retry_after_s=1)
    return done
