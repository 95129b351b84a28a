"""Commands that open the page and look at the installation: serve, doctor."""

import argparse
import webbrowser

from app.cli.session import Session
from app.errors import BusyError


def serve(session: Session, args: argparse.Namespace) -> None:
    """Serve the page; on a folder that is already served, open the running page."""
    try:
        with session.chat() as chat:
            from app.server import serve as serve_page
            from app.ui.build import build

            serve_page(chat, build(chat), port=args.port, browser=args.browser, say=session.out.say)
    except BusyError as error:
        if error.url is None:
            raise
        from app.server import has_display

        if args.browser and has_display():
            webbrowser.open(error.url)
        session.out.say(f"Lectern is already open at {error.url}")
        if session.out.json:
            session.out.result({"url": error.url})


def doctor(session: Session, args: argparse.Namespace) -> int:
    """Say what Lectern found on this computer."""
    from app import doctor as examine

    return examine.run(session.settings, session.out)
