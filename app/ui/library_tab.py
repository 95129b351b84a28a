"""The Library tab: add documents, which are read behind, and delete them."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.api.reading import BackgroundReading
from app.chat.library import DiskSpace
from app.ingest import ocr
from app.records import DocumentInfo
from app.system import size_text
from app.ui import actions, format, search
from app.ui.adding import Adding, add
from app.ui.ask_tab import PRIVATE, Reaction
from app.ui.asking import closed_after
from app.ui.plainly import plainly
from app.ui.uploads import Uploads

if TYPE_CHECKING:
    from app.chat import DocumentChat

ENCODINGS = {
    "": "found by itself", "cp1252": "Western European", "cp1250": "Central European", "cp1251": "Cyrillic",
    "koi8-r": "Cyrillic, KOI8", "cp1253": "Greek", "cp1254": "Turkish", "cp1255": "Hebrew", "cp1256": "Arabic",
    "cp1257": "Baltic", "cp1258": "Vietnamese", "cp437": "DOS", "cp850": "DOS, Western European", "mac-roman": "Mac",
    "shift_jis": "Japanese, Shift JIS", "euc-jp": "Japanese, EUC", "gb18030": "Chinese, simplified",
    "big5": "Chinese, traditional", "euc-kr": "Korean", "utf-16": "UTF-16",
}  # fmt: skip
KINDS = {
    "pdf": "PDF", "text": "Text", "code": "Code", "book": "E-book", "document": "Document", "slides": "Slides",
    "notebook": "Notebook", "web": "Web page", "captions": "Captions",
}  # fmt: skip
UNITS = {"pdf": "page", "code": "file", "slides": "slide", "notebook": "cell"}  # of others: section


def _state(document: DocumentInfo, queue: Sequence[str] = ()) -> str:
    """The state cell of a document's row; `queue`: ids of those that wait to be read, in order."""
    words = {"new": document.detail or "not read yet", "reading": "not read to its end", "read": "read"}
    text = words.get(document.state) or f"failed: {plainly(document.detail) or 'unknown'}"
    state, live = document.state, ""
    if state == "read" and document.mostly_unread:
        state, text = "partly", "partly read: see the remarks"
    elif state == "read" and (missed := format.missed(document)):
        state, text = "partly", f"read, but {missed}"
    elif state != "read" and document.id in queue:
        state, live = "reading", f' data-live="{escape(document.id)}"'
        text = "reading" if queue[0] == document.id else "waits to be read"
    return f'<span class="lt-state lt-{state}"><span class="lt-dot"></span><span{live}>{escape(text)}</span></span>'


def _remarks(document: DocumentInfo) -> str:
    """What ingestion left out or noticed, folded away."""
    lines = [escape(plainly(note)) for note in document.notes]
    lines += [f"{escape(skipped.name)}: {escape(plainly(skipped.reason))}" for skipped in document.skipped[:50]]
    if len(document.skipped) > 50:
        lines.append(f"and {len(document.skipped) - 50:,} more")
    if not lines:
        return ""
    items = "".join(f"<li>{line}</li>" for line in lines)
    word = format.plural(len(document.notes) + len(document.skipped), "remark")
    return f'<details class="lt-remarks"><summary>{word}</summary><ul>{items}</ul></details>'


def _shared(document: DocumentInfo) -> str:
    """Whose copy it is."""
    name = document.shared_by
    return f", shared by {escape(name)}, read-only" if name else ""


def _length(document: DocumentInfo) -> str:
    return format.plural(document.parts, UNITS.get(document.kind, "section"))


def _disk(document: DocumentInfo, space: DiskSpace) -> str:
    """The size cell: what is stored, or what reading will take, and the means to keep or delete it."""
    key, stored = escape(document.id), space.documents.get(document.id, 0)
    if not stored:
        expected = space.expected.get(document.id)
        return f"about {size_text(expected)} once read" if expected else "–"
    pinned = document.id in space.pinned
    word, title = (
        ("Unpin", "Let it go when room is needed") if pinned else ("Pin", "Keep it whatever the disk budget says")
    )
    return (
        f"<span>{size_text(stored)}{', pinned' if pinned else ''}</span>"
        f'<span class="lt-disk"><button type="button" class="lt-tool" data-do="{word.lower()}" data-id="{key}" '
        f'title="{title}">{word}</button><button type="button" class="lt-tool" data-do="evict" data-id="{key}" '
        'title="Delete what was read; the text stays and is read again when asked about">Free</button></span>'
    )


