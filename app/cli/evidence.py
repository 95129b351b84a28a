"""The command that tests what an answer rests on, and how `ask` tells where it looked."""

import argparse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app.cli.session import Session
from app.errors import NotFoundError
from app.records import AnswerStats, Done, Evidence, Look, Reading, Removal

if TYPE_CHECKING:
    from app.chat import DocumentChat

MEMORY = ("tokens_kept", "tokens_compressed", "tokens_evicted", "tokens_quantized")
KNOWS = ("source", "on_documents", "on_chat", "on_question", "looked_beyond", "held")
TIERS = {
    "tokens_device": "on the GPU",
    "tokens_host": "in memory",
    "tokens_disk": "on the disk",
    "tokens_ids": "left out",
    "tokens_reread": "read again",
}


def evidence(session: Session, args: argparse.Namespace) -> None:
    """Show a passage, and how much less likely its answer is without it."""
    with session.chat() as chat:
        passage, key, _ = chat.store.evidence(args.id)
        part = chat.store.part(passage.document, passage.part)
        passage = replace(passage, confidence=part.confidence(passage.char_start, passage.char_end))
        session.model_ready(chat)
        with closing(chat.removal(args.id)) as events:
            for event in events:
                if isinstance(event, Reading):
                    session.reading(event)
                else:
                    _removed(session, passage, key, event)


def _removed(session: Session, passage: Evidence, chat: str, found: Removal) -> None:
    values = passage_values(passage) | {
        "chat": chat,
        "before": round(sum(found.before), 4),
        "after": round(sum(found.after), 4),
        "fall": round(found.fall, 4),
        "control": None if found.control is None else round(found.control, 4),
        "controls": found.controls,
        "tokens": [
            {"text": text, "before": round(before, 4), "after": round(after, 4)}
            for text, before, after in zip(found.pieces, found.before, found.after, strict=True)
        ],
    }
    share = f"{passage.weight:.0%} of the attention{by_ocr(passage)}"
    lines = [f"{passage.title}, {passage.label} ({share})", passage.text, ""]
    lines.append(f"The answer's log-probability is {sum(found.before):.2f} nats. {found.words}")
    session.out.result(values, "\n".join(lines))


def passage_values(passage: Evidence) -> dict[str, Any]:
    """A passage for a script."""
    return {
        "id": passage.id,
        "document": passage.document,
        "label": passage.label,
        "part": passage.part,
        "text": passage.text,
        "weight": passage.weight,
        "found_by": passage.found_by or None,
        "ocr_confidence": None if passage.confidence is None else round(passage.confidence, 4),
    }


def by_ocr(passage: Evidence) -> str:
    """That OCR read a passage, and how sure it was; "" of other passages."""
    return "" if passage.confidence is None else f", read by OCR, mean confidence {passage.confidence:.0%}"


def look_values(look: Look, evidence: Sequence[Evidence]) -> dict[str, Any]:
    """One token of an answer and where it looked, for a script; `evidence` names the passage that holds the region."""
    known = {(item.document, *region): item.id for item in evidence for region in item.regions}
    return {
        "text": look.text,
        "looked": [
            {
                "document": document,
                "memory": memory,
                "region": region,
                "share": share,
                "evidence": known.get((document, memory, region)),
            }
            for document, memory, region, share in look.places
        ],
    }


def answer_values(done: Done) -> dict[str, Any]:
    """What an answer looked at, could see, and what became of the tokens behind it, for a script."""
    stats = done.stats
    return {
        "evidence": [passage_values(passage) for passage in done.evidence],
        "citations": [{"index": place, "evidence": done.evidence[number - 1].id} for place, number in done.stats.cited],
        "tokens": [look_values(look, done.evidence) for look in done.looks],
        "focus": list(stats.focus),
        "mute": list(stats.mute),
        "without": stats.without or None,
        "second_look": stats.second_look or None,
        **{name: getattr(stats, name) for name in (*MEMORY, *TIERS)},
        "codec": stats.codec,
        "knows": {name: getattr(stats, name) for name in KNOWS},
    }


def covered(chat: "DocumentChat", done: Done) -> list[dict[str, Any]]:
    """The strip along each document of the answer's chat; nothing where that was not kept."""
    try:
        documents = chat.saved.chat(done.chat).documents
        return [chat.library.coverage(id, done.evidence, done.stats.as_dict()).as_dict() for id in documents]
    except NotFoundError:  # the chat, or a document of it, is gone
        return []


def memory_line(stats: AnswerStats) -> str:
    """What became of the tokens behind an answer: "2,103 tokens kept, 40 evicted, 63 in memory, 2,040 on the disk"."""
    facts = [f"{stats.tokens_kept:,} tokens kept"]
    for name in MEMORY[1:]:
        if count := getattr(stats, name):
            facts.append(f"{count:,} {name.removeprefix('tokens_')}")
    facts += [f"{count:,} {words}" for name, words in TIERS.items() if (count := getattr(stats, name))]
    return ", ".join(facts)
