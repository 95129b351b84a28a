"""The one FastAPI app: Gradio at /, health and chat export beside it, on this machine's loopback only."""

import getpass
import hmac
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import __version__
from app.errors import ConfigError, LecternError, StoreError
from app.guard import PROGRAMS, Events, Guard, address, new_key
from app.store.home import programs_key
from app.store.room import Room
from app.store.users import Users

if TYPE_CHECKING:
    import gradio
    import uvicorn

    from app.api.people import People
    from app.api.reading import BackgroundReading
    from app.api.routes import Endpoint
    from app.api.sign_in import SignIn
    from app.chat import DocumentChat
    from app.store.users import User

log = logging.getLogger(__name__)

# (library, its queue of readings, name of the user, folder for uploads) -> the page
Build = Callable[["DocumentChat", "BackgroundReading", str, Path], "gradio.Blocks"]

ADDRESS = "127.0.0.1"
FIRST_PORT = 7860
PORTS_TRIED = 100
SNAPS = ("/snap/bin/firefox", "/snap/bin/chromium")
MAX_UPLOAD = "512mb"
UPLOAD, UPLOADS = "/gradio_api/upload", "uploads"


@dataclass(frozen=True)
class Network:
    """Where Lectern listens.

    Attributes:
        certificate, certificate_key: PEM files, for TLS.
        behind_proxy: another program does TLS and passes on what other computers ask.

    Raises:
        ConfigError: other computers could ask without TLS, or a file is not there.
    """

    host: str = ADDRESS
    certificate: Path | None = None
    certificate_key: Path | None = None
    behind_proxy: bool = False

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.certificate_key):
            raise ConfigError("--certificate and --certificate-key: are needed together")
        for name in ("certificate", "certificate_key"):
            path = getattr(self, name)
            if path and not path.is_file():
                raise ConfigError(f"--{name.replace('_', '-')} {path}: is no file; give one in PEM form")
        if self.host not in (ADDRESS, "::1", "localhost") and not self.certificate and not self.behind_proxy:
            raise ConfigError(
                f"--host {self.host}: other computers could ask, and keys would cross the network as they are; give "
                "--certificate and --certificate-key, or --behind-proxy where another program does TLS"
            )

    @property
    def beyond(self) -> bool:
        """Whether other computers may ask; the page wants to be signed in to then."""
        return self.host not in (ADDRESS, "::1", "localhost") or self.behind_proxy or bool(self.certificate)

    def page(self, port: int) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{port}/"

    def url(self, port: int) -> str:
        """The base URL for programs."""
        return f"{self.page(port)}v1"


