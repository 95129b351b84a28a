"""Loading another model, from whichever tab, and the notice where a chat's memory belongs to another one."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.records import OtherModel
from app.system import duration
from app.ui import actions, format
from app.ui.actions import GPU, PRIVATE
from app.ui.asking import closed_after

if TYPE_CHECKING:
    from app.chat import DocumentChat

TOLD_AFTER_S = 1.0  # a quicker load needs no clock


@dataclass(frozen=True)
class Header:
    """Parts of the page's header.

    Attributes:
        model: the mark of the model; whatever depends on the model follows its changes.
        poll: looks at the model and at what is wrong with it, until it is loaded.
    """

    model: gr.HTML
    poll: gr.Timer


def load(chat: "DocumentChat", choice: str) -> Iterator[str]:
    """Load a model in place of the loaded one; status HTML."""
    try:
        with closed_after(chat.model.switch_model(choice)) as steps:
            for step in steps:
                clock = f" · {duration(step.elapsed_s)}" if step.elapsed_s > TOLD_AFTER_S else ""
                yield format.waiting(f"Loading {step.name}: {step.step}{clock}")
        yield format.notice(f"{chat.model.model_state().name} is loaded.")
    except Exception as error:
        yield format.failure(error)


def button(other: OtherModel, action: str, form: str = "lt-button") -> str:
    """The way back to the model of a chat's memory; "" where its files are gone."""
    if not other.choice:
        return ""
    return (
        f'<button type="button" class="{form}" data-do="{action}" data-id="{escape(other.choice)}">'
        f"Load {escape(other.name)}</button>"
    )


def notice(chat: "DocumentChat", chat_id: str | None) -> str:
    """HTML that says whose memory the chat has, when another model is loaded, and how to go on with it; else ""."""
    try:
        other = chat.shelf.other_model(chat_id) if chat_id else None
        if other and chat.saved.answer_settings(chat_id).model not in ("", chat.shelf.loaded_choice()):
            return format.notice("This chat has a model of its own; its next question loads that first.")
    except Exception as error:
        return format.failure(error)
    if other is None:
        return ""
    name, now = escape(other.name), escape(other.loaded)
    lost = "" if other.choice else f" {name} is not where it was: add its folder in Models to go on with it."
    return (
        f'<div class="lt-notice lt-other" role="status"><p>This chat was read with <b>{name}</b>, and <b>{now}</b> is '
        f"loaded. Asking now reads {escape(other.cost)}. What {name} has read stays.{lost}</p>"
        f"{button(other, 'model-back')}</div>"
    )


def wire(chat: "DocumentChat", action: str, status: gr.HTML, header: Header) -> Any:
    """Have a click on `data-do=action` load the model that its data-id names. Call it in the tab that draws the button.

    Returns:
        the event at whose end the model is loaded, or is not.
    """
    wanted = gr.State("")

    def announce(choice: str) -> tuple[str, str]:
        busy = chat.jobs.busy()
        return format.waiting(f"Waiting for the model: {busy}" if busy else "Loading"), choice

    def run(choice: str) -> Iterator[tuple[Any, ...]]:
        for line in load(chat, choice):
            yield line, format.model(chat.model.model_state()), gr.skip()
        # The timer's next look brings what depends on the model up to date, also after a failure.
        yield gr.skip(), format.model(chat.model.model_state()), gr.Timer(active=True)

    clicked = actions.on(action, announce, outputs=[status, wanted], queue=False)
    return clicked.then(run, wanted, [status, header.model, header.poll], **GPU, **PRIVATE)
