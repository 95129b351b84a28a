"""Who may talk to the page: this computer's own browser, with the key of this start. Everybody else is refused."""

import hmac
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from html import escape
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.wellformed import parse_json

log = logging.getLogger(__name__)

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
KEY = "key"  # in the URL that is printed
HEALTH = "/health"
OPEN_TO_ALL = (HEALTH, "/ready")
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
PROGRAMS = re.compile(r"/v1/.*|/metrics")  # these want the key for programs, and no cookie
CALLS = ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/run/predict/")
OPEN_PAGE = "/gradio_api/heartbeat/"  # a request that lasts as long as the page is open
CALL_BYTES = 16 << 20  # a pasted text is the longest thing that the page sends as an event

# What the page itself asks for. Of what Gradio serves beside it nothing is reached, events by their name included.
ROUTES = re.compile(
    r"/|/config|/theme\.css|/robots\.txt|/favicon\.ico|/manifest\.json|/(?:assets|static|svelte)/.+"
    r"|/chats/[^/]+/export\.\w+|/documents/\w+/pages/\d{1,6}\.jpg"
    r"|/gradio_api/(?:app_id|startup-events|queue/join|queue/data|run/predict|cancel|reset|heartbeat/\w+|upload"
    r"|upload_progress)/?"
)

# Text of a document may ask the browser for anything; it gets nothing that is not ours.
# Gradio needs inline and evaluated scripts.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
)

# What is wrong with the JSON of an event, or None.
Check = Callable[[Mapping[str, Any]], str | None]

_CLOSED = """<!doctype html><meta charset="utf-8"><title>Lectern</title>
<style>body{font:16px/1.6 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1.5rem}</style>
<h1>Lectern is open, but not by this address</h1>
<p>So that no other account or program on this computer can read your documents, the page opens with the address that
Lectern printed when it started. To see it again, run <code>python launch.py</code> once more.</p>"""


def refusal(hosts: list[str], origins: list[str], site: str | None = None, beyond: bool = False) -> str | None:
    """Why a request is refused, or None.

    A page of another site can reach a loopback server by naming it (Origin differs) or by a name of its own that
    resolves to 127.0.0.1 (Host differs).

    Args:
        hosts, origins: all values of these headers.
        site: the header Sec-Fetch-Site; browsers say with it whose page asks.
        beyond: other computers may ask, by whatever name this one has there.
    """
    host = hosts[0] if len(hosts) == 1 else ""
    if not beyond and re.sub(r":\d+$", "", host).lower() not in LOOPBACK_NAMES:
        return f"Host {', '.join(hosts) or '(none)'} is refused: open Lectern under 127.0.0.1 or localhost."
    own = (f"http://{host.lower()}", f"https://{host.lower()}")
    if len(origins) > 1 or any(origin.lower() not in own for origin in origins):
        return f"Origin {', '.join(origins)} is refused: only pages of this Lectern may talk to it."
    if site in ("cross-site", "same-site"):
        return "A page of another site asked for this: only pages of this Lectern may talk to it."
    return None


def new_key() -> str:
    """The key of a start."""
    return secrets.token_urlsafe(24)


def address(url: str, key: str) -> str:
    """The URL that opens the page, with the key."""
    return f"{url}?{urlencode({KEY: key})}"


