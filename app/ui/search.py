"""Search in the text of the library: places that hold the words, and the part around one."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import gradio as gr

from app.ui import actions, format, leafing
from app.ui.ask_tab import PRIVATE, TO_MARK
from app.ui.viewer import LIBRARY

if TYPE_CHECKING:
    from app.chat import DocumentChat

SHOWN = 20


def hits(chat: "DocumentChat", query: str) -> str:
    """HTML of the places that hold every word of the query, best first; "" for no query."""
    if not query.strip():
        return ""
    try:
        found = chat.store.search_parts(query, SHOWN)
        documents = {info.id: info for info in chat.library.documents()}
    except Exception as error:
        return format.failure(error)
    if not found:
        return f'<p class="lt-nothing">No document holds “{escape(query.strip())}”.</p>'
    rows = []
    for key, index, label, snippet in found:
        info = documents.get(key)
        where = escape(leafing.part_name(label, info))
        title = escape(info.title if info else key)
        data = f'data-do="found" data-id="{escape(key)}@{index}"'
        rows.append(
            f'<li class="lt-chat"><button type="button" class="lt-open" {data}>'
            f"<b>{title} · {where}</b><span>{escape(' '.join(snippet.split()))}</span></button></li>"
        )
    more = f"<p class=lt-nothing>The first {SHOWN} places.</p>" if len(found) == SHOWN else ""
    return f'<ul class="lt-chats">{"".join(rows)}</ul>{more}'


@dataclass(frozen=True)
class Search:
    """Components of the search."""

    query: gr.Textbox
    found: gr.HTML
    page: gr.HTML


def build(chat: "DocumentChat") -> Search:
    """Lay the search out in the current tab and wire it."""
    query = gr.Textbox(
        value="",
        placeholder="Search in the text of all documents", show_label=False, label="Search documents",
        container=False, elem_id="find",
    )  # fmt: skip
    shown = gr.HTML(elem_id="found-page", js_on_load=TO_MARK)
    found = gr.HTML(elem_id="found")

    def look(words: str) -> tuple[str, str]:
        return hits(chat, words), ""

    query.change(look, query, [found, shown], queue=False, trigger_mode="always_last", **PRIVATE)

    def opened(target: str, words: str) -> str:
        return leafing.document(chat, target, words=words)

    def gone_to(target: str, typed: str) -> str:
        return leafing.document(chat, leafing.go(target, typed))

    def found_in(target: str, words: str) -> str:
        return leafing.document(chat, target, words)

    actions.on("found", opened, inputs=query, outputs=shown, **actions.SHOWS)
    actions.on(LIBRARY.turn, lambda target: leafing.document(chat, target), outputs=shown, **actions.SHOWS)
    actions.on(LIBRARY.go, gone_to, form=True, outputs=shown, queue=False)
    actions.on(LIBRARY.find, found_in, form=True, outputs=shown, queue=False)
    actions.on(LIBRARY.close, lambda _id: "", outputs=shown, queue=False)
    return Search(query, found, shown)
