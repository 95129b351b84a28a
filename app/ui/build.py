"""Assemble the tabs into one page."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.api.reading import BackgroundReading
from app.eval import passkey
from app.ui import (
    actions,
    answer_settings,
    ask_tab,
    branching,
    chats_tab,
    format,
    library_tab,
    models_tab,
    passkey_tab,
    reading,
    sidebar,
    switching,
    theme,
)
from app.ui.ask_tab import PRIVATE, Reaction
from app.ui.asking import reopened
from app.ui.events import checker, tell_failures
from app.ui.sessions import Sessions
from app.ui.uploads import FOLDER, Uploads

if TYPE_CHECKING:
    from app.chat import DocumentChat

UPLOAD_KEPT_S = 3600
POLL_S = 1.0
QUEUE_LENGTH = 32


def build(chat: "DocumentChat", *, run_passkey: passkey_tab.Run = passkey.run) -> gr.Blocks:
    """The whole page, with its theme, css, head, check of events and queue of readings set, for `create_app`."""
    folder = chat.settings.folder / FOLDER
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # those of users lie within
    return _build(chat, BackgroundReading(chat), folder, run_passkey, "")


def build_for(chat: "DocumentChat", queue: BackgroundReading, user: str, folder: Path) -> gr.Blocks:
    """The page of a user who signed in: without what concerns the model, which is the owner's.

    Args:
        user: their name.
        folder: for files that the browser sends, within that of the owner's page.
    """
    return _build(chat, queue, folder, None, user)


def _build(
    chat: "DocumentChat", queue: BackgroundReading, folder: Path, run_passkey: passkey_tab.Run | None, user: str
) -> gr.Blocks:
    """Args: run_passkey: None leaves out what is the owner's."""
    blocks = gr.Blocks(
        title="Lectern", analytics_enabled=False, delete_cache=(UPLOAD_KEPT_S, UPLOAD_KEPT_S), fill_width=True
    )
    uploads = Uploads(folder, blocks.upload_file_set)
    with blocks:
        model, chats_at_side = _frame(user)
        problem, poll = gr.HTML(elem_id="problem"), gr.Timer(POLL_S)
        line = reading.build(chat, queue)
        header = switching.Header(model, poll)
        with gr.Tabs(selected="ask", elem_id="tabs") as tabs:
            with gr.Tab("Ask", id="ask") as ask:
                asking = ask_tab.build(chat, queue, line, header, uploads)
                opening = _open_chat(chat, asking, tabs)
                _chat_actions(chat, asking, opening)
            with chats_at_side:
                listed = sidebar.build(chat, asking.chat_id, asking.kept)
            with gr.Tab("Library", id="library") as library:
                shelf = library_tab.build(chat, queue, _open_ask(asking, tabs), uploads)
            with gr.Tab("Chats", id="chats") as chats:
                found = chats_tab.build(chat, asking.chat_id, opening, _forget(asking), header=header, uploads=uploads)
            tabs_that_follow = [
                (ask, asking.again, [asking.picker, asking.policy], asking.library),
                (library, lambda: library_tab.table(chat, queue), None, shelf.table),
                (chats, lambda query: chats_tab.listing(chat, query), found.query, found.list),
            ]
            if run_passkey:
                tabs_that_follow.append(_owners_tabs(chat, run_passkey, header))
        look_at_model = _watch(chat, header, [model, problem, asking.remark, poll])
        # One after the other: the model's mark makes the tabs look again at what is picked.
        reload = _recall(chat, blocks, asking, opening)
        look_at_model(reload.then)
        for event in asking.streams:  # a chat may have loaded its own
            look_at_model(event.then)
        reload.then(lambda now: sidebar.listing(chat, now), asking.chat_id, listed, queue=False, **PRIVATE)
        # What was read and how long a text may be depends on the model too.
        for tab, look, given, shown in tabs_that_follow:
            tab.select(look, given, shown, queue=False, **PRIVATE)
            look_at_model(tab.select)  # another browser tab may have loaded another model
            model.change(look, given, shown, queue=False, **PRIVATE)
        line.mark.change(asking.news, [asking.picker, asking.policy], asking.library, queue=False, **PRIVATE)
        line.mark.change(lambda: library_tab.table(chat, queue), None, shelf.table, queue=False, **PRIVATE)
        _follow_model(chat, model, asking)
    tell_failures(blocks)
    blocks.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=4, api_open=False)
    blocks.theme, blocks.css, blocks.head = theme.theme(), theme.css(), theme.head()
    blocks.check, blocks.sessions, blocks.reading = checker(blocks, uploads), Sessions(blocks), queue
    return blocks


def _frame(user: str) -> tuple[gr.HTML, gr.Column]:
    """What stands around the tabs: the line at the top with the model's mark, and the column of chats at the side."""
    with gr.Row(elem_classes="lt-header"):
        gr.HTML(theme.WORDMARK, elem_classes="lt-wordmark")
        gr.HTML(theme.SWITCHES + (theme.signed_in(user) if user else ""), elem_classes="lt-switches")
        model = gr.HTML(elem_id="model")
    with gr.Sidebar(open=False, width=290, elem_id="side"):
        gr.HTML(theme.SIDE)
        return model, gr.Column()


