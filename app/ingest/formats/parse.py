"""XML and HTML to trees, without what makes parsers dangerous: nothing is fetched, no entity grows."""

import codecs
import re
from html import escape
from html.entities import html5

from lxml import etree

from app.ingest.text import decode

LONGEST_ENTITY = 100  # characters that one name may stand for
MAX_NODES = 5_000_000

_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_CLOSED = re.compile(
    r"<(script|style|title|textarea|iframe|a|b|i|em|strong|span|div|p|td|th)\b([^<>]*?)/>", re.IGNORECASE
)
_VOID = re.compile(r"</?(?:wbr|source|track|embed|keygen)\b[^<>]*>", re.IGNORECASE)  # the parser puts what follows in
_META = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\s*<\?xml[^>]*encoding\s*=\s*[\"']([\w.:-]+)")
_BOM = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def parse_xml(data: bytes) -> etree._Element:
    """The root of an XML document.

    Raises:
        etree.XMLSyntaxError: it is not well-formed, nested deeper than 256, or holds a text of more than 10 MB.
    """
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, remove_pis=True, remove_comments=True
    )
    root = etree.fromstring(data, parser)
    _resolve_entities(root)
    return root


def parse_xhtml(data: bytes) -> etree._Element:
    """The root of an XHTML document; one that is not well-formed is read as HTML, its CDATA kept."""
    try:
        return parse_xml(data)
    except etree.XMLSyntaxError:
        text = _CDATA.sub(lambda found: escape(found[1]), _text(data))
        return parse_html(_CLOSED.sub(r"<\1\2></\1>", text).encode())


def parse_html(data: bytes) -> etree._Element:
    """The root of an HTML document, whatever is wrong with it."""
    text = _VOID.sub("", _DECLARATION.sub("", _text(data).replace("\0", ""), count=1))
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, no_network=True, remove_pis=True, remove_comments=True)
    root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    if root is None:
        raise ValueError("there is no element in it")
    return root


def local(element: etree._Element) -> str:
    """The name of an element without its namespace, in lower case; "" for what is no element."""
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def attribute(element: etree._Element, name: str) -> str:
    """An attribute's value, whatever its namespace; "" for none. `name` is in lower case."""
    if (value := element.get(name)) is not None:
        return value
    for key, value in element.attrib.items():
        if key.rpartition("}")[2].rpartition(":")[2].lower() == name:
            return value
    return ""


def _text(data: bytes) -> str:
    """What a page's bytes say, by their mark, what the page declares, or as a text's bytes are read."""
    declared = _META.search(data[:4096]) or _XML_ENCODING.match(data)
    if declared and not data.startswith(_BOM):
        name = declared[1].decode("ascii").lower()
        name = "cp1252" if name in ("iso-8859-1", "latin1", "us-ascii", "ascii", "latin-1") else name
        try:
            if not codecs.lookup(name).name.startswith(("utf-16", "utf-32")):  # else the mark could not be read
                return data.decode(name, "strict" if name in ("utf-8", "utf8") else "replace")
        except (LookupError, UnicodeDecodeError):
            pass
    return decode(data, "the page")[0]


def _resolve_entities(root: etree._Element) -> None:
    """Put what entities stand for in their place: those of HTML, and short ones that the document declares."""
    names: dict[str, str] | None = None
    for node in list(root.iter(etree.Entity)):
        names = _declared(root) if names is None else names
        name = node.name
        text = names.get(name) or html5.get(f"{name};") or ""
        text = _character(name) if name.startswith("#") else text
        _replace(node, text)


def _character(name: str) -> str:
    try:
        return chr(int(name[2:], 16) if name[1:2] in "xX" else int(name[1:]))
    except (ValueError, OverflowError):
        return ""


def _declared(root: etree._Element) -> dict[str, str]:
    found = {}
    dtd = root.getroottree().docinfo.internalDTD
    for entity in dtd.iterentities() if dtd is not None else ():
        content = entity.content or ""
        if len(content) <= LONGEST_ENTITY and "&" not in content and "<" not in content:
            found[entity.name] = content
    return found


def _replace(node: etree._Element, text: str) -> None:
    """Take a node out of its tree; its text and tail go where it stood."""
    parent, before = node.getparent(), node.getprevious()
    text += node.tail or ""
    node.tail = None
    if before is not None:
        before.tail = (before.tail or "") + text
    else:
        parent.text = (parent.text or "") + text
    parent.remove(node)
