"""The chats at the side: open one, name it, begin another."""

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.records import ChatInfo
from app.ui import actions, chats_tab, format

if TYPE_CHECKING:
    from app.chat import DocumentChat

MOST = 200  # the rest is found by search


def listing(chat: "DocumentChat", shown: str | None, today: datetime | None = None) -> str:
    """HTML of the chats, newest first, those of today before the others.

    Args:
        shown: the chat that the page shows, which is marked.
        today: now, on this computer's clock.
    """
    try:
        chats = [info for info in chat.chats() if info.messages]
    except Exception as error:
        return format.failure(error)
    if not chats:
        return '<p class="lt-nothing">No chats yet.</p>'
    day = (today or datetime.now(UTC).astimezone()).date()
    groups: dict[str, list[ChatInfo]] = {}
    for info in chats[:MOST]:
        groups.setdefault("Today" if _day(info.updated) == day else "Earlier", []).append(info)
    more = f'<p class="lt-nothing">and {len(chats) - MOST:,} more</p>' if len(chats) > MOST else ""
    return "".join(_group(name, some, shown) for name, some in groups.items()) + more


def _day(moment: str) -> Any:
    try:
        stored = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (stored if stored.tzinfo else stored.replace(tzinfo=UTC)).astimezone().date()


def _group(name: str, chats: Iterable[ChatInfo], shown: str | None) -> str:
    rows = "".join(_row(info, info.id == shown) for info in chats)
    return f'<h3 class="lt-when">{name}</h3><ul class="lt-side-list">{rows}</ul>'


def _row(info: ChatInfo, shown: bool) -> str:
    key, title = escape(info.id), escape(info.title)
    mark = ' aria-current="page"' if shown else ""
    return (
        f'<li><button type="button" class="lt-side-open" data-do="chat-show" data-id="{key}" '
        f'title="{title}"{mark}>{title}</button>'
        f'<details class="lt-confirm"><summary class="lt-tool" aria-label="Rename {title}">✎</summary>'
        f'<form class="lt-pop" data-do="side-rename" data-id="{key}"><input name="text" value="{title}" required '
        'maxlength="120" aria-label="New title"><button class="lt-button">Rename</button></form></details></li>'
    )


def build(chat: "DocumentChat", shown: gr.State, kept: gr.HTML) -> gr.HTML:
    """Lay the list out in the current column and wire it.

    Args:
        shown: the chat that the Ask tab shows.
        kept: changes with it.
    """
    found = gr.HTML(elem_id="side-chats")

    def rename(key: str, title: str, now: str | None) -> str:
        status, _ = chats_tab.rename(chat, key, title, "")
        return status + listing(chat, now)

    kept.change(lambda now: listing(chat, now), shown, found, queue=False, **actions.PRIVATE)
    actions.on("side-rename", rename, form=True, inputs=shown, outputs=found, queue=False)
    return found
