"""The Library tab: add documents, watch them being read, delete them."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.chat.keeping import DiskSpace
from app.errors import CancelledError, LecternError
from app.ingest import ocr
from app.records import DocumentInfo
from app.system import size_text
from app.ui import actions, format, search
from app.ui.ask_tab import GPU, PRIVATE, Reaction
from app.ui.asking import closed_after
from app.ui.uploads import Uploads

if TYPE_CHECKING:
    from app.chat import DocumentChat

UPDATE_S = 0.1
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

# The percent of the document being read is written into the table in place: drawing the table anew would close a
# question that the user is about to answer.
_PERCENT = """
watch('value', () => {
  const [id, percent] = (props.value || '').split('|');
  const cell = document.querySelector(`[data-progress="${id}"]`);
  if (cell) cell.textContent = `reading ${percent}%`;
});
"""


@dataclass(frozen=True)
class Adding:
    """What the tab shows while files are added.

    Attributes:
        status: HTML under the drop area: the file being opened, then one message per file that failed.
        table: HTML of the library; None while it stays as it is.
        added: ids of the documents that still have to be read.
    """

    status: str
    table: str | None
    added: tuple[str, ...] = ()


def _state(document: DocumentInfo) -> str:
    """The state cell of a document's row."""
    words = {"new": document.detail or "not read yet", "reading": "reading", "read": "read"}
    text = words.get(document.state) or f"failed: {document.detail or 'unknown'}"
    state = document.state
    if state == "read" and document.mostly_unread:
        state, text = "partly", "partly read: see the remarks"
    elif state == "read" and (missed := format.missed(document)):
        state, text = "partly", f"read, but {missed}"
    return (
        f'<span class="lt-state lt-{state}"><span class="lt-dot"></span>'
        f'<span data-progress="{escape(document.id)}">{escape(text)}</span></span>'
    )


def _remarks(document: DocumentInfo) -> str:
    """What ingestion left out or noticed, folded away."""
    lines = [escape(note) for note in document.notes]
    lines += [f"{escape(skipped.name)}: {escape(skipped.reason)}" for skipped in document.skipped[:50]]
    if len(document.skipped) > 50:
        lines.append(f"and {len(document.skipped) - 50:,} more")
    if not lines:
        return ""
    items = "".join(f"<li>{line}</li>" for line in lines)
    word = format.plural(len(document.notes) + len(document.skipped), "remark")
    return f'<details class="lt-remarks"><summary>{word}</summary><ul>{items}</ul></details>'


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


def _buttons(document: DocumentInfo) -> str:
    key = escape(document.id)
    title = escape(document.title)
    ask = f'<button type="button" class="lt-tool" data-do="library-ask" data-id="{key}">Ask</button>'
    begun = document.state == "new" and document.detail  # the detail says how far reading came
    word = "Go on reading" if begun else {"new": "Read", "failed": "Try again"}.get(document.state)
    read = f'<button type="button" class="lt-tool" data-do="library-read" data-id="{key}">{word}</button>'
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


def table(chat: "DocumentChat") -> str:
    """HTML of the library, newest first."""
    try:
        return _table(chat.documents(), chat.model_state().state, chat.disk_space(), chat.choosable())
    except Exception as error:
        return format.failure(error)


