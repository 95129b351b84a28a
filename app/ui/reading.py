"""What is being read, on every tab: a line under the header, and the queue folded under it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.api.reading import BackgroundReading, Queued, Waiting
from app.system import duration
from app.ui import actions, format
from app.ui.actions import PRIVATE
from app.ui.plainly import plainly

if TYPE_CHECKING:
    from app.chat import DocumentChat

BUSY_S, IDLE_S = 1.0, 3.0  # between two looks at the queue; each takes the browser a tenth of a second and more

# Numbers are written into what is drawn already: drawing it anew would close what the user has opened.
_LIVE = """
const write = () => {
  for (const [key, text] of Object.entries(JSON.parse(props.value || '{}'))) {
    for (const cell of document.querySelectorAll(`[data-live="${key}"]`)) cell.textContent = text;
    if (key === 'bar') for (const bar of document.querySelectorAll('.lt-queue .lt-fill')) bar.style.width = text;
  }
};
watch('value', write);
write();
"""
# The list stays as the reader left it: drawing anew closes it, in the same element or in another one.
_OPEN = """
let open = false;
element.addEventListener('click', ({ target }) => {
  if (target.closest('summary')) open = !target.closest('details').open;
});
new MutationObserver(() => {
  const list = element.querySelector('details');
  if (list && list.open !== open) list.open = open;
}).observe(element, {childList: true, subtree: true, attributeFilter: ['open']});
"""


def far(document: Waiting) -> str:
    """How far a document is, and what is left of it."""
    if document.done is None:
        return f"waits; about {duration(document.eta_s)} to read" if document.eta_s else "waits"
    return f"{document.percent}%" + (f", {duration(document.eta_s)} left" if document.eta_s else "")


def strip(queued: Queued) -> str:
    """The line under the header; "" when nothing waits and nothing failed."""
    failed = "".join(
        f'<div class="lt-notice lt-bad" role="alert"><b>{escape(title)}</b> could not be read: {escape(plainly(why))} '
        f'<button type="button" class="lt-tool" data-do="reading-cancel" data-id="{escape(id)}">Close</button></div>'
        for id, title, why in queued.problems
    )
    if not queued.documents:
        return failed
    now = queued.documents[0]
    word = "Reading is paused:" if queued.paused else "Reading"
    which = f"{queued.number} of {queued.of}: " if queued.of > 1 else ""
    button = ("reading-go", "Go on") if queued.paused else ("reading-pause", "Pause")
    rows = "".join(_row(document, place) for place, document in enumerate(queued.documents))
    return (
        f'{failed}<div class="lt-queue"><details class="lt-fold"><summary><span>{word} {which}'
        f'<i>{escape(now.title)}</i></span> <span class="lt-far"><span data-live="now">{_now(queued)}</span></span>'
        f'</summary><ol>{rows}</ol></details><button type="button" class="lt-tool" data-do="{button[0]}">{button[1]}'
        f'</button><div class="lt-track"><div class="lt-fill" style="width:{now.percent}%"></div></div></div>'
    )


def _row(document: Waiting, place: int) -> str:
    key, title = escape(document.id), escape(document.title)
    first = (
        f'<button type="button" class="lt-tool" data-do="reading-first" data-id="{key}" '
        f'aria-label="Read {title} first">Read this first</button>'
        if place
        else ""
    )
    return (
        f'<li><span>{title}</span> <span class="lt-far" data-live="{key}">{far(document)}</span>{first}'
        f'<button type="button" class="lt-tool" data-do="reading-cancel" data-id="{key}" '
        f'aria-label="Do not read {title} now">Cancel</button></li>'
    )


def _now(queued: Queued) -> str:
    """Facts of the line that change all the time, as plain text."""
    facts = [far(queued.documents[0])]
    if queued.held and not queued.paused:
        facts.append(f"waits for: {queued.held}")
    elif len(queued.documents) > 1 and queued.eta_s:
        facts.append(f"{duration(queued.eta_s)} for all")
    return " · ".join(facts)


def live(queued: Queued) -> str:
    """JSON of the texts that change while the queue stays as it is, by their `data-live`."""
    if not queued.documents:
        return "{}"
    texts = {document.id: far(document) for document in queued.documents}
    return json.dumps(texts | {"now": _now(queued), "bar": f"{queued.documents[0].percent}%"})


def mark(queued: Queued) -> str:
    """What has to be the same for the page to be left as it is drawn."""
    order = " ".join(document.id for document in queued.documents)
    problems = " ".join(id for id, _, _ in queued.problems)
    facts = queued.finished, queued.suggested, queued.number, queued.of, queued.paused
    return f"{order}|{'|'.join(map(str, facts))}|{problems}"


@dataclass(frozen=True)
class ReadingLine:
    """Parts that the page needs.

    Attributes:
        mark: changes with the queue; what depends on what is read follows it.
        outputs: what `look` gives values for.
        look: values of `outputs` now.
    """

    mark: gr.HTML
    outputs: list[Any]
    look: Callable[[], tuple[Any, ...]]


def build(chat: "DocumentChat", reading: BackgroundReading) -> ReadingLine:
    """Lay the line out under the header and wire it."""
    line = gr.HTML(elem_id="reading", js_on_load=_OPEN)
    marked = gr.HTML("", visible="hidden", elem_id="reading-mark")
    numbers = gr.HTML("", visible="hidden", js_on_load=_LIVE)
    timer = gr.Timer(BUSY_S)
    outputs = [line, marked, numbers, timer]

    def look(shown: str | None = None) -> tuple[Any, ...]:
        """What has changed since the page was drawn; all of it when nothing is said of that."""
        try:
            queued = reading.queued()
        except Exception as error:
            return format.failure(error), gr.skip(), gr.skip(), gr.Timer(IDLE_S)
        now = mark(queued)
        if now == shown:
            return gr.skip(), gr.skip(), live(queued), gr.skip()
        return strip(queued), now, live(queued), gr.Timer(BUSY_S if queued.documents else IDLE_S)

    def act(work: Callable[[str], None], key: str) -> tuple[Any, ...]:
        try:
            work(key)
        except Exception as error:  # the document was deleted in another window, say
            return format.failure(error), *[gr.skip()] * (len(outputs) - 1)
        return look()

    def add(key: str, first: bool = False) -> None:
        reading.add(chat.library.document(key).id, first=first)

    timer.tick(look, marked, outputs, queue=False, **PRIVATE)
    for name, work in (
        ("pause", lambda _: reading.pause()),
        ("go", lambda _: reading.go_on()),
        ("first", lambda key: add(key, first=True)),
        ("add", add),
        ("cancel", reading.forget),
    ):
        actions.on(f"reading-{name}", lambda key, work=work: act(work, key), outputs=outputs, queue=False)
    return ReadingLine(marked, outputs, look)
