"""A replica: a data folder of its own, a model, and the routes over them."""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from app import system
from app.api.metrics import FORM
from app.api.routes import Endpoint
from app.cluster.bridge import Head, Request, answered
from app.cluster.front import PAGE
from app.errors import BusyError, InUseError, NotFoundError
from app.settings import Settings

if TYPE_CHECKING:
    from app.api.reading import BackgroundReading
    from app.chat import DocumentChat

log = logging.getLogger(__name__)
T = TypeVar("T")
FOLDER = "replicas"
PIECE_BYTES = 4 << 20
PATIENCE_S = 60.0  # for the folder of a replica that is ending, and for work of the page
LOOK_S = 0.2


@dataclass(frozen=True)
class Page:
    """What the replica with the page has to know: the keys of the page and of programs, and where it is opened."""

    key: str
    programs: str
    url: str


def folder(home: Path, name: str) -> Path:
    """The data folder of a replica: that of Lectern for the one with the page, so that its library is the known one."""
    return home if name == PAGE else home / FOLDER / name


class Engine:
    """Answers requests; documents come and go as files.

    Args:
        page: only for the replica that has it.
    """

    def __init__(self, name: str, settings: Settings, page: Page | None = None) -> None:
        from app.chat import DocumentChat

        system.keep_private()
        system.keep_freed_memory()
        own = replace(settings, home=folder(settings.folder, name))
        self.chat: DocumentChat = _patiently(lambda: DocumentChat.open(own), BusyError)
        try:
            self.chat.model.engine()  # one that has no model takes no place among the others
            self.app, self.reading = _routes(self.chat, page)
        except BaseException:
            self.chat.close()
            raise
        self.reading.take_up()
        self._life = contextlib.AsyncExitStack()
        self._begun: asyncio.Task[None] | None = None

    async def ask(self, request: Request) -> AsyncGenerator[Head | bytes, None]:
        """The answer to a request: its head, then its body in parts."""
        if self._begun is None:
            self._begun = asyncio.create_task(self._begin())
        await asyncio.shield(self._begun)
        async with contextlib.aclosing(answered(self.app, request, {"lectern.known": False})) as parts:
            async for part in parts:
                yield part

    async def documents(self) -> list[tuple[str, float]]:
        """(id, bytes of its text) of each document."""

        def sizes() -> list[tuple[str, float]]:
            store, found = self.chat.store, self.chat.library.documents()
            return [(info.id, sum(len(part.text.encode()) for part in store.parts(info.id))) for info in found]

        return await run_in_threadpool(sizes)

    async def find(self, name: str) -> str | None:
        """The id of a document by its id, the first letters of it, or its title."""
        try:
            return (await run_in_threadpool(self.chat.library.document, name)).id
        except NotFoundError:
            return None

    async def give(self, document: str) -> AsyncGenerator[bytes, None]:
        """A document with the memory of its reading, as a file in pieces."""
        with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
            path = Path(folder) / "document.lectern"
            await run_in_threadpool(export_document, self.chat, document, path)
            with path.open("rb") as file:
                while piece := await run_in_threadpool(file.read, PIECE_BYTES):
                    yield piece

    async def take(self, document: str, pieces: AsyncIterator[bytes]) -> None:
        """Keep what another replica gave, as if it had been added and read here."""
        with contextlib.suppress(NotFoundError):
            if (await run_in_threadpool(self.chat.library.document, document)).state == "read":
                return
        with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
            path = Path(folder) / "document.lectern"
            with path.open("wb") as file:
                async for piece in pieces:
                    await run_in_threadpool(file.write, piece)
            await run_in_threadpool(_import, self.chat, path)

    async def _begin(self) -> None:
        """What the app does before its first request; the page starts its queue of events there."""
        await self._life.enter_async_context(self.app.router.lifespan_context(self.app))

    def close(self) -> None:
        """End readings, write what is queued, give the folder back."""
        self.reading.close()
        self.chat.close()


def export_document(chat: "DocumentChat", document: str, path: Path) -> None:
    """Write a document with the memory of its reading as one file."""
    made = chat.saved.new_chat([document])
    try:
        chat.transfers.export_file(made, path)
    finally:
        chat.saved.forget_empty(made)


def _import(chat: "DocumentChat", path: Path) -> None:
    chat.saved.forget_empty(_patiently(partial(chat.transfers.import_chat, path, own=True), InUseError))


def _routes(chat: "DocumentChat", page: Page | None) -> "tuple[FastAPI, BackgroundReading]":
    """The app of a replica, and its queue of documents to be read."""
    if page:
        from app.server import create_app
        from app.ui.build import build

        blocks = build(chat)
        chat.lock.set_url(page.url)
        return create_app(chat, blocks, page.key, page.programs), blocks.reading
    endpoint = Endpoint(chat)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(endpoint.router())

    @app.get("/ready")
    def ready() -> JSONResponse:
        able = chat.model.model_state().state in ("ready", "unloaded")
        return JSONResponse({"ready": able}, 200 if able else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(endpoint.metrics.text(), media_type=FORM)

    return app, endpoint.reading


def _patiently(work: Callable[[], T], busy: type[Exception]) -> T:
    """What `work` gives, begun again as long as something else is in the way."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return work()
        except busy:
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_S)
