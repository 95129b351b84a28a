"""What the Ask tab shows, as generators over DocumentChat. Knows nothing of Gradio."""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.api.reading import BackgroundReading
from app.chat.focus import Sight
from app.memory.config import GenerationConfig
from app.records import Delta, Done, Message, Reading, Removal, Working
from app.settings import ROOT
from app.ui import foot, format, viewer

if TYPE_CHECKING:
    from app.chat import DocumentChat

log = logging.getLogger(__name__)
Event = TypeVar("Event")

TURNS, MORE_TURNS = 20, 100  # of a chat: shown of those that were last, and shown more of at a click
UPDATE_S = 0.05  # the page takes about 20 updates a second


@dataclass(frozen=True)
class View:
    """What the tab shows at one moment.

    Attributes:
        messages: {"role", "text"} of questions and answers, with "marks" (see `markdown.html`) in the text of kept
            answers, and {"foot"} for the HTML under an answer.
        chat: id of the chat; None before its first answer is kept.
        status: HTML between the answers and the question box.
        draft: text to put back into the question box.
    """

    messages: tuple[dict[str, Any], ...] = ()
    chat: str | None = None
    status: str = ""
    draft: str = ""
    running: bool = False


@contextmanager
def closed_after(events: Generator[Event]) -> Iterator[Generator[Event]]:
    """Close a generator at the end of the block: when the page is gone the model must stop.

    What closing raises is only logged: a handler whose page is gone has nobody to tell, and may not yield any more.
    """
    try:
        yield events
    finally:
        try:
            events.close()
        except Exception as error:
            log.warning("stopping after the page was closed: %s", error)


def show(chat: "DocumentChat", chat_id: str | None) -> View:
    """A chat as it is kept."""
    if chat_id is None:
        return View()
    kinds, loaded = format.kinds(chat.library.documents()), chat.model.model_state()
    shown: list[dict[str, Any]] = []
    question, versions = "", chat.saved.versions(chat_id)
    for message in chat.saved.messages(chat_id):
        shown.append({"role": message.role, "text": message.content + _cut(message)})
        if message.role == "assistant":
            shown[-1]["marks"] = foot.marks(message)
            shown.append({"foot": foot.foot(message, kinds, question, loaded, versions.get(message.id))})
        else:
            question = message.content
    return View(tuple(shown), chat_id)


def _cut(message: Message) -> str:
    """What shows that an answer goes no further though the model was not at its end, perhaps inside a word."""
    cut = message.stats.get("ended") == "length" or message.stats.get("stopped")
    return "…" if cut and message.content[-1:].isalnum() else ""


def thinking(chat: "DocumentChat", stop: str = "") -> str:
    """What is said until the first word comes: what the answer waits for, if it waits.

    Args:
        stop: the action of a button that takes the question back.
    """
    busy = chat.jobs.busy() or ""
    if busy.startswith(("reading ", "trying ")):
        text = f"Thinking; {busy} goes on meanwhile, slower"
    else:
        text = f"Waiting for the model: {busy}" if busy else "Thinking"
    return format.waiting(text, stop, clock=True)


def before_first_answer(chat: "DocumentChat") -> str:
    """What the browser keeps while a new chat has no id yet: which one was the newest before it."""
    return f"after {next((info.id for info in chat.saved.chats()), '')}"


def reopened(chat: "DocumentChat", kept: str) -> str | None:
    """The chat that a reloaded page goes on with.

    Args:
        kept: its id, or what `before_first_answer` gave.
    """
    chats = [info.id for info in chat.saved.chats() if info.messages]
    if kept.startswith("after "):
        newest = chats[0] if chats else None
        return newest if newest != kept.removeprefix("after ") else None
    return kept if kept in chats else None