def create_app(
    chat: "DocumentChat", blocks: "gradio.Blocks", key: str, programs: str = "", people: "People | None" = None,
    beyond: "SignIn | None" = None,
) -> FastAPI:  # fmt: skip
    """The whole app of an owner: the page at /, OpenAI's protocol under /v1, health and exports.

    Args:
        blocks: what `app.ui.build.build(chat)` made; its theme, css, head, check and queue are used.
        key: without it only /health answers.
        programs: the key that other programs send; "" keeps /v1 closed.
        people: users who have keys of their own.
        beyond: where other computers ask too, what opens the page to them.
    """
    from app.api.metrics import Metrics
    from app.api.people import Audit, ByUser
    from app.api.routes import Endpoint

    app = FastAPI(title="Lectern", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    share, metrics = (people.share, people.metrics) if people else (None, None)
    endpoint = Endpoint(chat, blocks.reading, share, metrics or Metrics())
    app.include_router(endpoint.router())
    _page_middleware(app, blocks, chat.settings.folder / UPLOADS)
    if people:
        app.add_middleware(ByUser, people=people)
    app.add_middleware(
        Guard, key=key, programs=programs, beyond=beyond, users=people.of_key if people else lambda key: None
    )
    if people:
        app.add_middleware(Audit, home=chat.settings.folder, watched=PROGRAMS.fullmatch)

    _own_routes(app, chat, endpoint)
    return _with_page(app, chat, blocks)


def _own_routes(app: FastAPI, chat: "DocumentChat", endpoint: "Endpoint") -> None:
    """How Lectern is."""
    from app.api.metrics import FORM

    @app.get("/health")
    def health(request: Request) -> dict[str, Any]:
        model = chat.model.model_state()
        told: dict[str, Any] = {"app": "lectern", "version": __version__, "model": {"state": model.state}}
        if request.scope["lectern.known"]:  # names and titles are the owner's
            told["model"] |= {"name": model.name, "detail": model.detail}
            told["busy"] = chat.jobs.busy()
        return told

    @app.get("/ready")
    def ready() -> JSONResponse:
        """Whether questions are answered at once; a model that was unloaded is loaded by the next one."""
        able = chat.model.model_state().state in ("ready", "unloaded")
        return JSONResponse({"ready": able}, 200 if able else 503, headers={} if able else {"Retry-After": "5"})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(endpoint.metrics.text(), media_type=FORM)


def user_app(chat: "DocumentChat", blocks: "gradio.Blocks", uploads: Path) -> FastAPI:
    """The page of a user who signed in; who asks was looked at before.

    Args:
        uploads: where files lie that the browser sent.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _page_middleware(app, blocks, uploads)
    _with_page(app, chat, blocks)
    mounted = app.routes[-1].app  # Gradio's own app; else it would take the folder of the page that was made last
    mounted.uploaded_file_dir = str(uploads)
    return app


def _page_middleware(app: FastAPI, blocks: "gradio.Blocks", uploads: Path) -> None:
    app.add_middleware(FirstPage)
    app.add_middleware(PageFiles)
    app.add_middleware(UploadRoom, folder=uploads)
    app.add_middleware(Events, check=blocks.check, opened=blocks.sessions.open)


def _with_page(app: FastAPI, chat: "DocumentChat", blocks: "gradio.Blocks") -> FastAPI:
    """Mount the page at / beside exports and pages of documents."""
    import gradio

    _files_routes(app, chat)
    blocks.has_launched = True  # mounting does not say so, and Gradio looks where an event's files lie only then
    return gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=ADDRESS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        theme=blocks.theme,
        css=blocks.css,
        head=blocks.head,
    )


def _files_routes(app: FastAPI, chat: "DocumentChat") -> None:
    """Chats as files, and pages as pictures, for the one who may see them."""

    @app.get("/chats/{chat_id}/export.{form}")
    def export(chat_id: str, form: Literal["md", "json", "lectern"]) -> Response:
        try:
            if chat.saved.chat(chat_id).id != chat_id:  # the first letters of an id will do on the command line only
                raise LecternError(f"{chat_id}: there is no such chat")
            return _export(chat, chat_id, form)
        except LecternError as error:
            return PlainTextResponse(str(error), status_code=404)

    @app.get("/documents/{document}/pages/{number}.jpg")
    def page(document: str, number: int) -> Response:
        """A page of a PDF; it stays the same as long as the document is here."""
        try:
            if chat.library.document(document).id != document:  # the first letters will do on the command line only
                raise LecternError("there is no such document")
            image = chat.pages.page_image(document, number)
        except LecternError as error:
            return PlainTextResponse(str(error), status_code=404)
        if image is None:
            return PlainTextResponse("there is no such page", status_code=404)
        return Response(image, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.exception_handler(Exception)
    def unexpected(_request: Any, error: Exception) -> JSONResponse:
        log.error("request failed", exc_info=error)
        return JSONResponse({"error": "Something went wrong inside Lectern; its log has the details."}, 500)


def bind(port: int | None = None, host: str = ADDRESS) -> socket.socket:
    """Take the given port, or the first free one from 7860.

    Raises:
        ConfigError: the port is taken or may not be used.
    """
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS_TRIED)
    problem: OSError | None = None
    for candidate in ports:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        if os.name != "nt":  # on Windows the option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections take it over. asyncio sets it only on sockets made with a protocol's number, and without it each
        # answer waits 40 ms for the acknowledgement of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((host, candidate))
            return listener
        except (OSError, OverflowError) as error:
            listener.close()
            problem = error if isinstance(error, OSError) else OSError(str(error))
    if port is not None:
        raise ConfigError(f"--port {port}: cannot be used ({problem}); choose another or leave --port out")
    raise ConfigError(f"ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} are all taken; name one with --port")


def has_display(environment: Any = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser opened here would be seen by the user."""
    if platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in environment
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def show_page(url: str, home: Path) -> None:
    """Open the page in the user's browser.

    Other accounts see the command lines of programs: the key goes to the browser in a file that only its owner reads.
    Windows hides command lines from other accounts, and a browser in a snap reads no hidden folder.
    """
    if os.name == "nt" or any(map(os.path.exists, SNAPS)):
        webbrowser.open(url)
        return
    file = home / "open.html"
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as page:
        page.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(url)}"><title>Lectern</title>')
    webbrowser.open(file.as_uri())


