"""The endpoint of each user: a library, chats and a queue of readings of their own, over the model of the owner.

Nothing of one is within reach of another: whose key it is decides which store is opened, and no store knows of others.
"""

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import ApiError, told
from app.api.routes import WENT_WRONG, Endpoint
from app.errors import NotFoundError, StoreError
from app.store.users import User, Users

if TYPE_CHECKING:
    from app.chat import DocumentChat

log = logging.getLogger(__name__)
AUDIT = "audit.log"
AUDIT_BYTES, AUDIT_FILES = 5_000_000, 3


class People:
    """Opens the library of a user when it is needed, and keeps it open."""

    def __init__(self, owner: "DocumentChat", users: Users) -> None:
        self.owner, self.users = owner, users
        self._lock = threading.Lock()
        self._open: dict[str, tuple[DocumentChat, Endpoint, FastAPI]] = {}
        users.sweep()

    def app(self, user: User) -> FastAPI:
        """The routes under /v1 for a user.

        Raises:
            LecternError: the model or the library cannot be had.
        """
        with self._lock:
            if user.id not in self._open:
                self._open[user.id] = self._opened(user)
            chat, _, app = self._open[user.id]
            chat.model.follow(self.owner.model)
            return app

    def share(self, chat: "DocumentChat", document: str, name: str) -> None:
        """Put a copy of a document, with the memory of its reading, into the library of another user.

        Raises:
            LecternError: there is no such document or user, or the model is in use.
            ApiError: the other's library is full.
        """
        user = next((user for user in self.users.everyone() if user.name == name), None)
        if user is None:
            raise NotFoundError(f"user {name!r:.60}: not there; ask for the name that `users add` was given")
        self.app(user)
        theirs, endpoint, _ = self._open[user.id]
        endpoint.allowance.room(theirs)
        with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
            path, own = Path(folder) / "shared.lectern", chat.saved.new_chat([document])
            try:
                chat.transfers.export_file(own, path)
            finally:
                chat.saved.forget_empty(own)
            theirs.saved.forget_empty(theirs.transfers.import_chat(path))

    def _opened(self, user: User) -> "tuple[DocumentChat, Endpoint, FastAPI]":
        home = self.users.folder(user)
        chat = self.owner.beside(home, disk_budget_gb=user.limits.gigabytes)
        endpoint = Endpoint(chat, limits=user.limits, share=self.share)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.include_router(endpoint.router())
        endpoint.reading.take_up()
        return chat, endpoint, app

    def of_key(self, key: str) -> User | None:
        """Whose key it is; nobody's while the list of users cannot be read."""
        try:
            return self.users.of_key(key)
        except StoreError as error:
            log.error("%s", error)
            return None

    def close(self) -> None:
        """End readings and give the libraries back."""
        for chat, endpoint, _ in self._open.values():
            endpoint.reading.close()
            chat.close()
        self._open.clear()


class ByUser:
    """ASGI middleware: requests with a user's key go to that user's own routes, those of the owner on."""

    def __init__(self, app: ASGIApp, *, people: People) -> None:
        self.app, self.people = app, people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope.get("lectern.user")
        if user is None:
            return await self.app(scope, receive, send)
        try:
            app = await run_in_threadpool(self.people.app, user)
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
