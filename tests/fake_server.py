"""Serve the page over a FakeDocumentChat: `python -m tests.fake_server PORT HOME [PACE_S]`. For looking at it."""

import sys
from pathlib import Path

from app import server
from app.ui.build import build
from tests.fake_chat import FakeDocumentChat, fake_passkey_run

if __name__ == "__main__":
    port, home = int(sys.argv[1]), Path(sys.argv[2])
    chat = FakeDocumentChat(home, pace_s=float(sys.argv[3]) if len(sys.argv) > 3 else 0.03)
    server.serve(chat, build(chat, run_passkey=fake_passkey_run), port=port, browser=False)
