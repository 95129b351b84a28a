"""Write small PDFs by hand."""

from collections.abc import Sequence


def pdf_bytes(objects: Sequence[bytes]) -> bytes:
    """A PDF of numbered objects; the first is the catalog."""
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer\n<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + trailer


def stream(body: bytes, head: bytes = b"") -> bytes:
    return b"<</Length %d%s>>stream\n" % (len(body), head) + body + b"\nendstream"


def page_objects(contents: Sequence[bytes], resources: bytes = b"") -> list[bytes]:
    """Catalog, page tree, font (object 3), then a page and its content for each of `contents`."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(contents)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(contents)),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    for i, content in enumerate(contents):
        page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>%s>>>>"
        objects += [page % (5 + 2 * i, resources), stream(content)]
    return objects


def drawn(text: str) -> bytes:
    """The content of a page that shows lines of text."""
    shown = "".join(f"({line}) Tj 0 -14 Td " for line in text.split("\n"))
    return f"BT /F1 12 Tf 50 750 Td {shown}ET".encode("cp1252")
