"""Serve the page over a FakeDocumentChat: `python -m tests.fake_server PORT HOME [PACE_S] [MODEL_PROBLEM]`.

Nothing can be downloaded while HOME has a file `offline`, which says why.
"""

import sys
from pathlib import Path

from app import server
from app.chat.fetching import Fetching
from app.ui.build import build
from tests.fake_chat import FakeDocumentChat, fake_passkey_run, model_state

if __name__ == "__main__":
    port, home, pace_s, problem = [*sys.argv[1:], *("0.03", "")[len(sys.argv) - 3 :]]
    model = model_state(state="failed", detail=problem) if problem else model_state()
    chat = FakeDocumentChat(Path(home), pace_s=float(pace_s), model=model)
    cut = Path(home) / "offline"
    chat.fetching = Fetching(chat._fetched, offline=lambda: cut.read_text(encoding="utf-8") if cut.exists() else "")
    server.serve(chat, build(chat, run_passkey=fake_passkey_run), port=int(port), browser=False)
