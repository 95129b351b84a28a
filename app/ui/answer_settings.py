"""How a chat is answered: the controls of its own settings, and those of new chats."""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.memory.config import GenerationConfig
from app.records import AnswerSettings
from app.ui import asking, format, policies, switching
from app.ui.actions import PRIVATE
from app.ui.asking import View

if TYPE_CHECKING:
    from app.chat import DocumentChat

log = logging.getLogger(__name__)
ANY = ("whichever is loaded", "")


@dataclass(frozen=True)
class Controls:
    """Components; the values of `settings` go to `chosen`, in order."""

    settings: list[Any]
    policy: gr.Dropdown
    default: gr.Button


def build(policy: str, fixed: bool = False) -> Controls:
    """Lay the controls out in the current column.

    Args:
        policy: the one of the start.
        fixed: whether there is one model for all chats.
    """
    with gr.Accordion("Answer settings", open=False, elem_classes="lt-settings"):
        with gr.Row():
            temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 always picks the likeliest")
            longest = gr.Slider(16, 2048, 256, step=16, label="Longest answer", info="in tokens")
        with gr.Accordion("Advanced", open=False, elem_classes="lt-settings"):
            about = "above temperature 0: of the likeliest words that reach this much together one is drawn"
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info=about)
            about = "what the model is told before the first question; empty for its own"
            system = gr.Textbox(
                value="", lines=3, max_lines=8, label="System text", info=about, elem_id="system"
            )  # fmt: skip
            about = "how this chat's documents are read and remembered; each policy reads a document once"
            choice = gr.Dropdown(
                policies.choices(), value=policy, label="Memory policy", info=about, elem_id="policy"
            )  # fmt: skip
        about = "a question in this chat loads it first; what another model has read is kept"
        model = gr.Dropdown([ANY], value="", label="Model", info=about, elem_id="chat-model", visible=not fixed)
        default = gr.Button("Use for new chats", size="sm", scale=0, elem_id="default")
    return Controls([temperature, top_p, longest, system, model], choice, default)


def chosen(temperature: float, top_p: float, longest: float, system: str, model: str) -> AnswerSettings:
    """What the controls say."""
    return AnswerSettings(temperature, top_p, int(longest), system.strip(), model)


def values(settings: AnswerSettings, models: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
    """What the controls show.

    Args:
        models: what `models` gives; the one that is set is offered even when it is not among them.
    """
    known = any(choice == settings.model for _, choice in models)
    offered = [*models, *([] if known else [("one that is not here any more", settings.model)])]
    shown = gr.update(choices=offered, value=settings.model)
    return settings.temperature, settings.top_p, settings.max_new_tokens, settings.system, shown


def models(chat: "DocumentChat") -> list[tuple[str, str]]:
    """(what the list of models shows, id of a Choice): whichever is loaded, then those that can be used here."""
    listed = [ANY]
    try:
        for model in chat.shelf.models():
            for choice in model.choices if model.usable else ():
                listed.append((f"{model.name} on {choice.base}" if choice.adapter else model.name, choice.id))
    except Exception as error:
        log.warning("the models cannot be listed: %s", error)
    return listed


def offered(chat: "DocumentChat", chat_id: str | None) -> Any:
    """What the list of models shows for a chat."""
    try:
        return values(chat.saved.answer_settings(chat_id), models(chat))[-1]
    except Exception as error:  # it was deleted, which its next question says
        log.warning("the models of a chat cannot be listed: %s", error)
        return gr.skip()


def loaded_first(
    chat: "DocumentChat", wanted: str, chat_id: str | None, question: str, views: Iterator[View]
) -> Iterator[View]:
    """The views of an answer; before them the model that answers the chat is loaded, unless it is.

    Args:
        wanted: id of its Choice; "" for whichever is loaded.
        question: goes back into the box when the model cannot be had.
    """
    if wanted and wanted != chat.shelf.loaded_choice():
        before = asking.show(chat, chat_id)
        for status in switching.load(chat, wanted):
            yield replace(before, status=status, running=True)
        if wanted != chat.shelf.loaded_choice():
            yield replace(before, status=status, draft=question)
            return
    yield from views


def generation(settings: AnswerSettings) -> GenerationConfig:
    """A new seed every time: above temperature 0, trying again shall differ."""
    seed = random.randrange(2**31)
    return GenerationConfig(settings.temperature, settings.top_p, settings.max_new_tokens, seed)


def change(chat: "DocumentChat", chat_id: str | None, wanted: AnswerSettings) -> str:
    """Keep settings with a chat; a new one gets them when it begins. Status HTML."""
    if chat_id is None:
        return ""
    try:
        before = chat.saved.answer_settings(chat_id)
        if before == wanted:
            return ""
        chat.saved.set_answer_settings(chat_id, wanted)
        turns = chat.saved.chat(chat_id).messages
    except Exception as error:
        return format.failure(error)
    if before.system != wanted.system and turns:
        return format.notice("From the next question on: the turns of this chat are run again then, under these words.")
    return ""


def make_default(chat: "DocumentChat", wanted: AnswerSettings) -> str:
    """Let new chats begin with these settings; status HTML."""
    try:
        chat.saved.set_answer_settings(None, wanted)
    except Exception as error:
        return format.failure(error)
    return format.notice("New chats begin with these settings.")


def keep(chat: "DocumentChat", chat_id: str, wanted: AnswerSettings) -> None:
    """Keep the settings that a chat was begun with; it has its system text already."""
    now = chat.saved.answer_settings(chat_id)
    if now != (wanted := replace(wanted, system=now.system)):
        chat.saved.set_answer_settings(chat_id, wanted)


def wire(chat: "DocumentChat", controls: Controls, chat_id: gr.State, status: gr.HTML) -> None:
    """Keep what is changed at once."""

    def changed(key: str | None, *settings: Any) -> str:
        return change(chat, key, chosen(*settings))

    given = [chat_id, *controls.settings]
    for control in controls.settings:
        event = control.blur if isinstance(control, gr.Textbox) else control.input
        event(changed, given, status, queue=False, trigger_mode="always_last", **PRIVATE)
    controls.default.click(
        lambda *settings: make_default(chat, chosen(*settings)), controls.settings, status, queue=False, **PRIVATE
    )
