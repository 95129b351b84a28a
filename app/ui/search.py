"""Search in the text of the library: places that hold the words, and the part around one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import gradio as gr

from app.records import DocumentInfo, Part
from app.ui import actions, format, viewer
from app.ui.ask_tab import PRIVATE
from app.ui.asking import scan

if TYPE_CHECKING:
    from app.chat import DocumentChat

SHOWN = 20
MOST_CONTENTS = 500


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


def page(chat: "DocumentChat", target: str, query: str, found: str = "") -> str:
    """HTML of a part of a document, the first word of the query marked, with the means to go through the document.

    Args:
        target: data-id of what was clicked: document id and part index.
        found: HTML of the places that a search in this document found.
    """
    try:
        key, index = viewer.target(target)
        info, part = chat.document(key), chat.part(key, index)
        contents = _contents(info, chat.store.parts(key), index)
    except Exception as error:
        return format.failure(error)
    start, end = first_match(part.text, query)
    where = escape(_part(part.label, info))
    name = escape(key)
    return (
        '<section class="lt-page" tabindex="-1" aria-label="Document">'
        f"<header><div><h3>{escape(info.title)}</h3><p>{where}{viewer.by_ocr(part, start, end)}</p></div>"
        '<button type="button" class="lt-tool" data-do="found-close" aria-label="Close">✕</button></header>'
        f'<div class="lt-through">{contents}<form data-do="find-in" data-id="{name}@{index}"><input name="text" '
        f'value="{escape(query)}" placeholder="Find in this document" aria-label="Find in this document"></form></div>'
        f'{found}<div class="lt-text" tabindex="0">{viewer.picture(scan(chat, key, part), part, start, end)}</div>'
        f"<nav>{_turn(key, index - 1, info.parts, '‹ Previous')}<span>{index} of {info.parts}</span>"
        f"{_turn(key, index + 1, info.parts, 'Next ›')}</nav></section>"
    )


def _turn(key: str, index: int, parts: int, word: str) -> str:
    target = f'data-id="{escape(key)}@{index}"' + ("" if 1 <= index <= parts else " disabled")
    return f'<button type="button" class="lt-tool" data-do="open-part" {target}>{word}</button>'


def _contents(info: DocumentInfo, parts: Sequence[Part], now: int) -> str:
    """Chapters, or else files or places, each opened by a click."""
    names: dict[str, int] = {}
    for part in parts:
        names.setdefault(part.chapter or _part(part.label, info), part.index)
    if len(names) < 2:
        return ""
    here = max((index for index in names.values() if index <= now), default=1)
    rows = "".join(
        f'<li><button type="button" class="lt-tool" data-do="open-part" data-id="{escape(info.id)}@{index}"'
        f'{" aria-current=true" if index == here else ""}>{escape(name)}</button></li>'
        for name, index in list(names.items())[:MOST_CONTENTS]
    )
    return f'<details class="lt-contents"><summary class="lt-tool">Contents</summary><ol>{rows}</ol></details>'


def find_in(chat: "DocumentChat", target: str, words: str) -> str:
    """HTML of the document at the first place that holds the words, with a list of the others."""
    try:
        key, _ = viewer.target(target)
        found = chat.search_parts(words, SHOWN, key) if words.strip() else []
    except Exception as error:
        return format.failure(error)
    if not found:
        return page(chat, target, words, f'<p class="lt-nothing">Nothing here holds “{escape(words.strip())}”.</p>')
    info = chat.document(key)
    rows = "".join(
        f'<li><button type="button" class="lt-tool" data-do="found-in" '
        f'data-id="{escape(f"{key}@{index}|{words}")}">{escape(_part(label, info))}</button></li>'
        for _, index, label, _ in found
    )
    return page(chat, f"{key}@{found[0][1]}", words, f'<ul class="lt-hits" aria-label="Places">{rows}</ul>')


def found_in(chat: "DocumentChat", target: str) -> str:
    """HTML of the document at one of those places; `target`: document id and part index, and the words."""
    place, _, words = target.partition("|")
    return page(chat, place, words)


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
    actions.on("open-part", lambda target: page(chat, target, ""), outputs=shown, queue=False)
    actions.on("find-in", lambda target, words: find_in(chat, target, words), form=True, outputs=shown, queue=False)
    actions.on("found-in", lambda target: found_in(chat, target), outputs=shown, queue=False)
    actions.on("found-close", lambda _id: "", outputs=shown, queue=False)
    return Search(query, found, shown)


_TO_MARK = """
watch('value', () => requestAnimationFrame(() => {
  const pane = element.querySelector('.lt-text'), mark = element.querySelector('.lt-mark');
  if (pane) pane.scrollTop = mark ? mark.offsetTop - pane.clientHeight / 3 : 0;
  element.querySelector('.lt-page')?.focus({ preventScroll: false });
}));
"""