def forwarding_line(port: int) -> str:
    """The command that brings the page to the computer a user sits at."""
    return f"From another computer: ssh -L {port}:{ADDRESS}:{port} {getpass.getuser()}@{socket.gethostname()}"


def _server(
    app: ASGIApp, ready: Callable[[], None], ending: Callable[[], None], network: "Network" = Network()
) -> "uvicorn.Server":
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            ending()
            # An open page holds a connection for its events that would never end by itself.
            for connection in list(self.server_state.connections):
                connection.transport.close()
            await super().shutdown(sockets)

    tls = {"ssl_certfile": network.certificate, "ssl_keyfile": network.certificate_key} if network.certificate else {}
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, **tls)
    return Server(config)


def _export(chat: "DocumentChat", chat_id: str, form: str) -> Response:
    """A chat as a download. One with its memory goes through a file, which is deleted when it was sent."""
    title = chat.saved.chat(chat_id).title
    name = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()[:60] or "chat"
    headers = {"Content-Disposition": f'attachment; filename="{name}.{form}"'}
    if form == "md":
        return Response(chat.transfers.export_chat(chat_id), media_type="text/markdown; charset=utf-8", headers=headers)
    if form == "json":
        return Response(chat.transfers.export_json(chat_id), media_type="application/json", headers=headers)
    folder = chat.settings.folder / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{secrets.token_hex(8)}.lectern"
    chat.transfers.export_file(chat_id, path)
    return _Once(path, media_type="application/octet-stream", headers=headers)


