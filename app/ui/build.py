"""Assemble the tabs into one page."""

import os
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.eval import passkey
from app.ui import actions, ask_tab, branching, chats_tab, format, library_tab, passkey_tab, theme
from app.ui.ask_tab import PRIVATE, Reaction
from app.ui.asking import reopened

if TYPE_CHECKING:
    from app.chat import DocumentChat

UPLOADS = "uploads"  # in the data folder: an uploaded file is private and may be large
UPLOAD_KEPT_S = 3600
POLL_S = 1.0
QUEUE_LENGTH = 32


def build(chat: "DocumentChat", *, run_passkey: passkey_tab.Run = passkey.run) -> gr.Blocks:
    """The whole page, with its theme, css and head set, for `app.server.create_app`."""
    os.environ["GRADIO_TEMP_DIR"] = str(chat.settings.folder / UPLOADS)
    blocks = gr.Blocks(
        title="Lectern", analytics_enabled=False, delete_cache=(UPLOAD_KEPT_S, UPLOAD_KEPT_S), fill_width=True
    )
    with blocks:
        with gr.Row(elem_classes="lt-header"):
            gr.HTML(theme.WORDMARK, elem_classes="lt-wordmark")
            model = gr.HTML(elem_id="model")
        problem = gr.HTML(elem_id="problem")
        with gr.Tabs(selected="ask", elem_id="tabs") as tabs:
            with gr.Tab("Ask", id="ask") as ask:
                asking = ask_tab.build(chat)
                opening = _open_chat(chat, asking, tabs)
                actions.on(
                    "fork",
                    lambda answer, shown: opening.handler(branching.fork(chat, shown, answer)),
                    inputs=asking.chat_id,
                    outputs=opening.outputs,
                    cancels=opening.cancels,
                    queue=False,
                )
            with gr.Tab("Library", id="library") as library:
                shelf = library_tab.build(chat, _open_ask(asking, tabs))
            with gr.Tab("Chats", id="chats") as chats:
                found = chats_tab.build(chat, asking.chat_id, opening, _forget(asking))
            with gr.Tab("Passkey", id="passkey") as passkeys:
                keys = passkey_tab.build(chat, run_passkey)
        poll = gr.Timer(POLL_S)

        def state() -> tuple[Any, ...]:
            """The model's mark, what is wrong with it or the folder, the remark about it, and whether to look again."""
            now = chat.model_state()
            again = gr.Timer(active=now.state == "loading")
            return format.model(now), format.problem(now) + format.notes(chat.notes()), format.demonstration(now), again

        def recall(kept: str) -> tuple[Any, ...]:
            return opening.handler(reopened(chat, kept))

        def lengths() -> Any:
            trained = chat.model_state().trained_tokens
            offered = passkey_tab.lengths(trained)
            return gr.update(choices=offered, value=[offered[0][1], offered[2][1]])

        marks = [model, problem, asking.remark, poll]
        poll.tick(state, None, marks, queue=False, **PRIVATE)
        # One after the other: the model's mark makes the tabs look again at what is picked.
        reload = blocks.load(recall, asking.kept, opening.outputs, js=ask_tab.RECALL, queue=False, **PRIVATE)
        reload.then(state, None, marks, queue=False, **PRIVATE)
        ask.select(asking.refresh, [asking.picker, asking.policy], asking.library, queue=False, **PRIVATE)
        library.select(lambda: library_tab.table(chat), None, shelf.table, queue=False, **PRIVATE)
        chats.select(lambda query: chats_tab.listing(chat, query), found.query, found.list, queue=False, **PRIVATE)
        passkeys.select(lambda: passkey_tab.earlier(chat), None, keys.earlier, queue=False, **PRIVATE)
        # What was read and how long a text may be depends on the model that has just become ready.
        model.change(lengths, None, keys.lengths, queue=False, **PRIVATE)
        model.change(lambda: library_tab.table(chat), None, shelf.table, queue=False, **PRIVATE)
        model.change(asking.refresh, [asking.picker, asking.policy], asking.library, queue=False, **PRIVATE)
    blocks.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=4, api_open=False)
    blocks.theme, blocks.css, blocks.head = theme.theme(), theme.css(), theme.head()
    return blocks


def _open_ask(asking: ask_tab.AskTab, tabs: gr.Tabs) -> Reaction:
    """Document id: start a new chat over that document."""

    def start(document: str) -> tuple[Any, ...]:
        return *asking.show(None), *asking.refresh([document]), gr.update(visible=False), gr.Tabs(selected="ask")

    return Reaction(start, [*asking.view, *asking.library, asking.side, tabs], asking.streams)


def _open_chat(chat: "DocumentChat", asking: ask_tab.AskTab, tabs: gr.Tabs) -> Reaction:
    """Chat id: show a kept chat; None: an empty one."""

    def show(key: str | None) -> tuple[Any, ...]:
        known = next((info for info in chat.chats() if info.id == key), None)
        library = asking.refresh(list(known.documents), known.policy) if known else asking.refresh([])
        return *asking.show(key), *library, gr.update(visible=False), gr.Tabs(selected="ask")

    return Reaction(show, [*asking.view, *asking.library, asking.side, tabs], asking.streams)


def _forget(asking: ask_tab.AskTab) -> Reaction:
    """Ids of a deleted chat and of the one that is shown: let go of it when they are the same."""

    def forget(deleted: str, shown: str | None) -> tuple[Any, ...]:
        return asking.show(None) if deleted == shown else tuple([gr.skip()] * len(asking.view))

    return Reaction(forget, asking.view)
