"""The Ask tab: components and wiring; what it shows is decided in asking.py."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import markdown
from app.api.reading import BackgroundReading
from app.chat.focus import EVERYTHING, Sight
from app.memory.config import GenerationConfig
from app.records import AnswerSettings
from app.ui import actions, answer_settings, asking, branching, examples, format, leafing, policies, switching
from app.ui.actions import GPU, PRIVATE
from app.ui.adding import add
from app.ui.asking import MORE_TURNS, TURNS, View, closed_after
from app.ui.reading import ReadingLine
from app.ui.uploads import Uploads
from app.ui.viewer import ASK

if TYPE_CHECKING:
    from app.chat import DocumentChat


@dataclass(frozen=True)
class Reaction:
    """What the Ask tab does for another tab: a handler, and the components that it gives values for.

    Attributes:
        cancels: events of the Ask tab that end when the handler is called.
    """

    handler: Callable[..., Any]
    outputs: list[Any]
    cancels: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class AskTab:
    """Parts that other tabs and the page need.

    Attributes:
        view: components of the conversation; `show` gives their values for a chat id, None for a new chat.
        policy: the list of policies, set by `show`.
        library: components that depend on the library; `refresh` gives their values for picked documents and policy.
        again, news: values of `library` when it is looked at again, and when something was read; what is picked stays.
        kept: what the browser keeps of the chat for a reload; see `asking.reopened`.
        streams: events that write into the conversation; showing another one has to cancel them.
        remark: what is said about the model, beside the question box.
        side: the column of the passage viewer.
        other: the notice that another model made the chat's memory; `switching.notice` gives it.
        settings: what `answer_settings.values` gives values for.
    """

    chat_id: gr.State
    picker: gr.Dropdown
    policy: gr.Dropdown
    view: list[Any]
    show: Callable[[str | None], tuple[Any, ...]]
    library: list[Any]
    refresh: Callable[..., tuple[Any, ...]]
    again: Callable[..., tuple[Any, ...]]
    news: Callable[..., tuple[Any, ...]]
    kept: gr.HTML
    streams: list[Any]
    remark: gr.HTML
    side: gr.Column
    other: gr.HTML
    settings: list[Any]


@dataclass(frozen=True)
class _Parts:
    """The tab's components."""

    chat_id: gr.State
    kept: gr.HTML
    picker: gr.Dropdown
    new: gr.Button
    empty: gr.Column
    welcome: gr.HTML
    sample: gr.Button
    adders: list[gr.UploadButton]
    examples: gr.Row
    example_buttons: list[gr.Button]
    remark: gr.HTML
    talk: gr.Chatbot
    other: gr.HTML
    status: gr.HTML
    question: gr.Textbox
    focus: gr.Dropdown
    mute: gr.Dropdown
    everything: gr.Checkbox
    through: gr.Checkbox
    controls: answer_settings.Controls
    memory: gr.HTML
    side: gr.Column
    page: gr.HTML
    compare: gr.HTML


# The viewer is made when the first passage is opened, so that one is there already when the script begins.
TO_MARK = """
watch('value', () => window.lecternViewer.shows(element));
window.lecternViewer.shows(element);
"""


# What a reload goes on with: an id, never text, and only for this tab of the browser; the address names it too.
_KEEP = """
watch('value', () => {
  sessionStorage.setItem('lectern-chat', props.value || '');
  window.lectern.shows(props.value);
});
"""
RECALL = "() => window.lectern.recalled()"


