"""The chats at the side: open one, name it, begin another."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.records import MARK_END, MARK_START, ChatHit, ChatInfo
from app.ui import actions, chats_tab, format

if TYPE_CHECKING:
    from app.chat import DocumentChat

MOST = 200  # the rest is found by search
FOUND = 30  # chats told of a search


def listing(chat: "DocumentChat", shown: str | None, today: datetime | None = None) -> str:
    """HTML of the chats, newest first, those of today before the others.

    Args:
        shown: the chat that the page shows, which is marked.
        today: now, on this computer's clock.
    """
    try:
        known = chat.saved.chats()
        chats = [info for info in known if info.messages]
    except Exception as error:
        return format.failure(error)
    if not chats:
        return '<p class="lt-nothing">No chats yet.</p>'
    day = (today or datetime.now(UTC).astimezone()).date()
    groups: dict[str, list[ChatInfo]] = {}
    for info in chats[:MOST]:
        groups.setdefault("Today" if _day(info.updated) == day else "Earlier", []).append(info)
    titles = {info.id: info.title for info in known}
    more = f'<p class="lt-nothing">and {len(chats) - MOST:,} more</p>' if len(chats) > MOST else ""
    return "".join(_group(name, some, shown, titles) for name, some in groups.items()) + more


def found(chat: "DocumentChat", query: str, shown: str | None) -> str:
    """HTML of the chats that hold the words of the query, which are marked; of all chats when there is none."""
    if not query.strip():
        return listing(chat, shown)
    try:
        hits = chat.saved.search_chats(query, FOUND + 1)
    except Exception as error:
        return format.failure(error)
    if not hits:
        return f'<p class="lt-nothing">No chat holds “{escape(query.strip())}”.</p>'
    more = f'<p class="lt-nothing">The first {FOUND} chats.</p>' if len(hits) > FOUND else ""
    return f'<ul class="lt-side-list">{"".join(_hit(hit, hit.chat == shown) for hit in hits[:FOUND])}</ul>{more}'


def _hit(hit: ChatHit, shown: bool) -> str:
    mark = ' aria-current="page"' if shown else ""
    text = f"<span class=lt-side-hit>{_marked(hit.text)}</span>" if hit.text else ""
    return (
        f'<li><button type="button" class="lt-side-open" data-do="chat-show" data-id="{escape(hit.chat)}"{mark}>'
        f"{_marked(hit.title)}{text}</button></li>"
    )


def _marked(text: str) -> str:
    return escape(" ".join(text.split())).replace(MARK_START, '<mark class="lt-mark">').replace(MARK_END, "</mark>")


def _day(moment: str) -> Any:
    try:
        stored = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (stored if stored.tzinfo else stored.replace(tzinfo=UTC)).astimezone().date()


def _group(name: str, chats: Iterable[ChatInfo], shown: str | None, titles: Mapping[str, str]) -> str:
    rows = "".join(_row(info, info.id == shown, titles) for info in chats)
    return f'<h3 class="lt-when">{name}</h3><ul class="lt-side-list">{rows}</ul>'


def _row(info: ChatInfo, shown: bool, titles: Mapping[str, str]) -> str:
    key, title = escape(info.id), escape(info.title.removesuffix(" (fork)") if info.parent else info.title)
    origin = escape(titles.get(info.parent or "", "a deleted chat"))
    origin = f"<span class=lt-side-from>from {origin}</span>" if info.parent else ""
    mark = ' aria-current="page"' if shown else ""
    return (
        f'<li><button type="button" class="lt-side-open" data-do="chat-show" data-id="{key}" '
        f'title="{title}"{mark}>{title}{origin}</button>'
        f'<details class="lt-confirm"><summary class="lt-tool" aria-label="Rename {title}">✎</summary>'
        f'<form class="lt-pop" data-do="side-rename" data-id="{key}"><input name="text" value="{title}" required '
        'maxlength="120" aria-label="New title"><button class="lt-button">Rename</button></form></details></li>'
    )


def build(chat: "DocumentChat", shown: gr.State, kept: gr.HTML) -> gr.HTML:
    """Lay the search and the list out in the current column and wire them; returns the list.

    Args:
        shown: the chat that the Ask tab shows.
        kept: changes with it.
    """
    query = gr.Textbox(
        value="", placeholder="Search the chats", show_label=False, label="Search the chats", container=False,
        elem_id="side-search",
    )  # fmt: skip
    chats = gr.HTML(elem_id="side-chats", js_on_load=actions.STAYS_OPEN)

    def look(words: str, now: str | None) -> str:
        return found(chat, words, now)

    def rename(key: str, title: str, now: str | None) -> str:
        status, _ = chats_tab.rename(chat, key, title, "")
        return status + listing(chat, now)

    query.change(look, [query, shown], chats, queue=False, trigger_mode="always_last", **actions.PRIVATE)
    kept.change(look, [query, shown], chats, queue=False, **actions.PRIVATE)
    actions.on("side-rename", rename, form=True, inputs=shown, outputs=chats, queue=False)
    return chats
