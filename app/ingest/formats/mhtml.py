"""Saved web pages in one file (MHTML): every page in it, frames too, each as HTML."""

import email
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from app.ingest.blocks import About, Block, Refused
from app.ingest.formats import html
from app.ingest.text import MAX_TEXT_BYTES


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The pages of the file in order; pictures, styles and scripts in it are not read.

    Raises:
        Refused: no page is in it.
    """
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise Refused(
            f"larger than {MAX_TEXT_BYTES >> 20} MB, the most that can be read; save the page without pictures"
        )
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    pages = [part for part in message.walk() if part.get_content_type() in ("text/html", "application/xhtml+xml")]
    if not pages:
        raise Refused("no web page in it, only other parts; save the page again from the browser")
    for part in pages:
        yield from html.page(_bytes(part), about)


def _bytes(part: EmailMessage) -> bytes:
    """The page's bytes in UTF-8, whatever the part declares."""
    data = part.get_payload(decode=True) or b""
    charset = part.get_content_charset()
    if charset:
        try:
            data = data.decode(charset, "replace").encode()
            data = b'<meta charset="utf-8">' + data
        except LookupError:
            pass
    return data.replace(b"\r\n", b"\n")