class FirstPage:
    """ASGI middleware: what is at / is made once for each address by which it is opened; all loads of it are alike.

    Gradio would describe the whole page anew each time, for 30 ms of a thread that answers and readings need.
    """

    KEPT = 8

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._kept: dict[tuple[Any, ...], list[Message]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (scope.get("method"), scope.get("path"), scope.get("query_string")) != ("GET", "/", b""):
            return await self.app(scope, receive, send)
        named = (pair for pair in scope["headers"] if pair[0] == b"host" or pair[0].startswith(b"x-forwarded-"))
        address = (scope["scheme"], *sorted(named))
        made = self._kept.get(address, [])
        for message in made:
            await send({**message, "headers": [*message["headers"]]} if "headers" in message else message)
        if made:
            return

        async def keeping(message: Message) -> None:
            made.append({**message, "headers": [*message["headers"]]} if "headers" in message else message)
            await send(message)

        await self.app(scope, receive, keeping)
        if made and made[0].get("status") == 200 and not made[-1].get("more_body"):
            while len(self._kept) >= self.KEPT:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[address] = made


class PageFiles:
    """ASGI middleware: the page's files go out as they are, and stay in the browser, as their names change with them.

    Gradio would compress each of a hundred files at each load, for a connection that seldom leaves this computer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def staying(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                MutableHeaders(scope=message)["Cache-Control"] = "private, max-age=31536000, immutable"
            await send(message)

        plain = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
        kept = scope["path"].startswith("/assets/")
        await self.app(scope | {"headers": plain}, receive, staying if kept else send)


class UploadRoom:
    """ASGI middleware: an upload that finds no room is told why, and one that breaks off leaves nothing."""

    def __init__(self, app: ASGIApp, *, folder: Path) -> None:
        self.app, self.folder = app, folder
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].rstrip("/") != UPLOAD:
            await self.app(scope, receive, send)
            return
        came: list[int] = []

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                came.append(message["status"])
            await send(message)

        self._running += 1
        try:
            length = Headers(scope=scope).get("content-length", "")
            if (home := self.folder.parent).exists():
                Room(home).require(int(length) if length.isdecimal() else 0)
            await self.app(scope, receive, noting)
        except (OSError, StoreError) as error:
            if came:
                raise
            text = str(error) if isinstance(error, StoreError) else f"The file could not be kept: {error.strerror}."
            came.append(507)
            await PlainTextResponse(text, status_code=507)(scope, receive, send)
        finally:
            self._running -= 1
            if not self._running and came != [200]:
                for path in self.folder.glob("tmp*"):  # parts of uploads; whole ones lie in folders
                    if path.is_file():
                        path.unlink(missing_ok=True)


class _Once(FileResponse):
    """A file that goes when it was sent, or when the one who asked for it has gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            Path(self.path).unlink(missing_ok=True)


def _programs_key(chat: "DocumentChat", say: Callable[[str], None]) -> str:
    """The key for programs; "" where it cannot be kept, as on a full disk: the page opens all the same."""
    try:
        return programs_key(chat.settings.folder)
    except StoreError as error:
        say(f"{error}. Other programs cannot use this Lectern until then.")
        return ""


@contextmanager
def _quiet_stop() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into a normal return, so that the caller closes the store."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)) if main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def serve(
    chat: "DocumentChat",
    blocks: "gradio.Blocks",
    *,
    port: int | None = None,
    browser: bool = True,
    say: Callable[[str], None] = partial(print, flush=True),
    key: str | None = None,
    network: Network = Network(),
    build: "Build | None" = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; the caller closes `chat` afterwards.

    Args:
        port: None takes the first free one from 7860.
        browser: open the page where there is a display.
        say: gets the lines for the user, the URL last.
        key: of a page that is open already; a new one when not given.
        network: where it listens, and how.
        build: makes the page of a user; None where users have none.

    Raises:
        ConfigError: no port can be used, or other computers could ask and there is no user.
    """
    from app.api.metrics import Metrics
    from app.api.people import People
    from app.api.sign_in import SignIn

    listener = bind(port, network.host)
    port = listener.getsockname()[1]
    opened, key = key is not None, key or new_key()
    url = address(f"http://{ADDRESS}:{port}/", key)

    def ready() -> None:
        if network.beyond:
            say(f"Browsers sign in at {network.page(port)}")
            say(f"Programs with a key reach Lectern at {network.url(port)}")
            return
        chat.lock.set_url(url)
        if not has_display():
            say(forwarding_line(port))
        say(f"Lectern is open at {url}")
        if browser and has_display() and not opened:
            threading.Thread(target=show_page, args=(url, chat.settings.folder), daemon=True).start()

    def make_page(own: "DocumentChat", user: "User", endpoint: "Endpoint") -> ASGIApp:
        assert build is not None
        uploads = chat.settings.folder / UPLOADS / user.id
        return user_app(own, build(own, endpoint.reading, user.name, uploads), uploads)

    users, programs = Users(chat.settings.folder), _programs_key(chat, say)
    if network.beyond and not users.everyone():
        listener.close()
        raise ConfigError("other computers could ask, and there is no user; add one: python launch.py users add NAME")
    people = People(chat, users, make_page if build and network.beyond else None, Metrics())
    is_owner = lambda given: bool(programs) and hmac.compare_digest(given.encode(), programs.encode())  # noqa: E731
    beyond = SignIn(is_owner, people.of_key, people.of_digest) if network.beyond else None
    with _quiet_stop():
        try:
            app = create_app(chat, blocks, key, programs, people, beyond)
            blocks.reading.take_up()
            _server(app, ready, chat.jobs.stop, network).run(sockets=[listener])
        finally:
            people.close()
            blocks.reading.close()
            listener.close()


def run_server(
    make: Callable[[Callable[[], None]], ASGIApp], listener: socket.socket, ready: Callable[[], None],
    network: Network = Network(),
) -> None:  # fmt: skip
    """Serve an app until it says so, or Ctrl-C or SIGTERM comes.

    Args:
        make: gets what ends the server.
    """

    def stop() -> None:
        server.should_exit = True

    server = _server(make(stop), ready, lambda: None, network)
    with _quiet_stop():
        server.run(sockets=[listener])