def _space(space: DiskSpace) -> str:
    """The line over the table."""
    facts = [f"{size_text(space.used_bytes)} of {size_text(space.budget_bytes)} for memories"]
    facts.append(f"{size_text(space.free_bytes)} free on the disk")
    return f'<p class="lt-space">{" · ".join(facts)}</p>'


def _buttons(document: DocumentInfo, queue: Sequence[str] = ()) -> str:
    key = escape(document.id)
    title = escape(document.title)
    ask = f'<button type="button" class="lt-tool" data-do="library-ask" data-id="{key}">Ask</button>'
    ask += f'<button type="button" class="lt-tool" data-do="open-part" data-id="{key}@1">Open</button>'
    begun = document.state == "reading" or (document.state == "new" and document.detail)  # says how far it came
    word = "Go on reading" if begun else {"new": "Read", "failed": "Try again"}.get(document.state)
    do = "reading-add"
    if word and document.id in queue:
        do, word = ("reading-first", "Read this first") if queue[0] != document.id else ("reading-cancel", "Cancel")
    read = f'<button type="button" class="lt-tool" data-do="{do}" data-id="{key}">{word}</button>'
    delete = (
        f'<details class="lt-confirm"><summary class="lt-tool" aria-label="Delete {title}">Delete</summary>'
        f'<div class="lt-pop"><p>Delete “{title}” and what was remembered of it?</p>'
        f'<button type="button" class="lt-button lt-danger" data-do="library-delete" data-id="{key}">Delete</button>'
        "</div></details>"
    )
    return (read if word else "") + ask + delete


def _encodings(document: DocumentInfo) -> str:
    """A menu that reads a text again under another encoding."""
    key = escape(document.id)
    choices = "".join(
        f'<button type="button" class="lt-chip" data-do="library-decode" data-id="{key}|{code}">{name}</button>'
        for code, name in ENCODINGS.items()
    )
    return (
        '<details class="lt-confirm"><summary class="lt-tool">Encoding</summary>'
        f'<div class="lt-pop"><p>Read the text again as</p>{choices}</div></details>'
    )


def table(chat: "DocumentChat", reading: BackgroundReading) -> str:
    """HTML of the library, newest first."""
    try:
        state, queue = chat.model.model_state().state, reading.documents()
        return _table(chat.library.documents(), state, chat.library.disk_space(), queue, chat.library.choosable())
    except Exception as error:
        return format.failure(error)


def _table(
    documents: Sequence[DocumentInfo],
    model: str,
    space: DiskSpace,
    queue: Sequence[str] = (),
    choosable: Set[str] = frozenset(),
) -> str:
    """Rows in the given order. What was read belongs to a model: until one is ready nothing can be said of it."""
    if not documents:
        return '<p class="lt-nothing">No documents yet. Drop a PDF, an e-book, a text, or a zip of code above.</p>'
    rows = "".join(
        f'<tr><td class="lt-title" data-label="Document"><b>{escape(document.title)}</b>'
        f"<span>{KINDS[document.kind]}{_shared(document)}</span>{_remarks(document)}</td>"
        f'<td data-label="Length">{_length(document)}</td>'
        f'<td data-label="Tokens">{format.count(document.tokens) if document.tokens else "–"}</td>'
        f'<td data-label="On disk">{_disk(document, space)}</td>'
        f'<td data-label="State">{_state(document, queue) if model == "ready" else f"model {model}"}</td>'
        f'<td class="lt-buttons">{_encodings(document) if document.id in choosable else ""}'
        f"{_buttons(document, queue)}</td></tr>"
        for document in documents
    )
    head = "".join(f"<th>{name}</th>" for name in ("Document", "Length", "Tokens", "On disk", "State", ""))
    return f'{_space(space)}<table class="lt-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def decode(chat: "DocumentChat", reading: BackgroundReading, choice: str) -> Iterator[Adding]:
    """Read a text again under another encoding.

    Args:
        choice: "id|encoding"; no encoding: it is found.
    """
    key, _, encoding = choice.partition("|")
    waited = reading.waits(key)
    reading.forget(key)
    try:
        with closed_after(chat.library.decode_again(key, encoding or None)) as steps:
            while True:
                try:
                    yield Adding(format.waiting(next(steps).words))
                except StopIteration as end:
                    document = end.value
                    break
    except Exception as error:
        if waited:
            reading.add(key)
        yield Adding(format.failure(error), changed=True)
        return
    if document.state != "read":
        reading.add(document.id)
    yield Adding("", (document.id,), changed=True)


