"""Search in the text of the library: places that hold the words, and the part around one."""

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import gradio as gr

from app.records import DocumentInfo
from app.ui import actions, format, viewer
from app.ui.ask_tab import PRIVATE

if TYPE_CHECKING:
    from app.chat import DocumentChat

SHOWN = 20


def hits(chat: "DocumentChat", query: str) -> str:
    """HTML of the places that hold every word of the query, best first; "" for no query."""
    if not query.strip():
        return ""
    try:
        found = chat.search_parts(query, SHOWN)
        documents = {info.id: info for info in chat.documents()}
    except Exception as error:
        return format.failure(error)
    if not found:
        return f'<p class="lt-nothing">No document holds “{escape(query.strip())}”.</p>'
    rows = []
    for key, index, label, snippet in found:
        info = documents.get(key)
        where = escape(_part(label, info))
        title = escape(info.title if info else key)
        data = f'data-do="found" data-id="{escape(key)}@{index}"'
        rows.append(
            f'<li class="lt-chat"><button type="button" class="lt-open" {data}>'
            f"<b>{title} · {where}</b><span>{escape(' '.join(snippet.split()))}</span></button></li>"
        )
    more = f"<p class=lt-nothing>The first {SHOWN} places.</p>" if len(found) == SHOWN else ""
    return f'<ul class="lt-chats">{"".join(rows)}</ul>{more}'


def _part(label: str, info: DocumentInfo | None) -> str:
    """Where a part stands; one of a plain text, which has a number of ours only, by how many there are."""
    place = format.place(label, info.kind if info else None)
    return f"{place} of {info.parts}" if info and info.kind == "text" else place


def page(chat: "DocumentChat", target: str, query: str) -> str:
    """HTML of the part that a hit lies in, its first word marked.

    Args:
        target: data-id of the hit: document id and part index.
    """
    try:
        key, index = viewer.target(target)
        info, part = chat.document(key), chat.part(key, index)
    except Exception as error:
        return format.failure(error)
    start, end = first_match(part.text, query)
    where = escape(_part(part.label, info))
    return (
        '<section class="lt-page" tabindex="-1" aria-label="Found text">'
        f"<header><div><h3>{escape(info.title)}</h3><p>{where}</p></div>"
        '<button type="button" class="lt-tool" data-do="found-close" aria-label="Close">✕</button></header>'
        f'<div class="lt-text" tabindex="0">{viewer.text(part, start, end)}</div></section>'
    )


def first_match(text: str, query: str) -> tuple[int, int]:
    """Where the query's first phrase or word stands in the text, in any case; (0, 0) when it does not."""
    for term in re.findall(r'"([^"]+)"|(\w[^\s"]*)', query):
        words = re.escape(" ".join((term[0] or term[1]).split())).replace(r"\ ", r"\s+")
        if match := re.search(words, text, re.IGNORECASE):
            return match.span()
    return 0, 0


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
    shown = gr.HTML(elem_id="found-page", js_on_load=_TO_MARK)
    found = gr.HTML(elem_id="found")

    def look(words: str) -> tuple[str, str]:
        return hits(chat, words), ""

    query.change(look, query, [found, shown], queue=False, trigger_mode="always_last", **PRIVATE)
    actions.on("found", lambda target, words: page(chat, target, words), inputs=query, outputs=shown, queue=False)
    actions.on("found-close", lambda _id: "", outputs=shown, queue=False)
    return Search(query, found, shown)


_TO_MARK = """
watch('value', () => requestAnimationFrame(() => {
  const pane = element.querySelector('.lt-text'), mark = element.querySelector('.lt-mark');
  if (pane) pane.scrollTop = mark ? mark.offsetTop - pane.clientHeight / 3 : 0;
  element.querySelector('.lt-page')?.focus({ preventScroll: false });
}));
"""
