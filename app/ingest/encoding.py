"""Bytes to text: find the encoding, decode piece by piece, take out what no reader sees."""

import codecs
import re
from collections.abc import Iterator
from contextlib import suppress

from app.errors import CancelledError, InputError
from app.ingest.files import Cancelled, never

MOST_BLANKS = 1_000  # in a row; more say nothing to a reader and cost as many tokens
_PIECE_BYTES = 1 << 20  # decoded at a time, so that a cancel is seen soon and one odd letter widens no more than that
_BOMS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ENCODINGS = ["cp1252", "cp1251", "shift_jis", "gb18030", "big5", "euc_kr"]
_SAMPLE_BYTES = 256 << 10
_HIGH = re.compile(rb"[\x80-\xff]+")
_HIGH_RUN = re.compile(rb"[\x80-\xff]{2,}")  # accents stand alone among ASCII letters, other scripts run on
_NOT_TEXT = bytes(set(range(32)) - set(b"\t\n\f\r\x1b"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]+")
_BLANKS = re.compile(rf"(?<!\s)\s{{{MOST_BLANKS + 1},}}")


def is_binary(data: bytes) -> bool:
    """True when the first 8 KB hold a NUL, or more control characters than any text has."""
    head = data[:8192]
    if head.startswith(tuple(mark for mark, _ in _BOMS[1:])):
        return False
    return b"\0" in head or len(head) - len(head.translate(None, _NOT_TEXT)) > 0.02 * len(head)


def decode(data: bytes, name: str, *, cancelled: Cancelled = never) -> tuple[str, str | None]:
    """Bytes to text with plain line ends, no control characters and no endless runs of blanks.

    Returns:
        The text, and a note for the user when the encoding had to be guessed or blanks were left out.

    Raises:
        InputError: the bytes are no text.
        CancelledError: `cancelled` said so.
    """
    if is_binary(data):
        raise InputError(f"{name}: a binary file, not text (it holds control bytes); add the text or PDF it came from")
    start, encoding, note = _find(data, cancelled)
    notes = [note] if note else []
    pieces, shortened = [], False
    for piece, cut in _clean(_decoded(data, start, encoding, cancelled)):
        pieces.append(piece)
        shortened = shortened or cut
    if shortened:
        notes.append(f"runs of more than {MOST_BLANKS:,} blanks were shortened; line numbers after them are too small")
    return "".join(pieces), "; ".join(notes) or None


def _decoded(data: bytes, start: int, encoding: str, cancelled: Cancelled) -> Iterator[str]:
    """The text of the bytes from `start` on, piece by piece, wrong bytes as U+FFFD."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for at in range(start, len(data), _PIECE_BYTES):
        if cancelled():
            raise CancelledError("decoding the text was cancelled")
        yield decoder.decode(data[at : at + _PIECE_BYTES])
    yield decoder.decode(b"", final=True)


def _clean(pieces: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Pieces with plain line ends, without control characters; and whether blanks were left out."""
    waiting = ""  # blanks at the end of a piece may go on in the next
    for piece in pieces:
        piece = waiting + piece
        ending = "\r" if piece.endswith("\r") else ""
        piece = _CONTROL.sub("", piece.removesuffix(ending).replace("\r\n", "\n").replace("\r", "\n"))
        piece, cut = _shorten(piece)
        kept = piece.rstrip()
        waiting = piece[len(kept) :] + ending
        yield kept, cut
    yield waiting.replace("\r", "\n"), False


def _shorten(text: str) -> tuple[str, bool]:
    """The text with runs of more than MOST_BLANKS blanks cut in their middle, and whether there were any."""
    half = MOST_BLANKS // 2
    if not any(text[at : at + half].isspace() for at in range(0, len(text), half)):
        return text, False  # a longer run would hold one of these places whole
    text, count = _BLANKS.subn(lambda run: run[0][:half] + run[0][-half:], text)
    return text, count > 0


def _find(data: bytes, cancelled: Cancelled) -> tuple[int, str, str | None]:
    """(bytes of the mark, encoding, note for the user when it had to be guessed)."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return len(mark), encoding, None
    wrong = high = 0
    for piece in _decoded(data, 0, "utf-8", cancelled):
        wrong += piece.count("\ufffd")
        high += len(piece) - len(piece.encode("ascii", "ignore"))
    wrong -= data.count("\ufffd".encode())
    if not wrong:
        return 0, "utf-8", None
    if wrong * 20 < high:
        return 0, "utf-8", f"{wrong} places are not valid UTF-8 and show as \ufffd"
    return 0, *_guess(data)


def _guess(data: bytes) -> tuple[str, str]:
    """Only common encodings are tried: unrestricted, the detector prefers exotic relatives of them."""
    from charset_normalizer import from_bytes

    if len(_HIGH_RUN.findall(data)) * 10 < len(_HIGH.findall(data)):
        with suppress(UnicodeDecodeError):
            data.decode("cp1252")
            return "cp1252", "not UTF-8: read as cp1252"
    best = from_bytes(data[:_SAMPLE_BYTES].rpartition(b"\n")[0] or data[:_SAMPLE_BYTES], cp_isolation=_ENCODINGS).best()
    if best is not None:
        with suppress(UnicodeDecodeError):
            data.decode(best.encoding)
            return best.encoding, f"not UTF-8: read as {best.encoding}"
    return "latin-1", "encoding unknown: read as latin-1, so some letters may be wrong"
