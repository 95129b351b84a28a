"""Pure text and HTML of the page. Everything that comes from a document, a model or a user is escaped here."""

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Literal

from app.errors import CancelledError, LecternError, NotFoundError, refusal
from app.records import DocumentInfo, DocumentKind, MemoryLine, ModelState, Reading, Working
from app.system import duration, plural, size_text
from app.ui.plainly import plainly
from app.wellformed import whole

log = logging.getLogger(__name__)

LOSSES = ("compressed", "evicted", "quantized")  # what may have happened to tokens
TIERS = {"device": "on the GPU", "host": "in memory", "disk": "in SQLite", "ids": "left out", "reread": "read again"}
# first word of the error; the rest names an id
GONE = {"document": "document", "chat": "chat", "evidence": "passage", "version": "version"}
CALM = "Something went wrong inside Lectern. Your documents and chats are kept; the log has the details."


def count(number: int) -> str:
    return f"{number:,}"


def when(moment: str) -> str:
    """A stored UTC time on this computer's clock: 20 Nov 2026, 12:52; as it stands when it is no time."""
    try:
        stored = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    local = (stored if stored.tzinfo else stored.replace(tzinfo=UTC)).astimezone()
    return f"{local.day} {local:%b %Y, %H:%M}"


def share(part: float, whole: float) -> int:
    """Whole percent; 100 only when all is done."""
    if whole <= 0:
        return 100
    return 100 if part >= whole else min(99, int(100 * part / whole))


def place(label: str, kind: DocumentKind | None) -> str:
    """Where a passage stands: a page of a PDF, path:lines of a file, or as its label says; "" for no label.

    Of a plain text older releases kept the number of the part, and parts are told by it alone.
    """
    if kind == "text" and label.isdecimal():
        return f"part {label}"
    counted = kind == "pdf" or (kind is None and not re.search(r"[/:.\s]", label))
    return f"p. {label}" if label and counted else label


def missed(document: DocumentInfo) -> str:
    """What could not be read of a document, where it is more than half: "21 of 23 pages hold only images"; else ""."""
    for note in document.notes:
        found = re.match(r"(\d+) of (\d+) pages (?!were read)[^(;]*", note)
        if found and 2 * int(found[1]) > int(found[2]):
            return found[0].strip()
    return "most of its pages could not be read" if document.mostly_unread else ""


def notice(text: str, tone: Literal["calm", "bad"] = "calm") -> str:
    role = "alert" if tone == "bad" else "status"
    return f'<div class="lt-notice lt-{tone}" role="{role}">{escape(whole(text))}</div>'


def _gone(error: Exception) -> str | None:
    """What kind of thing is not known any more; None where the message says it itself."""
    return GONE.get(str(error).split(" ")[0]) if isinstance(error, NotFoundError) else None


def words(error: Exception) -> str:
    """What the page says about an error: its message, or a calm line for one that nobody foresaw (logged)."""
    if kind := _gone(error):
        return f"This {kind} is not here any more; it was deleted, perhaps in another window."
    if isinstance(error, LecternError):
        return plainly(str(error))
    if told := refusal(error):
        return told
    log.error("unexpected error in the page", exc_info=error)
    return CALM


def failure(error: Exception) -> str:
    """HTML of `words`; what the user did or knows of is told calmly."""
    calm = isinstance(error, CancelledError) or _gone(error)
    return notice(words(error), "calm" if calm else "bad")


def progress(text: str, percent: int) -> str:
    """A bar with a line of text over it; `text` is HTML."""
    return (
        f'<div class="lt-progress" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div class="lt-progress-text">{text}</div>'
        f'<div class="lt-track"><div class="lt-fill" style="width:{percent}%"></div></div></div>'
    )


def reading(event: Reading, kind: DocumentKind | None = None) -> str:
    """The live line while a document is read: place, %, tokens/s, time left."""
    percent = share(event.tokens_done, event.tokens_total)
    where = "" if kind == "text" else place(event.label, kind)  # the parts of a plain text have numbers of ours only
    facts = [f"<b>{percent}%</b>", *filter(None, [escape(where)])]
    if event.tokens_per_s > 0 and event.tokens_done < event.tokens_total:
        facts += [f"{event.tokens_per_s:,.0f} tokens/s", f"{duration(event.eta_s)} left"]
    if event.reused:
        facts.append(f"{count(event.reused)} tokens were read before")
    return progress(f"<span>Reading <i>{escape(event.title)}</i></span><span>{' · '.join(facts)}</span>", percent)