def _layout(start_policy: str, one_model: bool) -> _Parts:
    chat_id = gr.State(None)
    kept = gr.HTML("", visible="hidden", js_on_load=_KEEP, elem_id="kept")
    with gr.Row(elem_classes="lt-ask"):
        with gr.Column(scale=3, min_width=0, elem_classes="lt-main"):
            with gr.Row(elem_classes="lt-bar"):
                picker = gr.Dropdown(
                    [], multiselect=True, label="Documents", elem_id="picker", scale=5, min_width=0, container=False
                )
                new = gr.Button("New chat", elem_id="new-chat", scale=0, min_width=96, size="sm")
            with gr.Column(elem_classes="lt-empty") as empty:
                welcome = gr.HTML(elem_classes="lt-welcome")
                with gr.Row(elem_classes="lt-examples"):
                    begin = gr.UploadButton("Add documents", file_count="multiple", variant="primary", scale=0)
                    sample = gr.Button("Read the sample book", elem_id="sample", scale=0)
                with gr.Row(visible=False, elem_classes="lt-examples") as example_row:
                    buttons = [gr.Button(size="sm", elem_classes="lt-example") for _ in range(examples.SHOWN)]
            talk = gr.Chatbot(
                visible=False,
                show_label=False,
                container=False,
                height=None,
                layout="panel",
                allow_tags=[],
                buttons=[],
                feedback_options=None,
                elem_id="talk",
            )
            remark = gr.HTML(elem_id="remark")
            other = gr.HTML(elem_id="other-model")
            status = gr.HTML(elem_id="status")
            with gr.Row(elem_classes="lt-box"):
                more = gr.UploadButton("Add documents", file_count="multiple", scale=0, min_width=44, elem_id="more")
                question = gr.Textbox(
                    value="",
                    placeholder="Ask a question",
                    show_label=False,
                    label="Question",
                    container=False,
                    lines=1,
                    max_lines=6,
                    submit_btn=True,
                    autofocus=True,
                    elem_id="question",
                    scale=1,
                )
            memory = gr.HTML(elem_id="memory")
            with gr.Accordion("Where to look", open=False, elem_classes="lt-settings", elem_id="where"):
                with gr.Row():
                    focus = _place_list("Only in", "Title#12-20", "focus")
                    mute = _place_list("Not in", "Title#src/*.py", "mute")
                everything = gr.Checkbox(
                    False,
                    label="Front matter and licences too",
                    info="which are left out otherwise",
                    elem_id="everything",
                )
                through = gr.Checkbox(
                    False,
                    label="Go through all of it",
                    info="part by part: how often and where, definitions, dates, names, headings, what changed",
                    elem_id="through",
                )
            controls = answer_settings.build(start_policy, fixed=one_model)
        with gr.Column(scale=2, min_width=0, visible=False, elem_classes="lt-side") as side:
            page = gr.HTML(elem_id="page", js_on_load=TO_MARK)
            compare = gr.HTML(elem_id="compare")
    return _Parts(
        chat_id, kept, picker, new, empty, welcome, sample, [begin, more], example_row, buttons, remark, talk, other,
        status, question, focus, mute, everything, through, controls, memory, side, page, compare,
    )  # fmt: skip


def _place_list(label: str, example: str, name: str) -> gr.Dropdown:
    """A list of the picked documents' places; others can be typed."""
    info = f"choose, or type others like {example}"
    return gr.Dropdown(
        [], multiselect=True, allow_custom_value=True, label=label, info=info, elem_id=name, min_width=200
    )


def _messages(view: View, turns: int) -> list[dict[str, Any]]:
    """Gradio's messages, each as HTML of ours: Gradio's own Markdown would take its own view of what is code.

    Args:
        turns: so many of the last are shown: all messages travel and are drawn anew with every piece of an answer.
    """
    messages = []
    begins = [place for place, message in enumerate(view.messages) if message.get("role") == "user"]
    earlier = max(0, len(begins) - turns)
    if earlier and not view.running:
        messages.append({"role": "assistant", "content": gr.HTML(format.earlier(earlier, turns + MORE_TURNS))})
    turn = earlier
    for message in view.messages[begins[earlier] if earlier else 0 :]:
        if "foot" in message:
            html = message["foot"]
        elif message["role"] == "user":
            turn += 1
            html = f'<div data-turn="{turn}">{markdown.plain_html(message["text"])}</div>'
        else:
            html = markdown.html(message["text"], message.get("marks", ()))
        messages.append({"role": message.get("role", "assistant"), "content": gr.HTML(html)})
    return messages


def _memory(chat: "DocumentChat", chat_id: str | None) -> str:
    if chat_id is None or chat.model.model_state().state != "ready":  # asking for it would wait for the model
        return ""
    return format.memory(chat.model.memory_line(chat_id))


