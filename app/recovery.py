"""The page of a data folder whose library is lost: what was found, and a click that brings the copy back."""

import threading
from collections.abc import Callable
from html import escape
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from app.errors import LostLibrary, StoreError
from app.guard import Guard, address, new_key
from app.server import ADDRESS, bind, has_display, run_server, show_page

_PAGE = """<!doctype html><meta charset="utf-8"><title>Lectern</title>
<style>body{font:16px/1.6 system-ui,sans-serif;max-width:40rem;margin:12vh auto;padding:0 1.5rem}
button{font:inherit;padding:.4rem 1rem;margin:.3rem .6rem .3rem 0}</style>
<h1>Your library is not where it was</h1>"""
_DONE = (
    _PAGE.replace("Your library is not where it was", "Done")
    + """<p role="status">Lectern is starting; this page goes on by itself.</p>
<script>setInterval(() => fetch('/health').then(() => location.replace('/'), () => {}), 1000)</script>"""
)


def page(lost: LostLibrary, problem: str = "") -> str:
    """HTML that says what was found and offers what can be done."""
    copy = f'<button name="do" value="restore">Put back {escape(lost.copy)}</button><br>' if lost.copy else ""
    said = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    return (
        f"{_PAGE}{said}<p>{escape(lost.found)}.</p><form method=post>{copy}"
        '<button name="do" value="empty">Begin with an empty library</button></form>'
        "<p>Nothing is deleted either way: what is there is kept under other names.</p>"
    )


def create_app(lost: LostLibrary, key: str, chosen: Callable[[], None]) -> Starlette:
    """The page, which does what was chosen and then calls `chosen`. The caller owns the folder."""
    from app.store import copies

    async def show(_request: Request) -> HTMLResponse:
        return HTMLResponse(page(lost))

    async def choose(request: Request) -> HTMLResponse:
        choice = parse_qs((await request.body()).decode("latin-1")).get("do", [""])[0]
        try:
            if choice == "restore":
                copies.restore(lost.home)
            elif choice == "empty":
                copies.begin_empty(lost.home)
            else:
                return HTMLResponse(page(lost), status_code=400)
        except StoreError as error:
            return HTMLResponse(page(lost, str(error)), status_code=409)
        return HTMLResponse(_DONE, background=BackgroundTask(chosen))

    app = Starlette(routes=[Route("/", show), Route("/", choose, methods=["POST"])])
    app.add_middleware(Guard, key=key)
    return app


def offer(lost: LostLibrary, *, port: int | None, browser: bool, say: Callable[[str], None]) -> tuple[int, str] | None:
    """Serve the page until the user has chosen.

    Returns:
        port and key, by which the page goes on at the start that follows; None when Ctrl-C or SIGTERM came first.
    """
    from app.store.home import acquire

    lock, listener, key = acquire(lost.home), bind(port), new_key()
    port = listener.getsockname()[1]
    url, done = address(f"http://{ADDRESS}:{port}/", key), threading.Event()

    def ready() -> None:
        lock.set_url(url)
        say(f"What was found, and a click that mends it: {url}")
        if browser and has_display():
            threading.Thread(target=show_page, args=(url, lost.home), daemon=True).start()

    try:
        run_server(lambda stop: create_app(lost, key, lambda: (done.set(), stop())), listener, ready)
    finally:
        listener.close()
        lock.release()
    return (port, key) if done.is_set() else None