def _chat_actions(chat: "DocumentChat", asking: ask_tab.AskTab, opening: Reaction) -> None:
    """Buttons in our own HTML that open a chat: a fork, and one of the list."""
    actions.on(
        "fork",
        lambda answer, shown: opening.handler(branching.fork(chat, shown, answer)),
        inputs=asking.chat_id,
        outputs=opening.outputs,
        cancels=opening.cancels,
        queue=False,
    )
    actions.on(
        "chat-show",
        lambda key: opening.handler(reopened(chat, key)),
        outputs=opening.outputs,
        cancels=opening.cancels,
        **actions.SHOWS,
    )


def _recall(chat: "DocumentChat", blocks: gr.Blocks, asking: ask_tab.AskTab, opening: Reaction) -> Any:
    """Show the chat that the browser tab had, when the page is opened; returns that event."""
    # The tab stays: the address may name a document, which another one shows.
    recall = lambda kept: (*opening.handler(reopened(chat, kept))[:-1], gr.skip())  # noqa: E731
    return blocks.load(recall, asking.kept, opening.outputs, js=ask_tab.RECALL, queue=False, **PRIVATE)


def _follow_model(chat: "DocumentChat", model: Any, asking: ask_tab.AskTab) -> None:
    """What another model changes beside the tabs: models to choose from, the notice."""
    offer = lambda shown: answer_settings.offered(chat, shown)  # noqa: E731
    model.change(offer, asking.chat_id, asking.settings[-1], queue=False, **PRIVATE)
    model.change(lambda shown: switching.notice(chat, shown), asking.chat_id, asking.other, queue=False, **PRIVATE)


def _owners_tabs(chat: "DocumentChat", run_passkey: passkey_tab.Run, header: switching.Header) -> tuple[Any, ...]:
    """The tabs that have the model alone; returns what of them follows its changes."""
    with gr.Tab("Passkey", id="passkey") as passkeys:
        keys = passkey_tab.build(chat, run_passkey)
    with gr.Tab("Models", id="models") as models:
        shelves = models_tab.build(chat, header)

    def lengths() -> Any:
        trained = chat.model.model_state().trained_tokens
        offered = passkey_tab.lengths(trained)
        return gr.update(choices=offered, value=[offered[0][1], offered[2][1]])

    passkeys.select(lambda: passkey_tab.earlier(chat), None, keys.earlier, queue=False, **PRIVATE)
    header.model.change(lengths, None, keys.lengths, queue=False, **PRIVATE)
    return models, lambda: models_tab.shown(chat), None, shelves.outputs


def _watch(chat: "DocumentChat", header: switching.Header, marks: list[Any]) -> Callable[[Callable[..., Any]], Any]:
    """Keep what the page says of the model up to date while it loads; returns what does so at another event.

    Args:
        marks: the model's mark, what is wrong with it or the folder, the remark about it, and the timer.
    """

    def state() -> tuple[Any, ...]:
        now = chat.model.model_state()
        again = gr.Timer(active=now.state in ("loading", "unloaded"))  # a question loads it again
        return format.model(now), format.problem(now) + format.notes(chat.notes()), format.demonstration(now), again

    def at(event: Callable[..., Any]) -> Any:
        return event(state, None, marks, queue=False, **PRIVATE)

    at(header.poll.tick)
    return at


def _open_ask(asking: ask_tab.AskTab, tabs: gr.Tabs) -> Reaction:
    """Document id: start a new chat over that document."""

    def start(document: str) -> tuple[Any, ...]:
        return *asking.show(None), *asking.refresh([document]), gr.update(visible=False), gr.Tabs(selected="ask")

    return Reaction(start, [*asking.view, *asking.library, asking.side, tabs], asking.streams)


def _open_chat(chat: "DocumentChat", asking: ask_tab.AskTab, tabs: gr.Tabs) -> Reaction:
    """Chat id: show a kept chat; None: an empty one."""

    def show(key: str | None) -> tuple[Any, ...]:
        known = next((info for info in chat.saved.chats() if info.id == key), None)
        library = asking.refresh(list(known.documents), known.policy) if known else asking.refresh([])
        return *asking.show(key), *library, gr.update(visible=False), gr.Tabs(selected="ask")

    return Reaction(show, [*asking.view, *asking.library, asking.side, tabs], asking.streams)


def _forget(asking: ask_tab.AskTab) -> Reaction:
    """Ids of a deleted chat and of the one that is shown: let go of it when they are the same."""

    def forget(deleted: str, shown: str | None) -> tuple[Any, ...]:
        return asking.show(None) if deleted == shown else tuple([gr.skip()] * len(asking.view))

    return Reaction(forget, asking.view)
