"""Commands that open the page, show its key, and look at the installation: serve, key, doctor."""

import argparse

from app.cli.session import Session
from app.errors import BusyError, LostLibrary


def serve(session: Session, args: argparse.Namespace) -> None:
    """Serve the page; on a folder that is already served, open the running page."""
    try:
        try:
            _serve(session, args)
        except LostLibrary as lost:
            from app.recovery import offer

            session.out.say(str(lost))
            if chosen := offer(lost, port=args.port, browser=args.browser, say=session.out.say):
                args.port, key = chosen
                _serve(session, args, key)
    except BusyError as error:
        if error.url is None:
            raise
        from app.server import has_display, show_page

        if args.browser and has_display():
            show_page(error.url, session.settings.folder)
        session.out.say(f"Lectern is already open at {error.url}")
        if session.out.json:
            session.out.result({"url": error.url})


def _serve(session: Session, args: argparse.Namespace, key: str | None = None) -> None:
    from app.server import Network
    from app.server import serve as serve_page

    network = Network(args.host, args.certificate, args.certificate_key, args.behind_proxy)
    if args.replicas:
        from app.cluster.serve import serve as serve_many

        serve_many(session.settled(), args.replicas, network, where=args.ray, port=args.port, browser=args.browser,
                   say=session.out.say)  # fmt: skip
        return
    with session.chat() as chat:
        from app.ui.build import build, build_for

        serve_page(chat, build(chat), port=args.port, browser=args.browser, say=session.out.say, key=key,
                   network=network, build=build_for)  # fmt: skip


def key(session: Session, args: argparse.Namespace) -> None:
    """Show what another program has to be told to use this Lectern as an OpenAI-style endpoint."""
    from app.store.home import programs_key

    value = programs_key(session.settings.folder, fresh=args.new)
    again = "\nA Lectern that runs now takes it after its next start." if args.new else ""
    shown = f"base URL  http://127.0.0.1:7860/v1 (the port that Lectern printed)\nkey       {value}{again}"
    session.out.result({"key": value}, shown)


def doctor(session: Session, args: argparse.Namespace) -> int:
    """Say what Lectern found on this computer."""
    from app.cli import doctor as examine

    return examine.run(session.settings, session.out)