def working(event: Working) -> str:
    """The live line while a question goes through a whole text."""
    facts = [f"part {event.tokens_done:,} of {event.tokens_total:,}", f"{duration(event.eta_s)} left"]
    facts += [f"{event.reused:,} were gone through before"] if event.reused else []
    percent = share(event.tokens_done, event.tokens_total)
    return progress(f"<span>Going through <i>{escape(event.title)}</i></span><span>{' · '.join(facts)}</span>", percent)


def waiting(text: str, stop: str = "", *, clock: bool = False) -> str:
    """What is waited for.

    Args:
        stop: the action of a button that ends the wait; "" for none.
        clock: the page counts the seconds.
    """
    counts = '<span class="lt-clock" aria-hidden="true"></span>' if clock else ""
    button = f'<button type="button" class="lt-tool" data-do="{stop}">Stop</button>' if stop else ""
    return (
        f'<div class="lt-waiting" role="status"><span class="lt-dot"></span><span>{escape(whole(text))}</span>'
        f"{counts}{button}</div>"
    )


def earlier(count_left: int, then_shown: int) -> str:
    """A button over a long chat that shows more of its earlier turns.

    Args:
        count_left: turns that are not shown.
        then_shown: turns that it asks for.
    """
    return (
        f'<button type="button" class="lt-tool" data-do="earlier" data-id="{then_shown}">'
        f"Show what was asked earlier ({plural(count_left, 'question')})</button>"
    )


def memory(line: MemoryLine) -> str:
    """What a chat remembers, in a sentence, and folded under it how; the bytes are those of all that is held."""
    if not line.tokens:
        return ""
    lost = [f"{count(n)} {word}" for word in LOSSES if (n := getattr(line, f"tokens_{word}"))]
    tiers = [f"{count(n)} {words}" for name, words in TIERS.items() if (n := getattr(line, f"tokens_{name}"))]
    places = ((line.device_bytes, "on the GPU"), (line.host_bytes, "in memory"), (line.disk_bytes, "in SQLite"))
    kept = "all of them kept" if line.tokens_kept == line.tokens else f"{count(line.tokens_kept)} of them kept whole"
    codec = [f"{line.codec} codec"] if line.codec else []
    facts = [
        plural(line.regions, "region"),
        *([", ".join(lost)] if lost else ()),
        *([", ".join(tiers)] if tiers else ()),
        "altogether " + (", ".join(f"{size_text(held)} {where}" for held, where in places if held) or "nothing stored"),
        ", ".join([f"policy {line.policy}", *codec, f"{line.positions} positions", line.backend]),
    ]
    return (
        f'<details class="lt-fold lt-memory"><summary>This chat remembers {plural(line.tokens, "token")}, {kept}.'
        f"</summary>{escape(' · '.join(facts))}</details>"
    )


def model(state: ModelState) -> str:
    """The mark in the header: name and state of the model."""
    word = {"loading": "loading", "ready": "ready", "failed": "not loaded", "unloaded": "not loaded"}[state.state]
    facts = " · ".join(fact for fact in (state.device, state.dtype, state.policy) if fact)
    note = "demonstration model, " if state.demonstration else ""
    return (
        f'<div class="lt-model lt-{state.state}" role="status" title="{escape(facts)}"><span class="lt-dot"></span>'
        f"<span>{escape(state.name or 'Model')}</span><span class=lt-model-state>{note}{word}</span>"
        '<button type="button" class="lt-cover" data-here="models" aria-label="Choose another model"></button></div>'
    )


def problem(state: ModelState) -> str:
    """Why the model could not be loaded, for the line under the header."""
    return notice(plainly(state.detail) or "The model could not be loaded.", "bad") if state.state == "failed" else ""


def notes(lines: Sequence[str]) -> str:
    """What happened to the data folder, for the line under the header."""
    return "".join(notice(plainly(line)) for line in lines)


def demonstration(state: ModelState) -> str:
    """What a small shipped model owes its user to say, as long as it is loaded."""
    if not state.demonstration or state.state in ("failed", "unloaded"):
        return ""
    return (
        '<p class="lt-demo"><b>Demonstration model.</b> It finds keys, numbers and facts in the forms it was '
        "trained on. Other questions it answers with a few words of the text, often the wrong ones; it cannot "
        "summarise or explain. Load a larger one in Models.</p>"
    )


def kinds(documents: Sequence[DocumentInfo]) -> dict[str, DocumentKind]:
    return {document.id: document.kind for document in documents}
