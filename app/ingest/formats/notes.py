"""Footnotes and endnotes of pages: which elements are notes, and what calls them."""

import re

from lxml import etree

from app.ingest.formats.parse import attribute, local

LONGEST_NOTE = 3_000  # characters of one that only its links tell
_LABEL = re.compile(r"[\[(]?(?:\d{1,4}|[*†‡§¶]{1,3}|[a-z]|[ivxl]{1,6})[\])]?", re.IGNORECASE)
_INLINE = {"a", "sup", "span", "b", "i", "em", "strong", "small"}
_NOTE = {"footnote", "endnote", "rearnote", "note", "doc-footnote", "doc-endnote"}
_NOTES = {"footnotes", "endnotes", "rearnotes", "doc-endnotes", "doc-footnotes", "references"}


def find_notes(root: etree._Element) -> dict[str, etree._Element]:
    """The notes of a page by the ids that links call them by.

    A note is what says that it is one, an item of a list of notes, or a short text that a numbered link leads to and
    that links back.
    """
    ids = {element.get("id"): element for element in root.iter() if isinstance(element.tag, str) and element.get("id")}
    found = {}
    for link in root.iter():
        id = attribute(link, "href").partition("#")[2] if local(link) == "a" else ""
        target = ids.get(id)
        if target is None or target is link or any(above is target for above in link.iterancestors()):
            continue
        if _kinds(target) & _NOTE or _is_item(target):
            found[id] = target
        elif _LABEL.fullmatch("".join(link.itertext()).strip()) and (note := _mutual(link, target)) is not None:
            found[id] = note
    return found


def _mutual(link: etree._Element, target: etree._Element) -> etree._Element | None:
    """The paragraph that a link leads to, if it is short and leads back to the link."""
    note = target
    while local(note) in _INLINE and note.getparent() is not None:
        note = note.getparent()
    if local(note) in ("body", "html") or len("".join(note.itertext())) > LONGEST_NOTE:
        return None
    back = {link.get("id"), link.getparent().get("id")} - {None}
    around = [element for element in note.iter() if isinstance(element.tag, str)]
    if any(re.fullmatch("h[1-6]", local(element)) or element is link for element in around):
        return None
    leads_back = any(local(e) == "a" and attribute(e, "href").partition("#")[2] in back for e in around)
    return note if leads_back else None


def label_of(link: etree._Element) -> str:
    """What a link to a note shows, without the brackets around it."""
    return " ".join("".join(link.itertext()).split()).strip("[]() ") or "note"


def without_label(text: str, label: str) -> str:
    """The text of a note without its own number before it."""
    return re.sub(rf"^\s*[-•]?\s*[\[(]?{re.escape(label)}[\]).:]*(?!\w)\s*", "", text, count=1).strip()


def _kinds(element: etree._Element) -> set[str]:
    kinds = attribute(element, "type").split() + attribute(element, "role").split()
    return set(kinds) | (set(element.get("class", "").split()) & {"footnote", "footnotes"})


def _is_item(element: etree._Element) -> bool:
    if local(element) not in ("li", "dd", "div", "p"):
        return False
    above = element.getparent()
    for _ in range(3):
        if above is None:
            return False
        if _kinds(above) & _NOTES:
            return True
        above = above.getparent()
    return False
