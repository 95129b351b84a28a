"""The Chats tab: find, open, rename, delete and export what was asked before."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from app.records import ChatInfo, OtherModel
from app.ui import actions, format, switching
from app.ui.ask_tab import PRIVATE, Reaction
from app.ui.uploads import Uploads

if TYPE_CHECKING:
    from app.chat import DocumentChat


def _row(chat: ChatInfo, titles: dict[str, str], other: OtherModel | None) -> str:
    key, title = escape(chat.id), escape(chat.title)
    documents = [titles.get(document, "a deleted document") for document in chat.documents]
    facts = (", ".join(documents) or "no document", format.plural(chat.messages, "message"), format.when(chat.updated))
    return (
        f'<li class="lt-chat"><button type="button" class="lt-open" data-do="chat-open" data-id="{key}"><b>{title}</b>'
        f"<span>{escape(' · '.join(facts))}</span>{_other(other)}</button>"
        f'<div class="lt-buttons">{switching.button(other, "chat-model", "lt-tool") if other else ""}'
        '<details class="lt-confirm"><summary class="lt-tool">Rename</summary>'
        f'<form class="lt-pop" data-do="chat-rename" data-id="{key}"><input name="text" value="{title}" required '
        'maxlength="120" aria-label="New title"><button class="lt-button">Rename</button></form></details>'
        f"{_fork(chat)}{_export(chat)}"
        f'<details class="lt-confirm"><summary class="lt-tool" aria-label="Delete {title}">Delete</summary>'
        f'<div class="lt-pop"><p>Delete the chat “{title}”?</p><button type="button" class="lt-button lt-danger" '
        f'data-do="chat-delete" data-id="{key}">Delete</button></div></details></div></li>'
    )


def _other(other: OtherModel | None) -> str:
    """Whose memory the chat has, when that model is not loaded."""
    if other is None:
        return ""
    text = f"Read with {other.name}; asking now reads {other.cost}."
    return f'<span class="lt-other-line">{escape(text)}</span>'


def _fork(chat: ChatInfo) -> str:
    key = escape(chat.id)
    return (
        '<details class="lt-confirm"><summary class="lt-tool">Fork</summary><div class="lt-pop">'
        "<p>A new chat on the same memory; nothing is read again.</p>"
        f'<button type="button" class="lt-button" data-do="chat-fork" data-id="{key}@all">With all turns</button> '
        f'<button type="button" class="lt-button" data-do="chat-fork" data-id="{key}@0">Documents only</button>'
        "</div></details>"
    )


def _export(chat: ChatInfo) -> str:
    forms = (("md", "Markdown"), ("json", "JSON"), ("lectern", "With its memory, for another Lectern"))
    links = "".join(
        f'<p><a class="lt-tool" href="chats/{quote(chat.id)}/export.{form}" download>{word}</a></p>'
        for form, word in forms
    )
    return (
        '<details class="lt-confirm"><summary class="lt-tool">Export</summary>'
        f'<div class="lt-pop">{links}</div></details>'
    )


def fork(chat: "DocumentChat", target: str) -> str:
    """Fork a chat; returns the chat to show.

    Args:
        target: data-id of the button: chat id, and `all` or `0` turns.

    Raises:
        LecternError: the chat is not there any more, or nothing can be written.
    """
    key, _, turns = target.rpartition("@")
    return chat.saved.fork(key, 0 if turns == "0" else None)


def take(chat: "DocumentChat", file: str, text_only: bool, query: str, uploads: Uploads) -> tuple[str, str]:
    """Import a chat from an uploaded file, which is deleted; (status HTML, list HTML)."""
    try:
        with uploads.taken(file) as own:
            info = chat.saved.chat(chat.transfers.import_chat(own, text_only=text_only))
        status = format.notice(f"{info.title}: {format.plural(info.messages, 'message')} taken in.")
    except Exception as error:
        status = format.failure(error)
    return status, listing(chat, query)


def listing(chat: "DocumentChat", query: str = "") -> str:
    """HTML of the chats that hold the words of the query in title or text, newest first; empty ones are not told of."""
    try:
        chats = [info for info in chat.saved.chats(query.strip() or None) if info.messages]
        titles = {document.id: document.title for document in chat.library.documents()}
        others = chat.shelf.other_models()
    except Exception as error:
        return format.failure(error)
    if not chats:
        text = f"No chat holds “{escape(query.strip())}”." if query.strip() else "No chats yet. Ask something first."
        return f'<p class="lt-nothing">{text}</p>'
    return f'<ul class="lt-chats">{"".join(_row(info, titles, others.get(info.id)) for info in chats)}</ul>'


def rename(chat: "DocumentChat", key: str, title: str, query: str) -> tuple[str, str]:
    """Rename a chat; (status HTML, list HTML)."""
    status = ""
    try:
        if title.strip():
            chat.saved.rename_chat(key, title.strip())
        else:
            status = format.notice("A chat needs a title.")
    except Exception as error:
        status = format.failure(error)
    return status, listing(chat, query)


def delete(chat: "DocumentChat", key: str, query: str) -> tuple[str, str]:
    """Delete a chat; (status HTML, list HTML)."""
    status = ""
    try:
        chat.saved.delete_chat(key)
    except Exception as error:
        status = format.failure(error)
    return status, listing(chat, query)


@dataclass(frozen=True)
class ChatsTab:
    """Parts that the page needs."""

    query: gr.Textbox
    list: gr.HTML


def build(
    chat: "DocumentChat",
    chat_id: gr.State,
    open_chat: Reaction,
    forget: Reaction,
    *,
    header: switching.Header,
    uploads: Uploads,
) -> ChatsTab:
    """Lay the tab out inside the current gr.Tab and wire it.

    Args:
        chat_id: the chat that the Ask tab shows.
        open_chat: takes a chat id; shows the chat in the Ask tab.
        forget: takes the id of a deleted chat and `chat_id`; the Ask tab lets go of it.
    """
    query = gr.Textbox(
        value="",
        placeholder="Search titles and messages",
        show_label=False,
        label="Search",
        container=False,
        elem_id="search",
    )
    status = gr.HTML(elem_id="chats-status")
    with gr.Accordion("Import a chat", open=False, elem_classes="lt-settings"):
        file = gr.File(label="A .lectern or .json file", type="filepath", height=110, elem_id="import")
        text_only = gr.Checkbox(label="Leave its memory out: its documents are read again when asked about")
    found = gr.HTML(elem_id="chats", js_on_load=actions.STAYS_OPEN)

    query.change(lambda words: listing(chat, words), query, found, queue=False, trigger_mode="always_last", **PRIVATE)

    def importing(path: str, without: bool, words: str) -> tuple[Any, ...]:
        return *take(chat, path, without, words, uploads), None

    file.upload(importing, [file, text_only, query], [status, found, file], **PRIVATE)
    actions.on(
        "chat-fork",
        lambda target: open_chat.handler(fork(chat, target)),
        outputs=open_chat.outputs,
        cancels=open_chat.cancels,
        queue=False,
    )
    actions.on("chat-open", open_chat.handler, outputs=open_chat.outputs, cancels=open_chat.cancels, **actions.SHOWS)
    actions.on(
        "chat-rename",
        lambda key, title, words: rename(chat, key, title, words),
        form=True,
        inputs=query,
        outputs=[status, found],
        queue=False,
    )
    actions.on(
        "chat-delete",
        lambda key, words, shown: (*delete(chat, key, words), *forget.handler(key, shown)),
        inputs=[query, chat_id],
        outputs=[status, found, *forget.outputs],
        queue=False,
    )
    switching.wire(chat, "chat-model", status, header)
    return ChatsTab(query, found)