def answer(
    chat: "DocumentChat",
    question: str,
    chat_id: str | None,
    documents: Sequence[str],
    generation: GenerationConfig = GenerationConfig(),
    sight: Sight = Sight(),
    clock: Callable[[], float] = time.monotonic,
    policy: str = "",
    system: str = "",
    so_far: Sequence[str] = (),
    through: bool | None = None,
) -> Iterator[View]:
    """Ask and show: the question at once, then reading, then the growing answer, then evidence and cost.

    Args:
        policy, system: of a new chat; another one has its own.
        so_far: documents that are asked as far as they are read.
        through: see `DocumentChat.ask`.
    """
    question = question.strip()
    if not question:
        yield replace(show(chat, chat_id), status=format.notice("Type a question first."))
        return
    before = show(chat, chat_id).messages
    asking = (*before, {"role": "user", "text": question})
    start = View(asking, chat_id, thinking(chat), running=True)
    fallback, stops = View(before, chat_id, draft=question), chat.jobs.stops
    yield start
    events = chat.ask(
        question,
        chat=chat_id,
        documents=() if chat_id else tuple(documents),
        generation=generation,
        focus=sight.focus,
        mute=sight.mute,
        policy="" if chat_id else policy,
        system="" if chat_id else system,
        so_far=so_far,
        through=through,
    )
    yield from follow(chat, events, start, fallback, question, stops, clock)


def again(
    chat: "DocumentChat",
    chat_id: str | None,
    generation: GenerationConfig = GenerationConfig(),
    sight: Sight = Sight(),
    clock: Callable[[], float] = time.monotonic,
    so_far: Sequence[str] = (),
) -> Iterator[View]:
    """Answer the last question once more."""
    kept = show(chat, chat_id)
    questions = [i for i, message in enumerate(kept.messages) if message.get("role") == "user"]
    if chat_id is None or not questions:
        yield replace(kept, status=format.notice("There is no question to answer again."))
        return
    shown = kept.messages[: questions[-1] + 1]
    start, stops = View(shown, chat_id, thinking(chat), running=True), chat.jobs.stops
    yield start
    question = kept.messages[questions[-1]]["text"]
    events = chat.retry(chat_id, generation=generation, focus=sight.focus, mute=sight.mute, so_far=so_far)
    yield from follow(chat, events, start, kept, question, stops, clock)


def last_length(chat: "DocumentChat", chat_id: str | None) -> int:
    """Tokens of the last answer."""
    answers = [message for message in chat.saved.messages(chat_id) if message.role == "assistant"] if chat_id else []
    return int(answers[-1].stats.get("new_tokens", 0)) if answers else 0


