"""What an event of the page may bring, for another program could send anything to its address, and how it may end."""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from html import escape
from typing import Any

import gradio as gr

from app.ui import format
from app.ui.actions import BRIDGE
from app.ui.uploads import Uploads

_TEXTS = (gr.HTML, gr.Button, gr.Dropdown)
_NUMBERS = (gr.Slider, gr.Number, gr.Timer)
_MAY_BE_EMPTY = (gr.File, gr.UploadButton, gr.Dropdown)


def checker(blocks: gr.Blocks, uploads: Uploads) -> Callable[[Mapping[str, Any]], str | None]:
    """A function that says what is wrong with the JSON of an event, or None when the page could have sent it."""

    bridges = {key for key, block in blocks.blocks.items() if str(getattr(block, "elem_id", "")).startswith(BRIDGE)}

    def check(call: Mapping[str, Any]) -> str | None:
        index, data, session = call.get("fn_index"), call.get("data"), call.get("session_hash")
        known = isinstance(index, int) and not isinstance(index, bool) and index in blocks.fns
        if not known:
            return f"there is no event {index!r:.40}"
        if not (isinstance(session, str) and re.fullmatch(r"\w{1,64}", session)):
            return "it names no session"
        if call.get("batched") or call.get("simple_format"):
            return "it is not in the form of the page"
        event = blocks.fns[index]
        if not isinstance(data, list) or (len(data) != len(event.inputs) and not event.cancels):
            return f"event {index} takes {len(event.inputs)} values"
        clicked = event.fn and any(key in bridges for key, _ in event.targets)
        if clicked and not _is_click(call.get("event_data")):
            return f"event {index} has to name what was clicked"
        if _names_file(call.get("event_data")):
            return "a file stands where none belongs"
        shown = blocks.state_holder.session_data.get(session)  # with the choices that this page has by now
        for block, value in zip(event.inputs, data, strict=False):
            block = shown.blocks_config.blocks.get(block._id, block) if shown else block
            if not _fits(block, value, uploads):
                return f"event {index}: a value of {type(value).__name__} is nothing for {block.get_block_name()}"
        return None

    return check


def tell_failures(blocks: gr.Blocks) -> None:
    """Have every event that fails say so in words on the page; what nobody foresaw is logged with its cause."""
    for event in blocks.fns.values():
        if event.fn is not None:
            event.fn = _telling(event.fn)


def _telling(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are told: Gradio would print a traceback and show nothing."""

    @wraps(handler)
    def stream(*values: Any) -> Iterator[Any]:
        try:
            yield from handler(*values)
        except Exception as error:
            raise _toast(error) from None

    @wraps(handler)
    def call(*values: Any) -> Any:
        try:
            return handler(*values)
        except Exception as error:
            raise _toast(error) from None

    return stream if inspect.isgeneratorfunction(handler) else call


def _toast(error: Exception) -> gr.Error:
    return gr.Error(escape(format.words(error)), title="Lectern", print_exception=False)


def _is_click(data: Any) -> bool:
    return isinstance(data, dict) and all(isinstance(data.get(key), str) for key in ("id", "text"))


def _names_file(value: Any) -> bool:
    """Whether a file's record is anywhere in the value: Gradio would open what it names."""
    if isinstance(value, dict):
        return "path" in value or "meta" in value or any(map(_names_file, value.values()))
    return isinstance(value, list) and any(map(_names_file, value))


def _fits(block: Any, value: Any, uploads: Uploads) -> bool:
    """Whether the component on the page can have the value."""
    if isinstance(block, gr.State):
        return not _names_file(value)  # the server keeps it; what the page sends is not looked at
    if value is None:
        return isinstance(block, _MAY_BE_EMPTY)
    if isinstance(block, (gr.File, gr.UploadButton)):
        files = value if isinstance(value, list) else [value]
        return all(isinstance(file, dict) and uploads.holds(str(file.get("path"))) for file in files)
    return _has_type(block, value) and _is_offered(block, value)


def _has_type(block: Any, value: Any) -> bool:
    if isinstance(block, (gr.JSON, gr.CheckboxGroup)) or getattr(block, "multiselect", False):
        return isinstance(value, list) and all(isinstance(item, (str, int)) for item in value)
    if isinstance(block, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(block, _NUMBERS):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(block, (*_TEXTS, gr.Textbox)):
        return isinstance(value, str)
    return not _names_file(value)


def _is_offered(block: Any, value: Any) -> bool:
    """Whether the component itself takes the value: it is one of its choices, or in its range."""
    try:
        block.preprocess(value)
    except gr.Error:
        return False
    return True
