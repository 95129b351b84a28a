"""The chats at the side."""

from dataclasses import replace
from datetime import UTC, datetime

from app.ui import sidebar
from tests.fake_chat import FakeDocumentChat


def test_chats_of_today_stand_before_earlier_ones(chat: FakeDocumentChat) -> None:
    assert "No chats yet" in sidebar.listing(chat, None)
    for question in ("<old>?", "new?"):
        *_, done = chat.ask(question)
    new = chat._kept(done.chat)
    new.info = replace(new.info, updated="2026-03-04 12:00:00")
    noon = datetime(2026, 3, 4, 12, tzinfo=UTC).astimezone()
    html = sidebar.listing(chat, done.chat, noon)
    assert html.index("Today") < html.index("new?") < html.index("Earlier") < html.index("&lt;old&gt;?")
    assert html.count("aria-current") == 1 and f'data-id="{done.chat}" title="new?" aria-current="page"' in html
    assert "<old>" not in html and "Today" not in sidebar.listing(chat, None)