def _table(
    documents: Sequence[DocumentInfo], model: str, space: DiskSpace, choosable: Set[str] = frozenset()
) -> str:
    """Rows in the given order. What was read belongs to a model: until one is ready nothing can be said of it."""
    if not documents:
        return '<p class="lt-nothing">No documents yet. Drop a PDF, an e-book, a text, or a zip of code above.</p>'
    rows = "".join(
        f'<tr><td class="lt-title" data-label="Document"><b>{escape(document.title)}</b>'
        f"<span>{KINDS[document.kind]}</span>{_remarks(document)}</td>"
        f'<td data-label="Length">{_length(document)}</td>'
        f'<td data-label="Tokens">{format.count(document.tokens) if document.tokens else "–"}</td>'
        f'<td data-label="On disk">{_disk(document, space)}</td>'
        f'<td data-label="State">{_state(document) if model == "ready" else f"model {model}"}</td>'
        f'<td class="lt-buttons">{_encodings(document) if document.id in choosable else ""}'
        f"{_buttons(document)}</td></tr>"
        for document in documents
    )
    head = "".join(f"<th>{name}</th>" for name in ("Document", "Length", "Tokens", "On disk", "State", ""))
    return f'{_space(space)}<table class="lt-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def add(
    chat: "DocumentChat", files: Sequence[str], password: str, uploads: Uploads, by_ocr: bool = False
) -> Iterator[Adding]:
    """Add files one by one; a bad one leaves its message and the others go on. Uploads are deleted afterwards.

    Args:
        by_ocr: read scanned pages so.
    """
    added: list[str] = []
    notices: list[str] = []
    for number, file in enumerate(files, 1):
        path = Path(file)
        which = f"{number} of {len(files)}: " if len(files) > 1 else ""
        yield Adding(format.waiting(f"Opening {which}{path.name}") + "".join(notices), table(chat), tuple(added))
        try:
            with uploads.taken(file) as own:
                document = yield from _add_one(chat, own, password, which, "".join(notices), by_ocr)
            if document.state == "read":
                notices.append(format.notice(f"{document.title} is in the library already; nothing had to be read."))
            elif document.id not in added:
                added.append(document.id)
        except CancelledError:
            left = len(files) - number + 1
            notices.append(format.notice(f"Stopped; {format.plural(left, 'file')} not added, none read."))
            added.clear()
            for other in files[number:]:
                with suppress(LecternError), uploads.taken(other):
                    pass
            break
        except Exception as error:
            notices.append(format.failure(error))
    yield Adding("".join(notices), table(chat), tuple(added))


def _add_one(
    chat: "DocumentChat", path: Path, password: str, which: str, notices: str, by_ocr: bool = False
) -> Generator[Adding, None, DocumentInfo]:
    """Add one file, telling now and then how far it is."""
    with closed_after(chat.adding(path, password=password or None, name=path.name, ocr=by_ocr)) as steps:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            yield Adding(format.waiting(f"{which}{path.name}: {step.words}") + notices, None)


def read(
    chat: "DocumentChat", ids: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[str, str]]:
    """Read documents one after another; yields (status HTML, "id|percent").

    A document that cannot be read leaves its message and the next one is read; Stop ends all of them.
    """
    known = {document.id: document for document in chat.documents()}
    notices: list[str] = []
    for key in ids:
        shown_at = 0.0
        title = known[key].title if key in known else "the document"
        yield format.waiting(f"Preparing {title}") + "".join(notices), ""
        try:
            with closed_after(chat.read(key)) as events:
                for event in events:
                    if clock() - shown_at >= UPDATE_S:
                        shown_at = clock()
                        percent = format.share(event.tokens_done, event.tokens_total)
                        yield format.reading(event, known[key].kind) + "".join(notices), f"{key}|{percent}"
        except CancelledError as error:
            notices.append(format.failure(error))
            break
        except Exception as error:
            notices.append(format.failure(error))
    yield "".join(notices), ""


def decode(chat: "DocumentChat", choice: str) -> Iterator[Adding]:
    """Read a text again under another encoding.

    Args:
        choice: "id|encoding"; no encoding: it is found.
    """
    key, _, encoding = choice.partition("|")
    added: tuple[str, ...] = ()
    try:
        with closed_after(chat.decode_again(key, encoding or None)) as steps:
            while True:
                try:
                    yield Adding(format.waiting(next(steps).words), None)
                except StopIteration as end:
                    added = (end.value.id,) if end.value.state != "read" else ()
                    break
    except Exception as error:
        yield Adding(format.failure(error), table(chat))
        return
    yield Adding("", table(chat), added)


def delete(chat: "DocumentChat", key: str) -> tuple[str, str]:
    """Delete a document; (status HTML, table HTML)."""
    return _change(chat, lambda: chat.delete_document(key))


