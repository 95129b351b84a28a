"""Pure text and HTML of the page. Everything that comes from a document, a model or a user is escaped here."""

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal

from app.chat.focus import Sight
from app.errors import CancelledError, LecternError
from app.records import DocumentInfo, DocumentKind, Evidence, MemoryLine, Message, ModelState, Reading
from app.units import duration, size_text

log = logging.getLogger(__name__)

LOSSES = ("compressed", "evicted", "quantized")  # what may have happened to tokens
TIERS = {"device": "on the GPU", "host": "in memory", "disk": "in SQLite", "ids": "left out", "reread": "read again"}
CALM = "Something went wrong inside Lectern. Your documents and chats are kept; the log has the details."


def count(number: int) -> str:
    return f"{number:,}"


def plural(number: int, word: str) -> str:
    """`plural(2, "page")` is "2 pages"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


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
    """Where a passage stands: a page of a PDF, a section of a text, or path:lines of a file; "" for no label."""
    if not label:
        return ""
    if kind == "code" or (kind is None and re.search(r"[/:.]", label)):
        return label
    return f"§ {label}" if kind == "text" else f"p. {label}"


def notice(text: str, tone: Literal["calm", "bad"] = "calm") -> str:
    role = "alert" if tone == "bad" else "status"
    return f'<div class="lt-notice lt-{tone}" role="{role}">{escape(text)}</div>'


def failure(error: Exception) -> str:
    """What the page says about an error: its message, or a calm line for one that nobody foresaw (logged)."""
    if isinstance(error, CancelledError):
        return notice(str(error))
    if isinstance(error, LecternError):
        return notice(str(error), "bad")
    log.error("unexpected error in the page", exc_info=error)
    return notice(CALM, "bad")


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
    facts = [f"<b>{percent}%</b>", *filter(None, [escape(place(event.label, kind))])]
    if event.tokens_per_s > 0 and event.tokens_done < event.tokens_total:
        facts += [f"{event.tokens_per_s:,.0f} tokens/s", f"{duration(event.eta_s)} left"]
    if event.reused:
        facts.append(f"{count(event.reused)} tokens were read before")
    return progress(f"<span>Reading <i>{escape(event.title)}</i></span><span>{' · '.join(facts)}</span>", percent)


def waiting(text: str) -> str:
    return f'<div class="lt-waiting" role="status"><span class="lt-dot"></span>{escape(text)}</div>'


def cost(stats: Mapping[str, Any], loaded: str = "") -> str:
    """What an answer cost: "2,103 tokens reused, 12 read · 1.4 s · 31 tokens/s".

    Args:
        loaded: name of the loaded model; the answer of another one says whose it is.
    """
    parts = [f"{count(stats.get('tokens_reused', 0))} tokens reused, {count(stats.get('tokens_read', 0))} read"]
    if stats.get("seconds"):
        parts.append(duration(stats["seconds"]))
    if stats.get("tokens_per_s"):
        parts.append(f"{stats['tokens_per_s']:,.0f} tokens/s")
    if stats.get("policy"):
        parts.append(f"policy {stats['policy']}")
    if loaded and stats.get("model", loaded) not in ("", loaded):
        parts.append(f"by {stats['model']}")
    parts += [f"{count(n)} {word}" for word in LOSSES if (n := stats.get(f"tokens_{word}"))]
    parts += [words] if (words := Sight.of(stats).words) else []
    if stats.get("stopped"):
        parts.append("stopped")
    if stats.get("note"):
        parts.append(stats["note"])
    return " · ".join(parts)


def chip(evidence: Evidence, kind: DocumentKind | None) -> str:
    """A passage as a button: document, place, share of the attention."""
    where, weight = place(evidence.label, kind), f"{evidence.weight:.0%}"
    title = f"{evidence.title}, {where}: {weight} of the attention on the documents. Click to read it."
    return (
        f'<button type="button" class="lt-chip" data-do="passage" data-id="{escape(evidence.id)}" '
        f'title="{escape(title)}" style="--w:{min(1.0, evidence.weight):.2f}">'
        f"<span class=lt-chip-title>{escape(evidence.title)}</span>"
        f"<span class=lt-chip-place>{escape(where)}</span><span class=lt-chip-weight>{weight}</span></button>"
    )


def branches(message: Message, question: str) -> str:
    """Buttons to branch off after an answer and to ask its question differently."""
    key = message.id
    return (
        f'<button type="button" class="lt-tool" data-do="fork" data-id="{key}" '
        'title="A new chat that begins with everything up to here; nothing is read again">Fork</button>'
        '<details class="lt-confirm"><summary class="lt-tool">Edit</summary>'
        f'<form class="lt-pop" data-do="edit" data-id="{key}"><p>Ask this instead. The turns after it are dropped; '
        f'fork first to keep them.</p><input name="text" value="{escape(question)}" required '
        'aria-label="Another question"><button class="lt-button">Ask</button></form></details>'
    )


def foot(message: Message, kinds: Mapping[str, DocumentKind], question: str = "", loaded: str = "") -> str:
    """What stands under an answer: chips, cost (see there) and tools; the style sheet shows retry under the last."""
    chips = "".join(chip(evidence, kinds.get(evidence.document)) for evidence in message.evidence)
    if chips:
        label = '<span class="lt-label" title="The places that drew the most attention; not a proof.">Looked at</span>'
        chips = f'<div class="lt-chips">{label}{chips}</div>'
    tools = (
        f'<button type="button" class="lt-tool" data-do="copy" data-text="{escape(message.content)}">Copy</button>'
        '<button type="button" class="lt-tool" data-do="retry">Try again</button>'
    ) + (branches(message, question) if question else "")
    spent = f"<span class=lt-cost>{escape(cost(message.stats, loaded))}</span>" if message.stats else ""
    return f'<div class="lt-foot">{chips}<div class="lt-line">{spent}<span class="lt-tools">{tools}</span></div></div>'


def safe_markdown(text: str) -> str:
    """Markdown that shows its HTML and image marks as text; code keeps every character.

    The page renders Markdown. A tag or an image in a book or an answer must neither vanish nor be obeyed.
    """
    pieces = re.split(r"(```.*?(?:```|\Z)|`[^`\n]+`)", text, flags=re.DOTALL)
    for i in range(0, len(pieces), 2):  # odd pieces are code
        pieces[i] = pieces[i].replace("&", "&amp;").replace("<", "&lt;").replace("![", "!\\[")
    return "".join(pieces)


def memory(line: MemoryLine) -> str:
    """The memory of a chat in one line; the bytes are those of all that is held."""
    if not line.tokens:
        return ""
    lost = [f"{count(n)} {word}" for word in LOSSES if (n := getattr(line, f"tokens_{word}"))]
    tiers = [f"{count(n)} {words}" for name, words in TIERS.items() if (n := getattr(line, f"tokens_{name}"))]
    places = ((line.device_bytes, "on the GPU"), (line.host_bytes, "in memory"), (line.disk_bytes, "in SQLite"))
    facts = [
        f"{plural(line.tokens, 'token')} in {plural(line.regions, 'region')}",
        ", ".join([f"{'all' if line.tokens_kept == line.tokens else count(line.tokens_kept)} kept", *lost]),
        *([", ".join(tiers)] if tiers else ()),
        "altogether " + (", ".join(f"{size_text(held)} {where}" for held, where in places if held) or "nothing stored"),
        f"{line.policy}, {f'{line.codec} codec, ' if line.codec else ''}{line.positions} positions, {line.backend}",
    ]
    return f'<div class="lt-memory"><span class="lt-label">Memory</span>{escape(" · ".join(facts))}</div>'


def model(state: ModelState) -> str:
    """The mark in the header: name and state of the model."""
    word = {"loading": "loading", "ready": "ready", "failed": "not loaded"}[state.state]
    facts = " · ".join(fact for fact in (state.device, state.dtype, state.policy) if fact)
    note = "demonstration model, " if state.demonstration else ""
    return (
        f'<div class="lt-model lt-{state.state}" role="status" title="{escape(facts)}"><span class="lt-dot"></span>'
        f"<span>{escape(state.name or 'Model')}</span><span class=lt-model-state>{note}{word}</span></div>"
    )


def problem(state: ModelState) -> str:
    """Why the model could not be loaded, for the line under the header."""
    return notice(state.detail or "The model could not be loaded.", "bad") if state.state == "failed" else ""


def notes(lines: Sequence[str]) -> str:
    """What happened to the data folder, for the line under the header."""
    return "".join(notice(line) for line in lines)


def demonstration(state: ModelState) -> str:
    """What a small shipped model owes its user to say."""
    if not state.demonstration or state.state == "failed":
        return ""
    return (
        '<p class="lt-demo"><b>This is a demonstration model.</b> It runs anywhere and shows how Lectern works, but '
        "its answers are often wrong. Load a real one in Models, or start with <code>--model PATH</code>.</p>"
    )


def kinds(documents: Sequence[DocumentInfo]) -> dict[str, DocumentKind]:
    return {document.id: document.kind for document in documents}
