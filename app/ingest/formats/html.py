"""Web pages: the main part where the page says which it is, else all but navigation."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from app.ingest.blocks import About, Block, Refused
from app.ingest.formats.markup import Walk, flat
from app.ingest.formats.parse import attribute, local, parse_html
from app.ingest.text import MAX_TEXT_BYTES, decode

LEAST_SHARE = 0.1  # of the page's text: a smaller main part is not the main part
_SECTIONS = {"article", "aside", "main", "section"}  # a header or footer of these is theirs, not the page's
_AROUND = ("banner", "contentinfo", "search", "complementary")


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The text of a saved page; headings begin chapters."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise Refused(f"larger than {MAX_TEXT_BYTES >> 20} MB, the most that can be read; split it")
    yield from page(path.read_bytes(), about)


def page(data: bytes, about: About) -> Iterator[Block]:
    """What `blocks` gives, of bytes."""
    if about.encoding:
        data = decode(data, "the page", encoding=about.encoding)[0].encode("utf-8-sig")
    root = parse_html(data)
    title = next((flat(element) for element in root.iter() if local(element) == "title"), "")
    about.title = about.title or title
    about.total, about.done = 1, 1
    walk = Walk(root)
    for element in main_parts(root):
        walk.read(element)
    yield from walk.blocks


def main_parts(root: etree._Element) -> list[etree._Element]:
    """The elements that hold what the page is about, in order; others than `main` lose what stands around it."""
    body = next((element for element in root.iter() if local(element) == "body"), root)
    whole = len(flat(body))
    for fits in (
        lambda element: local(element) == "main" or attribute(element, "role") == "main",
        lambda element: local(element) == "article",
    ):
        found = [element for element in body.iter() if fits(element)]
        inner = set(found)
        outer = [element for element in found if not any(above in inner for above in element.iterancestors())]
        if outer and sum(len(flat(element)) for element in outer) >= LEAST_SHARE * whole:
            return outer
    for element in list(body.iter()):
        above = {local(outer) for outer in element.iterancestors()} if local(element) in ("header", "footer") else None
        if attribute(element, "role") in _AROUND or above is not None and not above & _SECTIONS:
            _drop(element)
    return [body]


def _drop(element: etree._Element) -> None:
    """Take an element out, not the text after it."""
    above, before = element.getparent(), element.getprevious()
    if above is None:
        return
    if element.tail and before is not None:
        before.tail = (before.tail or "") + element.tail
    elif element.tail:
        above.text = (above.text or "") + element.tail
    above.remove(element)
