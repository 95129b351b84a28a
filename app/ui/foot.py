"""What stands under an answer: where the model looked, how the answer ended, what it cost, and what can be done."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.chat.focus import Sight
from app.records import DocumentKind, Evidence, Message, ModelState, Versions
from app.system import duration
from app.tasks.scoring import MAY_SAY, ending, knows, only_refuses
from app.ui.format import LOSSES, count, place, plural

SHARE = "share of the attention on the documents"
REST = "The rest went to the first words of texts, which always draw attention, and to the answer itself."
FOUND_BY = {
    "attention": " The model's attention found it.",
    "words": " The words of the question found it.",
    "both": " The model's attention and the words of the question found it.",
}


def cost(stats: Mapping[str, Any]) -> str:
    """What an answer cost, in a sentence."""
    read, reused = stats.get("tokens_read", 0), stats.get("tokens_reused", 0)
    came = f"; {count(reused)} came from memory" if reused else ""
    return f"Read {plural(read, 'new token')}{came}."


def details(stats: Mapping[str, Any]) -> str:
    """How long that took, and how the memory was kept: "1.4 s · 31 tokens/s · policy keep-all"."""
    parts = [duration(stats["seconds"])] if stats.get("seconds") else []
    if stats.get("tokens_per_s"):
        parts.append(f"{stats['tokens_per_s']:,.0f} tokens/s")
    if stats.get("second_look"):
        parts.append(f"second look at {plural(stats['second_look'], 'passage')}")
    if stats.get("policy"):
        parts.append(f"policy {stats['policy']}")
    return " · ".join(parts + [f"{count(n)} {word}" for word in LOSSES if (n := stats.get(f"tokens_{word}"))])


def told(stats: Mapping[str, Any]) -> str:
    """All that is known of how an answer came about, in one line."""
    return " ".join([cost(stats), *remarks(stats), details(stats)]).strip()


def remarks(stats: Mapping[str, Any], loaded: str = "") -> list[str]:
    """What the user should know of how an answer came about.

    Args:
        loaded: name of the loaded model; the answer of another one says whose it is.
    """
    ended = ending(stats.get("ended", ""), stats.get("new_tokens", 0))
    longer = " Answer settings allow a longer one." if stats.get("ended") == "length" else ""
    by = stats.get("model") if loaded and stats.get("model", loaded) != loaded else ""
    seen = Sight.of(stats).words
    lines = [
        ended + longer,
        "You stopped it." if stats.get("stopped") else "",
        f"Answered by {by}." if by else "",
        f"{seen[0].upper()}{seen[1:]}." if seen else "",
        stats.get("note", ""),
    ]
    return [line for line in lines if line]


def marks(message: Message) -> tuple[tuple[int, str], ...]:
    """(place, HTML) of the numbers in an answer's text: each opens the passage that the words come from."""
    known = dict(enumerate(message.evidence, start=1))
    return tuple(
        (place, _mark(number, known[number])) for place, number in message.stats.get("cited", ()) if number in known
    )


def _mark(number: int, evidence: Evidence) -> str:
    where = escape(f"Passage {number}: {evidence.title}, {evidence.label}")
    return (
        f'<button type="button" class="lt-cite" data-do="passage" data-id="{escape(evidence.id)}" title="{where}" '
        f'aria-label="{where}">{number}</button>'
    )


def chip(evidence: Evidence, kind: DocumentKind | None, do: str = "passage", number: int = 0) -> str:
    """A passage as a button: document, place, share of the attention.

    Args:
        do: what a click does, `passage` or `without`.
        number: by which the answer's text names it; 0 for none.
    """
    where, weight = place(evidence.label, kind), f"{evidence.weight:.0%}" if evidence.weight or evidence.regions else ""
    hint = "Click to read it." if do == "passage" else "Click to answer without it."
    found = FOUND_BY.get(evidence.found_by, "")
    title = f"{evidence.title}, {where}: {weight}, the {SHARE}.{found} Not a measure of how sure the answer is. {hint}"
    mark = f"<span class=lt-chip-found>{evidence.found_by}</span>" if found else ""
    return (
        f'<button type="button" class="lt-chip" data-do="{do}" data-id="{escape(evidence.id)}" '
        f'title="{escape(title)}" style="--w:{min(1.0, evidence.weight):.2f}">'
        f"{f'<span class=lt-chip-number>{number}</span>' if number else ''}"
        f"<span class=lt-chip-title>{escape(evidence.title)}</span>"
        f"<span class=lt-chip-place>{escape(where)}</span><span class=lt-chip-weight>{weight}</span>{mark}</button>"
    )


def listed(message: Message, kinds: Mapping[str, DocumentKind]) -> str:
    """The places of an answer that went through whole texts, folded away: its lines have their numbers."""
    stats, numbered = message.stats, enumerate(message.evidence, start=1)
    chips = "".join(chip(item, kinds.get(item.document), number=number) for number, item in numbered)
    before = f", {stats['parts_reused']:,} of them before" if stats.get("parts_reused") else ""
    line = f"Went through {stats.get('parts_done', 0):,} of {plural(stats.get('parts', 0), 'part')}{before}."
    places = f'<details class="lt-fold"><summary>{plural(len(message.evidence), "place")}</summary>' if chips else ""
    folded = f'{places}<div class="lt-chips">{chips}</div></details>' if chips else ""
    return f'<p class="lt-remark">{line} Counted by program, not by the model.</p>{folded}'


