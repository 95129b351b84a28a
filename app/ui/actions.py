"""Clicks on our own HTML reach Python: `<button data-do="passage" data-id="e2-1">` fires the action `passage`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

GPU = {"concurrency_id": "gpu", "concurrency_limit": 1}  # one user of the model at a time
BRIDGE = "do-"  # begins the elem_id of what a click comes through
# Of what only shows something. A click while the one before is answered counts, too; Gradio's `always_last` would
# repeat the data of the one before.
SHOWS = {"queue": False, "trigger_mode": "multiple"}
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}

# For a list that is drawn anew now and then: a question that the user has opened in it stays open.
STAYS_OPEN = """
const about = (box) => Object.values(box.querySelector("[data-id]")?.dataset ?? {}).join(" ");
let open = '';
element.addEventListener('toggle', ({ target }) => {
  if (!target.matches('.lt-confirm')) return;
  if (target.open) open = about(target);
  else if (open === about(target)) open = '';
}, true);
watch('value', () => requestAnimationFrame(() => {
  for (const box of element.querySelectorAll('.lt-confirm')) if (open && about(box) === open) box.open = true;
}));
"""
_LISTEN = """
const listen = (event) => {
  if (!element.isConnected) { document.removeEventListener(KIND, listen); return; }
  const source = event.target.closest('[data-do="NAME"]');
  if (!source || source.disabled) return;
  event.preventDefault();
  const text = source.elements?.text?.value ?? '';
  trigger('click', { id: source.dataset.id ?? '', text });
};
document.addEventListener(KIND, listen);
"""


def on(
    name: str,
    handler: Callable[..., Any],
    *,
    form: bool = False,
    cancels: Sequence[Any] = (),
    first: tuple[Callable[[], Any], Any] | None = None,
    **event: Any,
) -> Any:
    """Run a handler when something marked `data-do=name` is clicked, or when a form so marked is submitted.

    Call it in the tab that draws the button.

    Args:
        handler: gets the data-id (and the text of the form's field `text`) before its other inputs.
        cancels: events that end before the handler is called.
        first: what is said at once, where the handler may have to wait for its turn: a function, and what it is
            shown in.
        event: arguments of the Gradio event (inputs, outputs, ...).
    """
    script = _LISTEN.replace("NAME", name).replace("KIND", "'submit'" if form else "'click'")
    bridge = gr.HTML("", visible="hidden", js_on_load=script, elem_id=f"{BRIDGE}{name}")

    def arguments(data: gr.EventData, rest: tuple[Any, ...]) -> tuple[Any, ...]:
        return (data.id, data.text, *rest) if form else (data.id, *rest)

    def call(data: gr.EventData, *rest: Any) -> Any:
        return handler(*arguments(data, rest))

    def stream(data: gr.EventData, *rest: Any) -> Any:
        yield from handler(*arguments(data, rest))

    if cancels:
        bridge.click(None, cancels=list(cancels), api_visibility="private")
    if first:
        bridge.click(first[0], None, first[1], queue=False, **PRIVATE)
    function = stream if inspect.isgeneratorfunction(handler) else call
    return bridge.click(function, show_progress="hidden", api_visibility="private", **event)