class Guard:
    """ASGI middleware: answers requests that have the key and come from this computer's own page.

    The key is in the URL that is printed; it becomes a cookie that scripts and other sites cannot read. The app sees
    `scope["lectern.known"]`, whether the request has the key. Routes for programs want a key of their own in the header
    Authorization; "" closes them.

    Attributes:
        users: whose a key for programs is, if it is not the owner's; the app sees it as `scope["lectern.user"]`, or
            `scope["lectern.owner"]`.
        beyond: where requests come from other computers too, the form that opens the page to them; None on this one.
    """

    def __init__(
        self, app: ASGIApp, *, key: str, programs: str = "", users: Callable[[str], Any] = lambda key: None,
        beyond: "Beyond | None" = None,
    ) -> None:  # fmt: skip
        self.app = app
        self.key = key
        self.programs, self.users, self.beyond = programs, users, beyond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        answer = self._answer(scope, Headers(scope=scope))
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        else:
            await (answer or self.app)(scope, receive, _with_policy(send))

    def _answer(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        """A refusal, or the redirect that takes the key out of the address; None lets the request through."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get(KEY, [])
        opening = scope.get("method") == "GET" and scope["path"] == "/"
        site = None if opening else headers.get("sec-fetch-site")
        problem = refusal(headers.getlist("host"), headers.getlist("origin"), site, self.beyond is not None)
        if problem is not None:
            return PlainTextResponse(problem, status_code=403)
        if PROGRAMS.fullmatch(scope["path"]):
            return self._refused_program(scope, headers.get("authorization", ""))
        if self.beyond is not None:
            return self._answer_beyond(scope, headers, self.beyond)
        name = cookie_name(headers["host"])
        if opening and given and all(self._is_key(one) for one in given):
            return self._welcome(name, headers)
        kept = cookie_parser(headers.get("cookie", "")).get(name, "")
        scope["lectern.known"] = known = self._is_key(kept)
        if scope["path"] in OPEN_TO_ALL:
            return None
        if not known:
            if opening:
                return HTMLResponse(_CLOSED, status_code=403)
            return PlainTextResponse("Open Lectern by the address that it printed when it started.", status_code=403)
        if not ROUTES.fullmatch(scope["path"]):
            return PlainTextResponse("There is nothing here.", status_code=404)
        return None

    def _answer_beyond(self, scope: Scope, headers: Headers, beyond: "Beyond") -> ASGIApp | None:
        """The page for those who signed in; to others the form, and nothing else but health."""
        who, path = beyond.who(headers), scope["path"]
        scope["lectern.known"] = bool(who)
        if who:
            scope["lectern.owner" if who is True else "lectern.user"] = who
        if path == HEALTH:
            return None
        if path in (SIGN_IN, SIGN_OUT) or (path == "/" and not who and scope.get("method") == "GET"):
            return beyond
        if not who or not ROUTES.fullmatch(path):
            return PlainTextResponse("There is nothing here.", 404)
        return None

    def _refused_program(self, scope: Scope, given: str) -> Response | None:
        kind, key = given.partition(" ")[0].lower(), given.partition(" ")[2].strip()
        if kind == "bearer" and key:
            if self.programs and hmac.compare_digest(key.encode(), self.programs.encode()):
                scope["lectern.owner"] = True
                return None
            if user := self.users(key):
                scope["lectern.user"] = user
                return None
        message = "The key is missing or wrong: send it as Authorization: Bearer KEY; `python launch.py key` shows it."
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
        return JSONResponse({"error": error}, 401, headers={"WWW-Authenticate": "Bearer"})

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.key.encode())

    def _welcome(self, name: str, headers: Headers) -> Response:
        """Set the cookie and go on without the key. After a link on another page a redirect would lose the cookie."""
        answer: Response = RedirectResponse("/", status_code=303)
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            answer = HTMLResponse('<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>Lectern</title>')
        answer.set_cookie(name, self.key, httponly=True, samesite="strict", path="/")
        answer.headers["Cache-Control"] = "no-store"
        return answer


class Beyond(Protocol):
    """The form by which the page is opened from other computers, an ASGI app."""

    def who(self, headers: Headers) -> Any:
        """Whoever signed in, True for the owner; False for nobody."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class OnlyPrograms:
    """From other computers there is no page."""

    def who(self, headers: Headers) -> bool:
        return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)


class Events:
    """ASGI middleware of one page: looks at its events, and knows which loads of it are open.

    Attributes:
        check: looks at the events.
        opened: is entered while a page is open, with its session.
    """

    def __init__(self, app: ASGIApp, *, check: Check, opened: Callable[[str], Any]) -> None:
        self.app, self.check, self.opened = app, check, opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] in CALLS and scope["method"] == "POST":
            body, answer = await self._checked(receive)
            receive = _replayed(body, receive)
            if answer is not None:
                return await answer(scope, receive, send)
        with self.opened(scope["path"][len(OPEN_PAGE) :]) if scope["path"].startswith(OPEN_PAGE) else nullcontext():
            await self.app(scope, receive, send)

    async def _checked(self, receive: Receive) -> tuple[bytes, Response | None]:
        """The body of an event, and the refusal of one that the page would not send, with one line in the log.

        Half characters in it are replaced: no answer could repeat them.
        """
        body, problem = await read_body(receive, CALL_BYTES), None
        if len(body) > CALL_BYTES:
            problem = f"more than {CALL_BYTES >> 20} MB"
        else:
            try:
                call = parse_json(body)
            except ValueError:
                call = None
            problem = "not a JSON object" if not isinstance(call, dict) else self.check(call)
        if problem is None:
            return json.dumps(call).encode() if b"\\u" in body else body, None
        log.warning("an event was refused: %s", problem)
        told = f"This was refused: {escape(problem)}. Reload the page and try again."
        return b"", JSONResponse({"error": told}, status_code=400)  # the page shows the words of a 400


def cookie_name(host: str) -> str:
    """Browsers keep one set of cookies for all ports of a name: each port has a cookie of its own."""
    port = re.search(r":(\d+)$", host)
    return f"lectern-{port[1] if port else 80}"


async def read_body(receive: Receive, limit: int) -> bytes:
    """The body of a request; reading ends soon after the limit."""
    body = bytearray()
    while len(body) <= limit:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, then what comes after it."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _with_policy(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = CONTENT_POLICY
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "same-origin"  # without one the forms of the page would come from nowhere
        await send(message)

    return wrapped