def looked_at(evidence: Sequence[Evidence], kinds: Mapping[str, DocumentKind], refused: bool) -> str:
    """The passages; under a refusal they are folded away, for they support nothing."""
    if not evidence:
        return ""
    numbered = enumerate(evidence, start=1)
    chips = "".join(chip(item, kinds.get(item.document), number=number) for number, item in numbered)
    if refused:
        summary = f"Looked at {plural(len(evidence), 'passage')} without finding an answer"
        return f'<details class="lt-fold"><summary>{summary}</summary><div class="lt-chips">{chips}</div></details>'
    label = f'<span class="lt-label" title="The percentages are the {SHARE}. Where the model looked is not a proof.">'
    return f'<div class="lt-chips">{label}Looked at (share of attention)</span>{chips}</div>'


def without(evidence: Sequence[Evidence], kinds: Mapping[str, DocumentKind]) -> str:
    """A button that offers to answer again without one of the passages."""
    numbered = enumerate(evidence, start=1)
    chips = "".join(chip(item, kinds.get(item.document), "without", number) for number, item in numbered)
    return (
        '<details class="lt-confirm"><summary class="lt-tool">Answer without …</summary><div class="lt-pop">'
        "<p>Hide one passage from the model and ask again, to see what the answer rests on. Nothing is saved.</p>"
        f"{chips}</div></details>"
    )


def branches(message: Message, question: str) -> str:
    """Buttons to branch off after an answer and to ask its question differently."""
    key = message.id
    return (
        f'<button type="button" class="lt-tool" data-do="fork" data-id="{key}" '
        'title="A new chat that begins with everything up to here; nothing is read again">Fork</button>'
        '<details class="lt-confirm"><summary class="lt-tool">Edit</summary>'
        f'<form class="lt-pop" data-do="edit" data-id="{key}"><p>Ask this instead. What is here now stays as '
        f'another version.</p><textarea name="text" rows="4" required aria-label="Another question">\n'
        f'{escape(question)}</textarea><button class="lt-button">Ask</button></form></details>'
    )


def versions(found: Versions) -> str:
    """Buttons to the version before and after the one that is shown, and which one it is: "1/2"."""

    def button(number: int, sign: str, word: str) -> str:
        there = 1 <= number <= len(found.turns)
        target = f'data-do="version" data-id="{found.turns[number - 1]}"' if there else "disabled"
        return f'<button type="button" class="lt-tool" {target} aria-label="{word} version">{sign}</button>'

    here = f"{found.number}/{len(found.turns)}"
    return (
        f'<span class="lt-versions" role="group" aria-label="Version {here}">{button(found.number - 1, "‹", "Earlier")}'
        f"<span>{here}</span>{button(found.number + 1, '›', 'Later')}</span>"
    )


def foot(
    message: Message,
    kinds: Mapping[str, DocumentKind],
    question: str = "",
    loaded: ModelState | None = None,
    others: Versions | None = None,
) -> str:
    """All of it; the style sheet shows retry under the last answer only.

    Args:
        question: what was asked; without it nothing branches off.
        loaded: the loaded model.
        others: the versions of its turn, where there are several.
    """
    stats, name = message.stats, loaded.name if loaded else ""
    refused = only_refuses(message.content)
    said = remarks(stats, name)
    if refused and message.evidence and loaded and loaded.demonstration and stats.get("model", name) in ("", name):
        said.insert(0, MAY_SAY)
    tools = (
        f'<button type="button" class="lt-tool" data-do="copy" data-text="{escape(message.content)}">Copy</button>'
        '<button type="button" class="lt-tool" data-do="retry">Try again</button>'
    )
    if stats.get("ended") == "length":
        tools += (
            '<button type="button" class="lt-tool" data-do="longer" title="Answers once more, up to twice as long">'
            "Longer answer</button>"
        )
    whole = bool(stats.get("whole"))
    tools += without(message.evidence, kinds) if message.evidence and not refused and not whole else ""
    tools += branches(message, question) if question else ""
    return (
        f'<div class="lt-foot">{listed(message, kinds) if whole else looked_at(message.evidence, kinds, refused)}'
        f"{''.join(f'<p class=lt-remark>{escape(line)}</p>' for line in said)}{_knows(stats)}"
        f'<div class="lt-line">{versions(others) if others else ""}{"" if whole else _spent(stats)}'
        f'<span class="lt-tools">{tools}</span></div></div>'
    )


def _knows(stats: Mapping[str, Any]) -> str:
    """How the answer knows, as a line; what is no share of the three is told on pointing at it."""
    if not (line := knows(stats)):
        return ""
    return f'<p class="lt-remark lt-knows" title="{REST}"><b>How do you know?</b> {escape(line)}</p>'


def _spent(stats: Mapping[str, Any]) -> str:
    """The cost, with what only some want to know folded away."""
    if not stats:
        return ""
    return (
        f'<details class="lt-fold lt-cost"><summary>{escape(cost(stats))}</summary>{escape(details(stats))}</details>'
    )
