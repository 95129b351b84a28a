"""What the viewer shows: a passage of an answer, or any document, with the way through it. Knows nothing of Gradio."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from app.errors import InputError, NotFoundError
from app.records import DocumentInfo, Evidence, Message, Part
from app.ui import format, viewer
from app.ui.page_text import whole_sentences
from app.ui.viewer import ASK, LIBRARY, Shown

if TYPE_CHECKING:
    from app.chat import DocumentChat
    from app.ingest.page_image import Located

log = logging.getLogger(__name__)
MOST_PLACES = 50  # that hold the words looked for


def part_name(label: str, info: DocumentInfo | None) -> str:
    """Where a part stands; one of a plain text, which has a number of ours only, by how many there are."""
    place = format.place(label, info.kind if info else None)
    return f"{place} of {info.parts}" if info and info.kind == "text" else place


def passage(chat: "DocumentChat", target: str, find: str | None = None) -> str:
    """HTML of the viewer at a passage, or at another part of its document.

    Args:
        target: id of the passage, or what `viewer.target` reads.
        find: words to look for in the document.
    """
    try:
        key, index, words = viewer.target(target) if "@" in target else (target, 0, "")
        evidence, chat_id, answer = chat.store.evidence(key)
        said = next((m for m in chat.saved.messages(chat_id) if m.id == answer), Message(0, "assistant", ""))
        siblings = [item.id for item in said.evidence]
        shown = _shown(
            chat, chat.library.document(evidence.document), key, index or evidence.part, words, find, evidence
        )
        covered = chat.library.coverage(evidence.document, said.evidence, said.stats)
        return viewer.page(replace(shown, covered=covered), evidence, siblings)
    except Exception as error:
        return viewer.message(format.failure(error))


def document(chat: "DocumentChat", target: str, find: str | None = None, words: str = "") -> str:
    """HTML of the viewer at a part of a document.

    Args:
        target: what `viewer.target` reads.
        find: words to look for in the document.
        words: to mark, where the target names none.
    """
    try:
        key, index, named = viewer.target(target)
        shown = _shown(chat, chat.library.document(key), key, index, named or words, find)
        return viewer.page(replace(shown, covered=chat.library.coverage(key)))
    except Exception as error:
        return format.failure(error)


def go(target: str, typed: str) -> str:
    """The target of the part whose number was typed; another that is in the document when it is none of it."""
    key, index, _ = viewer.target(target)
    number = re.search(r"\d{1,9}", typed)
    return f"{key}@{number[0] if number else index}"


def _shown(
    chat: "DocumentChat",
    info: DocumentInfo,
    key: str,
    index: int,
    words: str,
    find: str | None,
    evidence: Evidence | None = None,
) -> Shown:
    found = None
    if find is not None and find.strip():
        words = find
        hits = chat.store.search_parts(find, MOST_PLACES, info.id)
        found = sorted({at: part_name(label, info) for _, at, label, _ in hits}.items())
        index = next((at for at, _ in found if at >= index), found[0][0]) if found else index
    part = chat.store.part(info.id, max(1, min(index, info.parts)))
    own = evidence is not None and part.index == evidence.part and not words
    start, end = (evidence.char_start, evidence.char_end) if own else first_match(part.text, words)
    if own:
        start, end = whole_sentences(part, start, end)
    return Shown(
        ASK if evidence else LIBRARY, key, info.id, info.title, info.kind, part, info.parts, start, end,
        place=viewer.place_of(evidence, part, info.kind) if evidence else part_name(part.label, info),
        page=_page(chat, info.id, part, start, end),
        contents=contents(chat.store.outline(info.id), info), words=words, found=found,
    )  # fmt: skip


def _page(chat: "DocumentChat", document: str, part: Part, start: int, end: int) -> "Located | None":
    """The picture of a page, where its file is kept and can be drawn."""
    try:
        return chat.pages.locate(document, part, start, end)
    except (InputError, NotFoundError) as error:
        log.warning("%s", error)
        return None


def contents(outline: Sequence[tuple[int, str, str | None]], info: DocumentInfo) -> list[tuple[int, str]]:
    """(first part, name) of chapters, or else of files or places; pages that have no chapters are told by number only.

    Args:
        outline: (part, label, chapter) of all parts.
    """
    names: dict[str, int] = {}
    chapters = any(chapter for _, _, chapter in outline)
    if not chapters and info.kind in ("pdf", "text"):
        return []
    for index, label, chapter in outline:
        names.setdefault(chapter or part_name(label, info), index)
    return [(index, name) for name, index in names.items()]


def first_match(text: str, query: str) -> tuple[int, int]:
    """Where the query's first phrase or word stands in the text, in any case; (0, 0) when it does not."""
    for term in re.findall(r'"([^"]+)"|(\w[^\s"]*)', query):
        words = re.escape(" ".join((term[0] or term[1]).split())).replace(r"\ ", r"\s+")
        if match := re.search(words, text, re.IGNORECASE):
            return match.span()
    return 0, 0