def build(
    chat: "DocumentChat", reading: BackgroundReading, line: ReadingLine, header: switching.Header, uploads: Uploads
) -> AskTab:
    """Lay the tab out inside the current gr.Tab and wire it."""
    parts = _layout(chat.model.policy_of(), chat.guest)
    view = [parts.talk, parts.chat_id, parts.kept, parts.status, parts.question, parts.empty, parts.memory]
    view += [parts.controls.policy, parts.other, *parts.controls.settings]
    library = [parts.picker, parts.welcome, parts.sample, parts.examples, *parts.example_buttons]

    def values(
        shown: View,
        box: Any,
        policy: Any = gr.skip(),
        settings: AnswerSettings | None = None,
        turns: int = TURNS,
    ) -> tuple[Any, ...]:
        talk = gr.update(value=_messages(shown, turns), visible=bool(shown.messages))
        if shown.running:  # which chat it is changes at the end only: the user may have turned to another one
            key, kept, memory, other = (gr.skip(),) * 4
        else:
            key, kept, memory = shown.chat, shown.chat or "", _memory(chat, shown.chat)
            other = switching.notice(chat, shown.chat)
        own = (gr.skip(),) * len(parts.controls.settings)
        if settings:
            own = answer_settings.values(settings, answer_settings.models(chat))
        return talk, key, kept, shown.status, box, gr.update(visible=not shown.messages), memory, policy, other, *own

    def stream(views: Iterable[View]) -> Iterator[tuple[Any, ...]]:
        """The question box is set at the start and the end only: the user may be typing the next question."""
        box = _running(True)
        try:
            for shown in views:
                if not shown.running:
                    box = _running(False) | ({"value": shown.draft} if shown.draft else {})
                yield values(shown, box)
                box = gr.skip()
        except Exception as error:  # the chat was deleted in another window, say
            yield values(View(status=format.failure(error)), _running(False))

    def show(chat_id: str | None, turns: int = TURNS) -> tuple[Any, ...]:
        try:
            own = chat.model.policy_of(chat_id), chat.saved.answer_settings(chat_id)
            return values(asking.show(chat, chat_id), _running(False), *own, turns)
        except Exception as error:
            return values(View(status=format.failure(error)), _running(False))

    def refresh(picked: list[str], policy: str = "") -> tuple[Any, ...]:
        known = asking.choices(chat, policy)
        ids = [document for _, document in known]
        picked = [document for document in picked or [] if document in ids]
        sample = gr.update(visible=not picked)
        picker = gr.update(choices=known, value=picked)
        shown = gr.update(visible=bool(picked))
        asked = examples.examples(chat, reading, picked)
        buttons = [gr.update(value=text, visible=True) for text in asked]
        buttons += [gr.update(visible=False)] * (examples.SHOWN - len(asked))
        return picker, asking.welcome(chat, picked), sample, shown, *buttons

    def again(picked: list[str], policy: str = "") -> tuple[Any, ...]:
        """What is picked is set only where it is gone: another may be picked while this is found out."""
        picker, *others = refresh(picked, policy)
        return {name: value for name, value in picker.items() if name != "value" or value != (picked or [])}, *others

    def news(picked: list[str], policy: str = "") -> tuple[Any, ...]:
        if not picked:
            return gr.update(choices=asking.choices(chat, policy)), *[gr.skip()] * (len(library) - 1)
        picker, _welcome, _sample, *asked = again(picked, policy)
        return picker, gr.skip(), gr.skip(), *asked

    streams = _wire_asking(chat, reading, parts, view, stream, values, show)
    for event in streams:  # asking may have read a document
        event.then(again, [parts.picker, parts.controls.policy], library, queue=False, **PRIVATE)
    _wire_documents(chat, reading, line, parts, view, library, refresh, show, streams)
    _wire_adding(chat, reading, uploads, parts, library, refresh)
    _wire_evidence(chat, parts)
    answer_settings.wire(chat, parts.controls, parts.chat_id, parts.status)
    switching.wire(chat, "model-back", parts.status, header)
    return AskTab(
        parts.chat_id, parts.picker, parts.controls.policy, view, show, library, refresh, again, news, parts.kept,
        streams, parts.remark, parts.side, parts.other, parts.controls.settings,
    )  # fmt: skip


def _running(running: bool) -> dict[str, Any]:
    """The question box with a stop button while the model works; emptied when it begins."""
    update = gr.update(submit_btn=not running, stop_btn="Stop" if running else False)
    return update | ({"value": ""} if running else {})


def _settings(
    focus: list[str] | None, mute: list[str] | None, everything: bool, *settings: Any
) -> tuple[GenerationConfig, Sight]:
    """What the controls under the question say."""
    places = (*(focus or ()), *([EVERYTHING] if everything else ()))
    return answer_settings.generation(answer_settings.chosen(*settings)), Sight(places, tuple(mute or ()))


