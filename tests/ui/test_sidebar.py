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


def test_a_fork_says_where_it_comes_from(chat: FakeDocumentChat) -> None:
    *_, done = chat.ask("About <b>ships</b>")
    chat.saved.fork(done.chat)
    assert "from About &lt;b&gt;ships&lt;/b&gt;</span>" in sidebar.listing(chat, None)
    chat.saved.delete_chat(done.chat)
    assert "from a deleted chat</span>" in sidebar.listing(chat, None)


def test_a_search_marks_what_it_found(chat: FakeDocumentChat) -> None:
    list(chat.ask("About <b>ships</b>"))
    list(chat.ask("About krill"))
    html = sidebar.found(chat, "ships", "c1")
    assert html.count('data-do="chat-show"') == 1 and 'data-id="c1" aria-current="page"' in html
    assert 'About &lt;b&gt;<mark class="lt-mark">ships</mark>&lt;/b&gt;' in html and "lt-side-hit" in html
    assert "No chat holds “&lt;x”" in sidebar.found(chat, "<x", None)
    assert sidebar.found(chat, "  ", None) == sidebar.listing(chat, None)
