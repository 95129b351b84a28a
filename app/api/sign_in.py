"""The page beyond this computer opens with the keys that programs have: a form takes one, a cookie stands for it."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from app.guard import SIGN_IN, SIGN_OUT, read_body
from app.store.users import User

COOKIE = "lectern-session"
LASTS_S = 7 * 86400.0
MOST_SESSIONS = 1000  # the oldest goes first
MOST_BYTES = 4096

_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Lectern</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>
:root{color-scheme:light dark}body{font:16px/1.6 system-ui,sans-serif;max-width:26rem;margin:15vh auto;padding:0 1.5rem}
label{display:block}input,button{font:inherit;box-sizing:border-box;width:100%%;padding:.5rem .75rem;margin:.5rem 0}
[role=alert]{color:light-dark(#9b1c1c,#f0a0a0)}</style>
<main><h1>Lectern</h1>%s<form method="post" action="%s"><label for="key">Your key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button></form><p>It is the key that programs have, too. Whoever runs this Lectern gives it to you.</p>
</main></html>"""
_WRONG = '<p role="alert">No user has this key. Look whether it is whole, and try again.</p>'


@dataclass(frozen=True)
class Signed:
    """Who signed in, until when.

    Attributes:
        key: digest of the user's key, "" for the owner: one that is taken away opens nothing more.
    """

    key: str
    until: float


class SignIn:
    """ASGI app of the form, and what its cookies stand for. They are kept in this process: a new start asks again.

    Attributes:
        secure: whether cookies travel by TLS alone.
    """

    def __init__(
        self, is_owner: Callable[[str], bool], of_key: Callable[[str], User | None],
        of_digest: Callable[[str], User | None], secure: bool = True,
    ) -> None:  # fmt: skip
        self._is_owner, self._of_key, self._of_digest = is_owner, of_key, of_digest
        self.secure = secure
        self._lock = threading.Lock()
        self._signed: dict[str, Signed] = {}

    def who(self, headers: Headers) -> User | bool:
        """The user who asks, True for the owner, False for nobody."""
        signed = self._signed.get(_token(headers))
        if signed is None or signed.until < time.monotonic():
            return False
        return not signed.key or self._of_digest(signed.key) or False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The form, and what it sends."""
        headers = Headers(scope=scope)
        if scope["method"] == "POST" and scope["path"] == SIGN_OUT:
            with self._lock:
                self._signed.pop(_token(headers), None)
            answer: Response = RedirectResponse("/", 303)
            answer.delete_cookie(COOKIE, path="/", secure=self.secure, httponly=True, samesite="strict")
        elif scope["method"] == "POST" and scope["path"] == SIGN_IN:
            body = await read_body(receive, MOST_BYTES)
            answer = self._welcome("".join(parse_qs(body[:MOST_BYTES].decode("latin-1")).get("key", [])).strip())
        else:
            answer = form()
        answer.headers["Cache-Control"] = "no-store"
        await answer(scope, receive, send)

    def _welcome(self, key: str) -> Response:
        owner, user = self._is_owner(key), self._of_key(key)
        if not key or not (owner or user):
            return form(_WRONG)
        token = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._signed) >= MOST_SESSIONS:
                del self._signed[next(iter(self._signed))]
            digest = "" if owner or user is None else user.digest
            self._signed[token] = Signed(digest, time.monotonic() + LASTS_S)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE, token, max_age=int(LASTS_S), path="/", secure=self.secure, httponly=True, samesite="strict"
        )
        return answer


def form(problem: str = "") -> Response:
    """The form; 401, for nothing is shown yet."""
    return HTMLResponse(_FORM % (problem, SIGN_IN), 401)


def _token(headers: Headers) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
