"""What the tests of formats share: words and labels of a document, pieces of an EPUB."""

import re

from app.ingest import spans
from app.records import Document

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""


def words(document: Document) -> list[str]:
    """Every word that was read, in order."""
    return re.findall(r"\w+", "\n".join(part.text for part in document.parts))


def label_of(document: Document, word: str) -> str:
    """The label that a citation of a word gets; the word must be there once."""
    found = [(part, match.start()) for part in document.parts for match in re.finditer(rf"\b{word}\b", part.text)]
    assert len(found) == 1, f"{word}: {len(found)} times"
    part, start = found[0]
    return spans.label(part, start, start + len(word))


def itemref(name: str) -> str:
    """An entry of the spine; "-" before the name says that it is not read along."""
    linear = ' linear="no"' if name.startswith("-") else ""
    return f'<itemref idref="{name.lstrip("-")}"{linear}/>'


def page(body: str) -> str:
    """An XHTML document."""
    return (
        '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml" '
        f'xmlns:epub="http://www.idpf.org/2007/ops"><head><title/><script src="x.js"/></head><body>{body}</body></html>'
    )