def pin(chat: "DocumentChat", key: str, pinned: bool) -> tuple[str, str]:
    """Keep the memory of a document, or no longer; (status HTML, table HTML)."""
    return _change(chat, lambda: chat.pin(key, pinned))


def evict(chat: "DocumentChat", key: str) -> tuple[str, str]:
    """Delete the memory of a document, not its text; (status HTML, table HTML)."""
    return _change(chat, lambda: chat.evict(key))


def _change(chat: "DocumentChat", work: Callable[[], Any]) -> tuple[str, str]:
    status = ""
    try:
        work()
    except Exception as error:
        status = format.failure(error)
    return status, table(chat)


def _pin(chat: "DocumentChat", pinned: bool, key: str) -> tuple[str, str]:
    return pin(chat, key, pinned)


@dataclass(frozen=True)
class LibraryTab:
    """Parts that the page needs."""

    table: gr.HTML


def build(chat: "DocumentChat", open_ask: Reaction, uploads: Uploads) -> LibraryTab:
    """Lay the tab out inside the current gr.Tab and wire it.

    Args:
        open_ask: takes a document id; opens the Ask tab over that document.
    """
    # Ids to be read, kept in the page: a second drop must not change what a first one still waits for.
    waiting = gr.JSON([], visible="hidden")
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
        opening = gr.HTML()
        with gr.Row(elem_classes="lt-reading"):
            status = gr.HTML(scale=5)
            stop = gr.Button("Stop", size="sm", scale=0, min_width=72, visible=False, elem_id="library-stop")
    shelf = gr.HTML(elem_id="library")
    percent = gr.HTML("", visible="hidden", js_on_load=_PERCENT)

    def adding(files: list[str] | None, secret: str, by_ocr: bool) -> Iterator[tuple[Any, ...]]:
        ids: tuple[str, ...] = ()
        with closed_after(add(chat, files or [], secret, uploads, by_ocr)) as steps:
            for step in steps:
                unchanged = step.table is None
                ids = ids if unchanged else step.added
                shown = gr.skip() if unchanged else step.table
                yield step.status, shown, list(ids), gr.skip(), gr.skip(), gr.update(visible=True)
        yield gr.skip(), gr.skip(), gr.skip(), None, "", gr.update(visible=bool(ids))

    def reading(ids: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        line = ""
        for line, value in read(chat, ids):
            yield line, gr.skip(), value, gr.update(visible=bool(ids))
        yield line, table(chat), "", gr.update(visible=False)

    def one(key: str) -> Iterator[tuple[Any, ...]]:
        yield from reading([key])

    shown = [status, shelf, percent, stop]
    added = drop.upload(adding, [drop, password, scans], [opening, shelf, waiting, drop, password, stop], **PRIVATE)
    added.then(reading, waiting, shown, **GPU, **PRIVATE)
    actions.on("library-read", one, outputs=shown, **GPU)

    def decoding(choice: str) -> Iterator[tuple[Any, ...]]:
        for step in decode(chat, choice):
            shown = gr.skip() if step.table is None else step.table
            yield step.status, shown, list(step.added), gr.update(visible=True)
        yield gr.skip(), gr.skip(), gr.skip(), gr.update(visible=False)

    again = actions.on("library-decode", decoding, outputs=[opening, shelf, waiting, stop])
    again.then(reading, waiting, shown, **GPU, **PRIVATE)
    for word in ("pin", "unpin"):
        change = partial(_pin, chat, word == "pin")
        actions.on(word, change, outputs=[status, shelf], queue=False)
    actions.on("evict", lambda key: evict(chat, key), outputs=[status, shelf], queue=False)
    actions.on("library-delete", lambda key: delete(chat, key), outputs=[status, shelf], queue=False)
    actions.on("library-ask", open_ask.handler, outputs=open_ask.outputs, cancels=open_ask.cancels, queue=False)

    def stop_all() -> None:
        chat.stop_adding()
        chat.stop()

    stop.click(stop_all, None, None, queue=False, **PRIVATE)
    return LibraryTab(shelf)