def _wire_asking(
    chat: "DocumentChat",
    reading: BackgroundReading,
    parts: _Parts,
    view: list[Any],
    stream: Callable[..., Any],
    values: Callable[..., tuple[Any, ...]],
    show: Callable[..., tuple[Any, ...]],
) -> list[Any]:
    """Returns the events that write into the conversation."""
    controls = [parts.chat_id, parts.picker, parts.controls.policy]
    controls += [parts.focus, parts.mute, parts.everything, *parts.controls.settings]

    def announce(chat_id: str | None) -> tuple[str, str]:
        return asking.thinking(chat, "unask"), chat_id or asking.before_first_answer(chat)

    def example(text: str, chat_id: str | None) -> tuple[str, ...]:
        return text, *announce(chat_id)

    def settled(*settings: Any) -> tuple[tuple[GenerationConfig, Sight], AnswerSettings]:
        return _settings(*settings), answer_settings.chosen(*settings[3:])

    def streamed(own: AnswerSettings, chat_id: str | None, views: Iterator[View], question: str = "") -> Iterator[Any]:
        yield from stream(answer_settings.loaded_first(chat, own.model, chat_id, question, views))

    def ask(
        question: str, through: bool, chat_id: str | None, picked: list[str], policy: str, *settings: Any
    ) -> Iterator[Any]:
        how, own = settled(*settings)
        more = {"policy": policy, "system": own.system, "so_far": reading.documents()}
        more["through"] = through or None  # else where the question is recognised
        views = asking.answer(chat, question, chat_id, picked or [], *how, **more)
        yield from streamed(own, chat_id, views if chat_id else _keeping(chat, views, own), question)

    def retry(_id: str, chat_id: str | None, _picked: list[str], _policy: str, *settings: Any) -> Iterator[Any]:
        how, own = settled(*settings)
        yield from streamed(own, chat_id, asking.again(chat, chat_id, *how, so_far=reading.documents()))

    def longer(_id: str, chat_id: str | None, *rest: Any) -> Iterator[Any]:
        *settings, longest, system, model = rest
        yield from retry(_id, chat_id, *settings, 2 * max(longest, asking.last_length(chat, chat_id)), system, model)

    def edit(
        answer: str, text: str, chat_id: str | None, _picked: list[str], _policy: str, *settings: Any
    ) -> Iterator[Any]:
        how, own = settled(*settings)
        views = branching.edit(chat, chat_id, answer, text, *how, so_far=reading.documents())
        yield from streamed(own, chat_id, views)

    announced = [parts.status, parts.kept]
    asked = [parts.question.submit(announce, parts.chat_id, announced, queue=False, **PRIVATE)]
    for button in parts.example_buttons:
        clicked = [button, parts.chat_id]
        asked.append(button.click(example, clicked, [parts.question, *announced], queue=False, **PRIVATE))
    # A question that is sent while the answer before it comes to its end is asked then.
    turn = {"trigger_mode": "always_last", **GPU, **PRIVATE}
    streams = [event.then(ask, [parts.question, parts.through, *controls], view, **turn) for event in asked]
    told = (lambda: asking.thinking(chat, "unask"), parts.status)
    for name, handler in (("retry", retry), ("longer", longer), ("edit", edit)):
        form = name == "edit"
        streams.append(actions.on(name, handler, form=form, first=told, inputs=controls, outputs=view, **GPU))
    shown = lambda turn, chat_id: values(branching.version(chat, chat_id, turn), gr.skip())  # noqa: E731
    actions.on("version", shown, inputs=parts.chat_id, outputs=view, **actions.SHOWS)
    back = lambda _id, chat_id: show(chat_id)  # noqa: E731
    earlier = lambda id, chat_id: show(chat_id, int(id) if id.isdecimal() else TURNS)  # noqa: E731
    actions.on("earlier", earlier, inputs=parts.chat_id, outputs=view, **actions.SHOWS)
    actions.on("unask", back, inputs=parts.chat_id, outputs=view, cancels=streams, queue=False)
    parts.question.stop(chat.jobs.stop, None, None, queue=False, **PRIVATE)
    return streams


def _keeping(chat: "DocumentChat", views: Iterator[View], own: AnswerSettings) -> Iterator[View]:
    """The views of a new chat; it keeps the settings that it was begun with."""
    kept = False
    with closed_after(views) as shown:
        for view in shown:
            if view.chat and not kept:
                answer_settings.keep(chat, view.chat, own)
                kept = True
            yield view


