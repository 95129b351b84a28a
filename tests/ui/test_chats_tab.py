"""The Chats tab's functions over a fake chat."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import NotFoundError
from app.ui import chats_tab
from app.ui.uploads import Uploads
from tests.fake_chat import FakeDocumentChat


def filled(chat: FakeDocumentChat, *questions: str) -> None:
    for question in questions:
        list(chat.ask(question))


def test_newest_chat_comes_first_with_its_actions(chat: FakeDocumentChat) -> None:
    filled(chat, "About whales", "About <b>ships</b>")
    html = chats_tab.listing(chat)
    assert html.index("ships") < html.index("whales")
    assert "<b>ships" not in html and "2 messages" in html and "no document" in html
    for action in ("chat-open", "chat-rename", "chat-delete"):
        assert f'data-do="{action}" data-id="c1"' in html
    for form in ("md", "json", "lectern"):
        assert f'href="chats/c1/export.{form}"' in html
    for turns in ("all", "0"):
        assert f'data-do="chat-fork" data-id="c1@{turns}"' in html


def test_fork_and_import(chat: FakeDocumentChat, tmp_path: Path, uploads: Uploads, send: Callable[[Path], str]) -> None:
    filled(chat, "About whales")
    assert len(chat.saved.messages(chats_tab.fork(chat, "c1@all"))) == 2
    assert chat.saved.messages(chats_tab.fork(chat, "c1@0")) == []
    with pytest.raises(NotFoundError):
        chats_tab.fork(chat, "gone@all")
    file = tmp_path / "chat.lectern"
    chat.transfers.export_file("c1", file)
    sent = send(file)
    status, html = chats_tab.take(chat, sent, True, "", uploads)
    assert "About whales: 2 messages taken in" in status and html.count("chat-open") == 3 and not Path(sent).exists()
    file.write_text("no chat", encoding="utf-8")
    sent = send(file)
    status, _ = chats_tab.take(chat, sent, False, "", uploads)
    assert "chat.lectern: not a chat" in status and not Path(sent).exists()
    status, _ = chats_tab.take(chat, str(file), False, "", uploads)
    assert "was not uploaded" in status and file.exists()


def test_deleted_document_is_named_so(chat: FakeDocumentChat, book: Path) -> None:
    document = chat.library.add_document(book).id
    list(chat.ask("About whales", documents=[document]))
    assert "A Quiet Coast" in chats_tab.listing(chat)
    chat.library.delete_document(document)
    assert "a deleted document" in chats_tab.listing(chat)


def test_empty_chats_are_left_out(chat: FakeDocumentChat) -> None:
    chat.saved.new_chat()
    assert "No chats yet" in chats_tab.listing(chat)


def test_search(chat: FakeDocumentChat) -> None:
    filled(chat, "About whales", "About ships")
    html = chats_tab.listing(chat, " WHALES ")
    assert "whales" in html and "ships" not in html
    assert "No chat holds “&lt;krill”" in chats_tab.listing(chat, "<krill")
    assert "No chats yet" in chats_tab.listing(FakeDocumentChat(chat.settings.folder))


def test_rename(chat: FakeDocumentChat) -> None:
    filled(chat, "About whales")
    status, html = chats_tab.rename(chat, "c1", "  Sea & land ", "")
    assert status == "" and "Sea &amp; land" in html
    assert "needs a title" in chats_tab.rename(chat, "c1", "  ", "")[0]
    assert "not here any more" in chats_tab.rename(chat, "c9", "x", "")[0]


def test_delete(chat: FakeDocumentChat) -> None:
    filled(chat, "About whales")
    status, html = chats_tab.delete(chat, "c1", "")
    assert status == "" and "No chats yet" in html
    assert "not here any more" in chats_tab.delete(chat, "c1", "")[0]
