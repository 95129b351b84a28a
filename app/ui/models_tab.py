"""The Models tab: the checkpoints and adapters on this computer, what they are, and which one is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.chat.fetching import Offer
from app.models.fits import Fit
from app.models.shelf import LocalModel
from app.system import size_text
from app.ui import actions, format, switching
from app.ui.actions import PRIVATE
from app.ui.asking import closed_after
from app.ui.plainly import plainly
from app.wellformed import whole

if TYPE_CHECKING:
    from app.chat import DocumentChat

KINDS = {"checkpoint": "Checkpoint", "adapter": "LoRA adapter", "longlora": "LongLoRA adapter", "unknown": "Folder"}
GROUPS = ("Checkpoints", "Adapters", "Cannot be used")
# Facts of `inspect` that every card shows: name, and how it is said.
MAIN = {
    "parameters": "{} parameters",
    "dtype": "{}",
    "rank": "rank {}",
    "targets": "on {}",
    "trained length": "trained length {}",
}


# The button may be far below the line that tells how the loading goes.
_TO_STATUS = "watch('value', () => { if (props.value) element.scrollIntoView({ block: 'nearest' }); });"


def parameters(text: str) -> str:
    """A number of parameters in a few characters: 2,519,424 is 2.5M."""
    digits = text.replace(",", "")
    if not digits.isdecimal():
        return text
    number = int(digits)
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f}{unit}"
    return text


def summary(model: LocalModel) -> str:
    """A model in one line: kind, parameters, trained length, size."""
    facts = [KINDS.get(model.kind, model.kind)]
    for name, form in MAIN.items():
        if value := model.facts.get(name):
            facts.append(form.format(parameters(value) if name == "parameters" else value))
    if model.size_bytes:
        facts.append(size_text(model.size_bytes))
    return " · ".join(facts)


def whereabouts(model: LocalModel) -> str:
    """Where a model lies, and what it has read here."""
    counts = [format.plural(n, word) for n, word in ((model.documents, "document"), (model.chats, "chat")) if n]
    place = model.place[:1].upper() + model.place[1:]
    return f"{place} · memory of {' and '.join(counts)}" if counts else place


def _buttons(model: LocalModel, loaded: str) -> str:
    """A button for each way to load it that is not the loaded one."""
    words = {choice.id: f"Load on {choice.base}" if choice.adapter else "Load" for choice in model.choices}
    return "".join(
        f'<button type="button" class="lt-button" data-do="model-load" data-id="{key}" '
        f'aria-label="{escape(whole(f"{word}: {model.name}"))}">{escape(word)}</button>'
        for key, word in words.items()
        if key != loaded
    )


def _details(model: LocalModel) -> str:
    rows = {"folder": whole(str(model.path)), **model.facts}
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows.items())
    named = f'aria-label="Details of {escape(whole(model.name))}"'
    return f'<details class="lt-more"><summary {named}>Details</summary><dl>{items}</dl></details>'


def _fit(fit: Fit | None) -> tuple[str, ...]:
    return (f"{fit.words}.",) if fit else ()


def offers(chat: "DocumentChat") -> str:
    """HTML of the models that can be fetched by name; "" where nothing can be said of them yet."""
    try:
        found = chat.shelf.offers()
    except Exception as error:
        return format.failure(error)
    if not found:
        return ""
    cards = "".join(_offer(offer, chat.fetching.running) for offer in found)
    return (
        '<h3 class="lt-group">To download</h3><p class="lt-space">From the Hugging Face hub, only when you ask for '
        f'one; nothing else leaves this computer.</p><ul class="lt-cards">{cards}</ul>'
    )


def _offer(offer: Offer, running: str) -> str:
    model = offer.model
    why_not = offer.why_not or ("" if offer.fit.fits else f"{offer.fit.words}.")
    off = " disabled" if why_not or running else ""
    word = "Go on downloading" if offer.begun_bytes else "Download"
    begun = f" · {size_text(offer.begun_bytes)} of it are here" if offer.begun_bytes else ""
    facts = f"{parameters(str(model.parameters))} parameters · {size_text(model.size_bytes)} · {model.licence}{begun}"
    told = (f"{model.told} {facts}", why_not or f"{offer.fit.words}.")
    lines = "".join(f"<p>{escape(line)}</p>" for line in told)
    return (
        f'<li class="lt-card{" lt-card-off" if off else ""}"><div class="lt-card-head"><h4>{escape(model.name)}</h4>'
        f'<span class=lt-card-buttons><button type="button" class="lt-button" data-do="model-fetch" '
        f'data-id="{escape(model.id)}" aria-label="{word} {escape(model.name)}"{off}>{word}</button></span></div>'
        f"{lines}</li>"
    )


def fetch(chat: "DocumentChat", name: str) -> Iterator[str]:
    """Fetch a model by name; status HTML with a bar."""
    short = escape(name.rpartition("/")[2])
    yield format.waiting(f"Asking the hub for {name}")
    try:
        with closed_after(chat.fetching.fetch(name)) as steps:
            for done, total in steps:
                facts = f"{size_text(done)} of {size_text(total)}" if total else "asking"
                yield format.progress(
                    f"<span>Downloading <i>{short}</i></span><span>{facts}</span>", format.share(done, total or 1)
                )
        yield format.notice(f"{name} is here; load it below.")
    except Exception as error:
        yield format.failure(error)


def unload(chat: "DocumentChat") -> str:
    """Free the memory of the loaded model; status HTML."""
    name = chat.model.model_state().name
    try:
        chat.model.unload_model()
    except Exception as error:
        return format.failure(error)
    return format.notice(f"{name} is unloaded; the next question loads it again.")


def card(model: LocalModel, loaded: str) -> str:
    """One model.

    Args:
        loaded: id of the choice that is loaded.
    """
    mark = '<span class="lt-badge lt-ready"><span class="lt-dot"></span>loaded</span>' if model.loaded else ""
    unload = (
        '<button type="button" class="lt-button" data-do="model-unload" '
        f'aria-label="Unload {escape(whole(model.name))}" '
        'title="Frees its memory; the next question loads it again">Unload</button>'
    )
    reasons = "".join(f"<li>{escape(plainly(reason))}</li>" for reason in model.reasons)
    return (
        f'<li class="lt-card{" lt-card-loaded" if model.loaded else ""}"><div class="lt-card-head">'
        f"<h4>{escape(whole(model.name))}</h4>{mark}<span class=lt-card-buttons>"
        f"{unload if model.loaded else ''}{_buttons(model, loaded)}</span></div>"
        + "".join(f"<p>{escape(line)}</p>" for line in (summary(model), *_fit(model.fit), whereabouts(model)))
        + (f'<ul class="lt-reasons">{reasons}</ul>' if reasons else "")
        + f"{_details(model)}</li>"
    )


def listing(chat: "DocumentChat") -> str:
    """HTML of all models, in groups."""
    try:
        models, loaded = chat.shelf.models(), chat.shelf.loaded_choice()
    except Exception as error:
        return format.failure(error)
    return _listing(models, loaded)


def _listing(models: Sequence[LocalModel], loaded: str) -> str:
    groups: dict[str, list[str]] = {name: [] for name in GROUPS}
    for model in models:
        name = GROUPS[2] if not model.usable else GROUPS[0] if model.kind == "checkpoint" else GROUPS[1]
        groups[name].append(card(model, loaded))
    return "".join(
        f'<h3 class="lt-group">{name}</h3><ul class="lt-cards">{"".join(cards)}</ul>'
        for name, cards in groups.items()
        if cards
    )


def folders(chat: "DocumentChat") -> str:
    """HTML of the folders that the user added."""
    rows = "".join(
        f'<li><code>{escape(folder)}</code><button type="button" class="lt-tool" data-do="model-forget" '
        f'data-id="{escape(folder)}" title="Look there no more; nothing in it is touched">Remove</button></li>'
        for folder in chat.shelf.model_folders()
    )
    return f'<ul class="lt-folders">{rows}</ul>' if rows else ""


def shown(chat: "DocumentChat") -> tuple[str, str, str]:
    """(list HTML, offers HTML, folders HTML)."""
    return listing(chat), offers(chat), folders(chat)


def add(chat: "DocumentChat", folder: str) -> tuple[str, ...]:
    """Look for models in another folder; status HTML, then what `shown` gives."""
    try:
        names = chat.shelf.add_model_folder(folder)
        status = format.notice(f"Found there: {', '.join(names)}.")
    except Exception as error:
        status = format.failure(error)
    return status, *shown(chat)


def forget(chat: "DocumentChat", folder: str) -> tuple[str, ...]:
    """Look no more in a folder; status HTML, then what `shown` gives."""
    status = ""
    try:
        chat.shelf.remove_model_folder(folder)
    except Exception as error:
        status = format.failure(error)
    return status, *shown(chat)


@dataclass(frozen=True)
class ModelsTab:
    """Parts that the page needs: components that `shown` gives values for."""

    outputs: list[gr.HTML]


def build(chat: "DocumentChat", header: switching.Header) -> ModelsTab:
    """Lay the tab out inside the current gr.Tab and wire it."""
    gr.HTML(
        "<h2>Which model reads and answers?</h2><p>All of them lie on this computer. Each model remembers what it has "
        "read by itself: another one reads a document anew, and nothing of the first is lost.</p>",
        elem_classes="lt-welcome",
    )
    with gr.Row(elem_classes="lt-reading"):
        status = gr.HTML(elem_id="models-status", js_on_load=_TO_STATUS, scale=5)
        stop = gr.Button("Stop", size="sm", scale=0, min_width=72, visible=False, elem_id="fetch-stop")
    found = gr.HTML(elem_id="models")
    offered = gr.HTML(elem_id="model-offers")
    gr.HTML(
        '<h3 class="lt-group">Other folders</h3><p class="lt-space">Lectern looks in its own folder '
        "<code>models</code>, in <code>models</code> of the data folder, in the hub's cache and in the folders that "
        "you add.</p>"
    )
    with gr.Row(elem_classes="lt-bar"):
        folder = gr.Textbox(
            value="",
            placeholder="Path of a model, or of a folder with several", show_label=False, label="Folder",
            container=False, elem_id="model-folder", scale=5, min_width=0,
        )  # fmt: skip
        adding = gr.Button("Add", elem_id="model-add", scale=0, min_width=96)
    added = gr.HTML(elem_id="model-folders")

    def take(path: str) -> tuple[str, ...]:
        return *add(chat, path), ""

    lists = [found, offered, added]
    outputs = [status, *lists]
    gr.on([folder.submit, adding.click], take, folder, [*outputs, folder], queue=False, **PRIVATE)
    actions.on("model-forget", lambda path: forget(chat, path), outputs=outputs, queue=False)
    loaded = switching.wire(chat, "model-load", status, header)
    loaded.then(lambda: shown(chat), None, lists, queue=False, **PRIVATE)

    def fetching(name: str) -> Iterator[tuple[Any, ...]]:
        for line in fetch(chat, name):
            yield line, *[gr.skip()] * len(lists), gr.update(visible=True)
        yield gr.skip(), *shown(chat), gr.update(visible=False)

    def unloading(_id: str) -> tuple[Any, ...]:
        return unload(chat), *shown(chat), format.model(chat.model.model_state()), gr.Timer(active=True)

    actions.on("model-fetch", fetching, outputs=[*outputs, stop])
    stop.click(chat.fetching.stop, None, None, queue=False, **PRIVATE)
    actions.on("model-unload", unloading, outputs=[*outputs, header.model, header.poll], queue=False)
    return ModelsTab(lists)
