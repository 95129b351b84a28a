"""E-books: EPUB 2 and 3, in the order of the spine, with chapters and printed pages as the book names them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lxml import etree

from app.ingest.blocks import About, Block, Refused
from app.ingest.formats.markup import Marks, Walk, flat
from app.ingest.formats.package import Package, resolve
from app.ingest.formats.parse import attribute, local, parse_xhtml

_PAGES = ("application/xhtml+xml", "text/html", "image/svg+xml", "application/x-dtbook+xml", "text/x-oeb1-document")
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")  # harmless: only fonts are hidden so
Places = dict[str, dict[str, str]]  # member -> fragment ("" is its beginning) -> title or label


@dataclass
class _Book:
    """What the package says. `spine`: (member, whether it is read along)."""

    title: str = ""
    spine: list[tuple[str, bool]] = field(default_factory=list)
    nav: str | None = None
    ncx: str | None = None


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The documents of the spine; one that is not read along is a note.

    Raises:
        Refused: it is damaged, protected, or names no reading order.
    """
    package = Package(path)
    book = _open(package)
    _check_rights(package, {member for member, _ in book.spine})
    about.title, about.total = book.title, len(book.spine)
    chapters, pages = _contents(package, book)
    members = {member for member, _ in book.spine}
    listed = any(member in members for member in pages)
    headings = not any(member in members for member in chapters)
    for done, (member, linear) in enumerate(book.spine, start=1):
        about.done = done
        found = package.find(member)
        if found is None:
            about.skipped.append((member, "named in the reading order, but not in the file"))
            continue
        try:
            root = parse_xhtml(package.read(found))
        except (Refused, etree.XMLSyntaxError, ValueError) as error:
            about.skipped.append((member, str(error)))
            continue
        marks = Marks(chapters.get(member, {}), pages.get(member, {}), headings, own_pages=not listed)
        walk = Walk(root, marks, kind="" if linear else "notes")
        walk.begin(marks.chapters.get(""), marks.pages.get(""))
        yield from walk.read(_body(root))


def _body(root: etree._Element) -> etree._Element:
    return next((element for element in root.iter() if local(element) in ("body", "book")), root)


def _open(package: Package) -> _Book:
    container = package.xml("META-INF/container.xml")
    roots = [] if container is None else [e for e in container.iter() if local(e) == "rootfile"]
    place = next((attribute(e, "full-path") for e in roots if attribute(e, "full-path")), None)
    place = place or next((name for name in package.names if name.lower().endswith(".opf")), None)
    root = package.xml(place) if place else None
    if root is None:
        raise Refused("no e-book: it names no package file (META-INF/container.xml); download or export it again")
    items = {e.get("id"): e for e in root.iter() if local(e) == "item"}
    book = _Book(next((flat(e) for e in root.iter() if local(e) == "title" and flat(e)), ""))
    for entry in root.iter():
        item = _readable(items, items.get(entry.get("idref"))) if local(entry) == "itemref" else None
        if item is not None:
            member = resolve(place, item.get("href", ""))[0]
            book.spine.append((member, entry.get("linear", "yes") != "no"))
    if not book.spine:
        raise Refused("this e-book names no reading order (its spine is empty); export it again, or save it as PDF")
    for item in items.values():
        if "nav" in item.get("properties", "").split():
            book.nav = resolve(place, item.get("href", ""))[0]
        elif item.get("media-type") == "application/x-dtbncx+xml":
            book.ncx = resolve(place, item.get("href", ""))[0]
    return book


def _readable(items: dict[str, etree._Element], item: etree._Element | None) -> etree._Element | None:
    """An item of the spine, or the first of its fallbacks that is a page."""
    for _ in range(len(items)):
        if item is None or item.get("media-type", "").lower() in _PAGES:
            return item
        item = items.get(item.get("fallback"))
    return None


def _check_rights(package: Package, members: set[str]) -> None:
    """Raises Refused when what is to be read is encrypted."""
    root = package.xml("META-INF/encryption.xml")
    for entry in root.iter() if root is not None else ():
        if local(entry) != "encrypteddata":
            continue
        method = next((attribute(e, "algorithm") for e in entry.iter() if local(e) == "encryptionmethod"), "")
        target = next((attribute(e, "uri") for e in entry.iter() if local(e) == "cipherreference"), "")
        if method not in _FONTS and resolve("", target)[0] in members:
            raise Refused(
                "protected against copying (DRM): its text is encrypted and cannot be read; add an edition without it"
            )


def _contents(package: Package, book: _Book) -> tuple[Places, Places]:
    """Chapters and printed pages: of the navigation document, of the NCX where that has none."""
    chapters: Places = {}
    pages: Places = {}
    for member, read in ((book.nav, _read_nav), (book.ncx, _read_ncx)):
        if member is None or package.find(member) is None:
            continue
        try:
            found = read(parse_xhtml(package.read(member)), member)
        except (Refused, etree.XMLSyntaxError, ValueError):
            continue
        chapters, pages = chapters or found[0], pages or found[1]
    return chapters, pages


def _read_nav(root: etree._Element, member: str) -> tuple[Places, Places]:
    places: dict[str, Places] = {"toc": {}, "page-list": {}}
    for nav in root.iter():
        kinds = attribute(nav, "type").split() if local(nav) == "nav" else []
        for kind in places.keys() & set(kinds):
            for link in nav.iter():
                if local(link) == "a" and attribute(link, "href"):
                    _add(places[kind], resolve(member, attribute(link, "href")), flat(link))
    return places["toc"], places["page-list"]


def _read_ncx(root: etree._Element, member: str) -> tuple[Places, Places]:
    chapters: Places = {}
    pages: Places = {}
    for point in root.iter():
        if local(point) in ("navpoint", "pagetarget"):
            label = next((flat(e) for e in point if local(e) == "navlabel"), "")
            target = next((e.get("src", "") for e in point if local(e) == "content"), "")
            _add(
                chapters if local(point) == "navpoint" else pages,
                resolve(member, target),
                label or point.get("value", ""),
            )
    return chapters, pages


def _add(places: Places, target: tuple[str, str], title: str) -> None:
    """Where several begin at one place the last one, the finest, names it."""
    if title:
        places.setdefault(target[0], {})[target[1]] = title