def _wire_documents(
    chat: "DocumentChat",
    reading: BackgroundReading,
    line: ReadingLine,
    parts: _Parts,
    view: list[Any],
    library: list[Any],
    refresh: Callable[..., tuple[Any, ...]],
    show: Callable[..., tuple[Any, ...]],
    streams: list[Any],
) -> None:
    def pick(chat_id: str | None, picked: list[str], policy: str) -> tuple[Any, ...]:
        return *refresh(picked, policy), asking.attach(chat, chat_id, picked)

    def choose(chat_id: str | None, picked: list[str], policy: str) -> tuple[Any, ...]:
        told, policy = policies.change(chat, chat_id, policy, picked or [])
        return *refresh(picked, policy), told, policy

    def narrow(picked: list[str], focus: list[str], mute: list[str]) -> tuple[Any, ...]:
        offered, focus, mute = asking.places(chat, picked or [], focus, mute)
        return gr.update(choices=offered, value=focus), gr.update(choices=offered, value=mute)

    def sample(policy: str) -> tuple[Any, ...]:
        document, status = asking.read_sample(chat, reading, asking.sample_book())
        return *refresh([document] if document else [], policy), status, *line.look()

    def new(picked: list[str]) -> tuple[Any, ...]:
        return *show(None), *refresh(picked), gr.update(visible=False)

    status = [parts.status]
    about = [parts.chat_id, parts.picker, parts.controls.policy]
    parts.picker.input(pick, about, library + status, queue=False, **PRIVATE)
    parts.controls.policy.input(choose, about, [*library, parts.status, parts.controls.policy], queue=False, **PRIVATE)
    places = [parts.focus, parts.mute]
    parts.picker.change(narrow, [parts.picker, *places], places, queue=False, **PRIVATE)
    parts.sample.click(sample, parts.controls.policy, [*library, parts.status, *line.outputs], **PRIVATE)
    parts.new.click(None, cancels=streams, **PRIVATE)  # first: what is on its way must not be written afterwards
    parts.new.click(new, parts.picker, [*view, *library, parts.side], queue=False, **PRIVATE)


def _wire_adding(
    chat: "DocumentChat",
    reading: BackgroundReading,
    uploads: Uploads,
    parts: _Parts,
    library: list[Any],
    refresh: Callable[..., tuple[Any, ...]],
) -> None:
    """Files that are dropped, pasted or chosen here are asked about at once."""

    fresh = gr.State([])  # ids of what was added last

    def adding(files: list[str] | None) -> Iterator[tuple[Any, ...]]:
        added, status = (), ""
        with closed_after(add(chat, reading, files or [], uploads)) as steps:
            for step in steps:
                added, status = step.added, step.status
                yield status, gr.skip(), gr.skip()
        yield status, list(added), None

    def pick(chat_id: str | None, picked: list[str], policy: str, added: list[str], status: str) -> tuple[Any, ...]:
        """What is picked may have changed since the files came."""
        picked = list(dict.fromkeys([*(picked or []), *added]))
        return *refresh(picked, policy), (status or "") + asking.attach(chat, chat_id, picked)

    about = [parts.chat_id, parts.picker, parts.controls.policy, fresh, parts.status]
    for button in parts.adders:
        added = button.upload(adding, button, [parts.status, fresh, button], **PRIVATE)
        added.then(pick, about, [*library, parts.status], queue=False, **PRIVATE)


def _wire_evidence(chat: "DocumentChat", parts: _Parts) -> None:
    def open_passage(evidence_id: str) -> tuple[Any, ...]:
        return gr.update(visible=True), leafing.passage(chat, evidence_id), ""

    def go(target: str, typed: str) -> str:
        return leafing.passage(chat, leafing.go(target, typed))

    def find(target: str, words: str) -> str:
        return leafing.passage(chat, target, words)

    def without(evidence_id: str, *settings: Any) -> Iterator[tuple[Any, ...]]:
        yield open_passage(evidence_id)  # under an answer the button does not need it to be open
        generation = answer_settings.generation(answer_settings.chosen(*settings))
        for compared in asking.without(chat, evidence_id, generation):
            yield gr.skip(), gr.skip(), compared

    side = [parts.side, parts.page, parts.compare]
    actions.on("passage", open_passage, outputs=side, **actions.SHOWS)
    actions.on(ASK.turn, lambda target: leafing.passage(chat, target), outputs=parts.page, **actions.SHOWS)
    actions.on(ASK.go, go, form=True, outputs=parts.page, queue=False)
    actions.on(ASK.find, find, form=True, outputs=parts.page, queue=False)
    actions.on("close", lambda _id: (gr.update(visible=False), "", ""), outputs=side, queue=False)
    actions.on("without", without, inputs=parts.controls.settings, outputs=side, **GPU)