def follow(
    chat: "DocumentChat",
    events: Generator[Reading | Delta | Done],
    start: View,
    fallback: View,
    question: str,
    stops: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[View]:
    """Turn the events of an answer into views, not more than about 20 a second.

    Args:
        fallback: shown with the message when it fails.
        question: goes back into the box when nothing was answered and therefore nothing kept.
        stops: of the chat when `start` was shown: the stop button may have been pressed before the first event.
    """
    kinds = format.kinds(chat.library.documents())
    view, said, shown_at = start, "", 0.0
    try:
        with closed_after(events):
            for event in events if chat.jobs.stops == stops else ():
                if isinstance(event, Done):
                    if not event.stats.saved and event.stats.stopped:  # of another answer in the place of one
                        yield replace(show(chat, event.chat), status=format.notice(event.stats.note))
                        return
                    if not event.stats.saved:
                        messages = (*start.messages, {"role": "assistant", "text": event.answer})
                        yield View(messages, event.chat, format.notice(event.stats.note, "bad"))
                        return
                    if event.answer or not event.stats.stopped:
                        yield replace(show(chat, event.chat), status=_unattached(chat, event.chat))
                        return
                elif isinstance(event, Working):
                    so_far = ({"role": "assistant", "text": event.text},) if event.text else ()
                    view = replace(start, messages=(*start.messages, *so_far), status=format.working(event))
                elif isinstance(event, Reading):
                    view = replace(start, status=format.reading(event, kinds.get(event.document)))
                else:
                    said += event.text
                    view = replace(start, messages=(*start.messages, {"role": "assistant", "text": said}), status="")
                if clock() - shown_at >= UPDATE_S:
                    shown_at = clock()
                    yield view
        unanswered = show(chat, fallback.chat)
        yield replace(unanswered, draft=question, status=format.notice("Stopped before there was an answer."))
    except Exception as error:  # the last line of defence: a message, never a traceback
        yield replace(fallback, status=format.failure(error))


def _unattached(chat: "DocumentChat", chat_id: str) -> str:
    """A hint under an answer that no document stands behind."""
    if chat.saved.chat(chat_id).documents:
        return ""
    return format.notice(
        "No document is attached, so this was answered from the question alone. Pick a document above, or add one in "
        "Library."
    )


def without(
    chat: "DocumentChat",
    evidence_id: str,
    generation: GenerationConfig = GenerationConfig(),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[str]:
    """HTML of how much the answer rests on a passage, and of the answer that is given when it is hidden."""
    yield viewer.comparison(format.waiting("Testing the answer without this passage"))
    said, shown_at, tested = "", 0.0, ""
    try:
        with closed_after(chat.removal(evidence_id)) as events:
            for event in events:
                if isinstance(event, Removal):
                    tested = viewer.removal(event)
        yield viewer.comparison(tested + format.waiting("Answering without this passage"))
        with closed_after(chat.answer_without(evidence_id, generation=generation)) as events:
            for event in events:
                if isinstance(event, Done):
                    body = tested + viewer.answer(event.answer)
                    yield viewer.comparison(body, foot.told(event.stats.as_dict()))
                    return
                said += event.text if isinstance(event, Delta) else ""
                if clock() - shown_at >= UPDATE_S:
                    shown_at = clock()
                    yield viewer.comparison(tested + viewer.answer(said))
        yield viewer.comparison(tested + viewer.answer(said), "stopped")
    except Exception as error:
        yield viewer.comparison(format.failure(error))


def places(chat: "DocumentChat", picked: Sequence[str], *chosen: Sequence[str]) -> tuple[Any, ...]:
    """What focus and mute offer for the picked documents, and what of the chosen still belongs to them.

    Returns:
        (choices, then what stays of each of `chosen`).
    """
    known = {document.id: document.title for document in chat.library.documents() if document.id in picked}
    offered = chat.library.places(list(known))
    specs = {spec for _, spec in offered}

    def stays(spec: str) -> bool:  # a place that was typed begins with an id or a title
        return spec in specs or any(spec.startswith((id, title)) for id, title in known.items())

    return offered, *([spec for spec in some or () if stays(spec)] for some in chosen)


def attach(chat: "DocumentChat", chat_id: str | None, picked: Sequence[str]) -> str:
    """Attach these documents and no others to a chat; status HTML."""
    if chat_id is None:
        return ""
    try:
        before = chat.saved.chat(chat_id)
        chat.saved.set_chat_documents(chat_id, picked)
    except Exception as error:
        return format.failure(error)
    if not before.messages or before.documents == tuple(picked):
        return ""
    return format.notice("From the next question on. The answers above stay as they were given.")


def choices(chat: "DocumentChat", policy: str = "") -> list[tuple[str, str]]:
    """(what the picker shows, document id), newest first; those that were not read under the policy say so."""
    ready = chat.model.model_state().state == "ready"  # before, nobody knows what this model has read
    listed = []
    for document in chat.library.documents(policy):
        state = " (not read yet)" if ready and document.state != "read" else ""
        state = state or (" (only partly readable)" if format.missed(document) else "")
        listed.append((f"{document.title}{state}", document.id))
    return listed


def sample_book() -> Path | None:
    """The book that ships, if it is there."""
    return next(iter(sorted((ROOT / "samples").glob("*.txt"))), None)


def read_sample(chat: "DocumentChat", reading: BackgroundReading, book: Path | None) -> tuple[str, str]:
    """Add the sample book and have it read before all others; (document id or "", status HTML)."""
    if book is None:
        return "", format.notice("This copy of Lectern has no sample book (folder samples); add a file in Library.")
    try:
        document = chat.library.add_document(book).id
    except Exception as error:
        return "", format.failure(error)
    reading.add(document, first=True)
    return document, ""


def welcome(chat: "DocumentChat", documents: Sequence[str]) -> str:
    """The page before the first question: what Lectern is, or which documents are asked."""
    picked = [document for document in chat.library.documents() if document.id in documents]
    titles = [f"<i>{escape(document.title)}</i>" for document in picked]
    if titles:
        lost = [f"{document.title}: {missed}." for document in picked if (missed := format.missed(document))]
        return (
            f"<h2>Ask about {' and '.join(titles)}</h2><p>The whole text is read once and remembered. "
            "Every answer shows the passages that the model looked at.</p>"
            + "".join(f'<p class="lt-partly">{escape(line)} See the remarks in Library.</p>' for line in lost)
        )
    return (
        "<h2>Give it a whole book. Then ask.</h2><p>Lectern reads all of a document once, remembers it on this "
        "computer, and answers from it. Nothing leaves the machine.</p>"
    )
