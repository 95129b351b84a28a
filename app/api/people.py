"""The endpoint of each user: a library, chats and a queue of readings of their own, over the model of the owner.

Nothing of one is within reach of another: whose key it is decides which store is opened, and no store knows of others.
"""

import asyncio
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import ApiError, told
from app.api.metrics import Metrics
from app.api.routes import WENT_WRONG, Endpoint
from app.errors import NotFoundError, StoreError
from app.guard import HEALTH, PROGRAMS
from app.store.users import User, Users

if TYPE_CHECKING:
    from app.chat import DocumentChat
    from app.chat.user_chat import UserChat

log = logging.getLogger(__name__)
AUDIT = "audit.log"
AUDIT_BYTES, AUDIT_FILES = 5_000_000, 3


MakePage = Callable[["UserChat", User, Endpoint], ASGIApp]


@dataclass
class _Open:
    """The library of a user who was here since the start.

    Attributes:
        app: the routes for programs; page: those of a browser too, once one asked.
    """

    user: User
    chat: "UserChat"
    endpoint: Endpoint
    app: FastAPI
    page: ASGIApp | None = None


class People:
    """Opens the library of a user when it is needed, and keeps it open.

    Attributes:
        make_page: makes the page of a user, which begins and ends with `lifespan` events of ASGI.
        metrics: what is counted of all of them.
    """

    def __init__(
        self, owner: "DocumentChat", users: Users, make_page: MakePage | None = None, metrics: Metrics | None = None
    ) -> None:
        self.owner, self.users, self.make_page, self.metrics = owner, users, make_page, metrics
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._lives: list[asyncio.Task[None]] = []
        users.sweep()

    def app(self, user: User) -> ASGIApp:
        """The routes under /v1 for a user.

        Raises:
            LecternError: the model or the library cannot be had.
        """
        with self._lock:
            found = self._at_hand(user)
            return found.app

    def _at_hand(self, user: User) -> _Open:
        """Called with the lock held."""
        if user.id not in self._open:
            self._open[user.id] = self._opened(user)
        found = self._open[user.id]
        found.chat.model.follow(self.owner.model)
        return found

    async def page(self, user: User) -> ASGIApp | None:
        """What a user's browser finds; None where there is no page.

        Raises:
            LecternError: as `app`.
        """
        if self.make_page is None:
            return None
        app, fresh = await run_in_threadpool(self._page, user)
        if fresh:
            ready = asyncio.get_running_loop().create_future()
            self._lives.append(asyncio.create_task(_live(app, ready)))
            await ready
        return app

    def _page(self, user: User) -> tuple[ASGIApp, bool]:
        with self._lock:
            found = self._at_hand(user)
            if fresh := found.page is None:
                assert self.make_page is not None
                found.page = self.make_page(found.chat, user, found.endpoint)
            assert found.page is not None
            return found.page, fresh

    def share(self, chat: "DocumentChat", document: str, name: str) -> None:
        """Put a copy of a document, with the memory of its reading, into the library of another user.

        Raises:
            LecternError: there is no such document or user, the model is in use, or the other's library is full.
        """
        user = next((user for user in self.users.everyone() if user.name == name), None)
        if user is None:
            raise NotFoundError(f"user {name!r:.60}: not there; ask for the name that `users add` was given")
        with self._lock:
            theirs = self._at_hand(user).chat
        had = {info.id for info in theirs.library.documents()}
        with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
            path, own = Path(folder) / "shared.lectern", chat.saved.new_chat([document])
            try:
                chat.transfers.export_file(own, path)
            finally:
                chat.saved.forget_empty(own)
            theirs.saved.forget_empty(theirs.transfers.import_chat(path))
        for info in theirs.library.documents():
            if info.id not in had:
                theirs.mark_shared(info.id, self._name(chat))

    def _name(self, chat: "DocumentChat") -> str:
        return next((found.user.name for found in self._open.values() if found.chat is chat), "the owner")

    def _opened(self, user: User) -> _Open:
        from app.chat.user_chat import UserChat

        chat = UserChat.over(self.owner, self.users.folder(user), user.limits)
        endpoint = Endpoint(chat, share=self.share, metrics=self.metrics)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.include_router(endpoint.router())
        endpoint.reading.take_up()
        return _Open(user, chat, endpoint, app)

    def of_key(self, key: str) -> User | None:
        """Whose key it is; nobody's while the list of users cannot be read."""
        return self._found(self.users.of_key, key)

    def of_digest(self, digest: str) -> User | None:
        """The same by the key's digest."""
        return self._found(self.users.of_digest, digest)

    def _found(self, look: Callable[[str], User | None], text: str) -> User | None:
        try:
            return look(text)
        except StoreError as error:
            log.error("%s", error)
            return None

    def close(self) -> None:
        """End readings and give the libraries back."""
        for found in self._open.values():
            found.endpoint.reading.close()
            found.chat.close()
        self._open.clear()


async def _live(app: ASGIApp, ready: "asyncio.Future[None]") -> None:
    """Run an app that came late from its start to the end of the server, as a server does with its own."""
    came: asyncio.Queue[Message] = asyncio.Queue()
    came.put_nowait({"type": "lifespan.startup"})

    async def told(message: Message) -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, came.get, told)
    finally:
        if not ready.done():
            ready.set_result(None)


class ByUser:
    """ASGI middleware: requests with a user's key go to that user's own routes, those of the owner on."""

    def __init__(self, app: ASGIApp, *, people: People) -> None:
        self.app, self.people = app, people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope.get("lectern.user")
        if user is None or scope["path"] == HEALTH:
            return await self.app(scope, receive, send)
        try:
            app: ASGIApp | None = None
            if PROGRAMS.fullmatch(scope["path"]):
                app = await run_in_threadpool(self.people.app, user)
            else:
                app = await self.people.page(user)
            app = app or PlainTextResponse("There is nothing here.", 404)
        except Exception as error:
            known = told(error)
            if known is None:
                log.error("the library of a user cannot be opened", exc_info=error)
                known = ApiError(WENT_WRONG, status=500)
            return await known.response()(scope, receive, send)
        await app(scope, receive, send)


class Audit:
    """ASGI middleware: one line of JSON for each request of a program: when, who, what, and how it ended. No texts."""

    def __init__(self, app: ASGIApp, *, home: Path, watched: Callable[[str], object]) -> None:
        self.app, self.watched = app, watched
        handler = RotatingFileHandler(home / AUDIT, maxBytes=AUDIT_BYTES, backupCount=AUDIT_FILES, delay=True)
        self._lines = logging.Logger("audit")  # of this app alone
        self._lines.addHandler(handler)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.watched(scope["path"]):
            return await self.app(scope, receive, send)
        began, status = time.time(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            self._lines.info(json.dumps(self._line(scope, began, status)))

    @staticmethod
    def _line(scope: Scope, began: float, status: int) -> dict[str, object]:
        user = scope.get("lectern.user")
        return {
            "at": round(began, 3), "seconds": round(time.time() - began, 3), "from": (scope.get("client") or ("",))[0],
            "user": user.name if user else "owner" if scope.get("lectern.owner") else "nobody",
            "method": scope["method"], "route": _route(scope["path"]), "status": status,
        }  # fmt: skip


def _route(path: str) -> str:
    """The path without the names of documents and models."""
    parts = path.split("/")
    return "/".join(parts[:4] if parts[2:3] == ["chat"] else parts[:3])