def delete(chat: "DocumentChat", reading: BackgroundReading, key: str) -> tuple[str, str]:
    """Delete a document; (status HTML, table HTML)."""
    reading.forget(key)
    return _change(chat, reading, lambda: chat.library.delete_document(key))


def pin(chat: "DocumentChat", reading: BackgroundReading, key: str, pinned: bool) -> tuple[str, str]:
    """Keep the memory of a document, or no longer; (status HTML, table HTML)."""
    return _change(chat, reading, lambda: chat.library.pin(key, pinned))


def evict(chat: "DocumentChat", reading: BackgroundReading, key: str) -> tuple[str, str]:
    """Delete the memory of a document, not its text; (status HTML, table HTML)."""
    reading.forget(key)
    return _change(chat, reading, lambda: chat.library.evict(key))


def _change(chat: "DocumentChat", reading: BackgroundReading, work: Callable[[], Any]) -> tuple[str, str]:
    status = ""
    try:
        work()
    except Exception as error:
        status = format.failure(error)
    return status, table(chat, reading)


@dataclass(frozen=True)
class LibraryTab:
    """Parts that the page needs."""

    table: gr.HTML


def build(chat: "DocumentChat", reading: BackgroundReading, open_ask: Reaction, uploads: Uploads) -> LibraryTab:
    """Lay the tab out inside the current gr.Tab and wire it.

    Args:
        open_ask: takes a document id; opens the Ask tab over that document.
    """
    drop = gr.File(
        file_count="multiple", label="Drop PDFs, e-books, office files, web pages, notebooks, texts, or zips of code",
        elem_id="drop", height=150, type="filepath",
    )  # fmt: skip
    with gr.Accordion("Password for encrypted PDFs", open=False, elem_classes="lt-settings"):
        password = gr.Textbox(
            value="",
            type="password", show_label=False, label="Password", container=False, elem_id="password",
            placeholder="Used for the next files only; it is not kept",
        )  # fmt: skip
    scans = gr.Checkbox(
        label="Read scanned pages by OCR (some seconds a page)", value=False, container=False, elem_id="ocr",
        visible=ocr.available(),
    )  # fmt: skip
    search.build(chat)
    with gr.Column(elem_id="library-status"):
        with gr.Row(elem_classes="lt-reading"):
            opening = gr.HTML(scale=5)
            stop = gr.Button("Stop", size="sm", scale=0, min_width=72, visible=False, elem_id="library-stop")
        status = gr.HTML()
    shelf = gr.HTML(elem_id="library", js_on_load=actions.STAYS_OPEN)

    def shown(steps: Iterator[Adding]) -> Iterator[tuple[Any, ...]]:
        for step in steps:
            yield step.status, table(chat, reading) if step.changed else gr.skip(), gr.update(visible=True)
        yield gr.skip(), gr.skip(), gr.update(visible=False)

    def decoding(choice: str) -> Iterator[tuple[Any, ...]]:
        yield from shown(decode(chat, reading, choice))

    def adding(files: list[str] | None, secret: str, by_ocr: bool) -> Iterator[tuple[Any, ...]]:
        with closed_after(add(chat, reading, files or [], uploads, secret, by_ocr)) as steps:
            for *values, stopping in shown(steps):
                yield *values, gr.skip(), gr.skip(), stopping
        yield gr.skip(), gr.skip(), None, "", gr.update(visible=False)

    drop.upload(adding, [drop, password, scans], [opening, shelf, drop, password, stop], **PRIVATE)
    actions.on("library-decode", decoding, outputs=[opening, shelf, stop])
    changes = {"pin": partial(pin, pinned=True), "unpin": partial(pin, pinned=False)}
    changes |= {"evict": evict, "library-delete": delete}
    for name, change in changes.items():
        work = partial(_done, partial(change, chat, reading))
        actions.on(name, work, outputs=[status, shelf], queue=False)
    actions.on("library-ask", open_ask.handler, outputs=open_ask.outputs, cancels=open_ask.cancels, **actions.SHOWS)
    stop.click(chat.library.stop_adding, None, None, queue=False, **PRIVATE)
    return LibraryTab(shelf)


def _done(change: Callable[..., tuple[str, str]], key: str) -> tuple[str, str]:
    return change(key=key)
