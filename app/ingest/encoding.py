"""Bytes to text: find the encoding, decode piece by piece, take out what no reader sees."""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from app.errors import CancelledError, ConfigError, InputError
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
_CANDIDATES = """
    utf-8 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp874 iso8859-1 iso8859-2 iso8859-5 iso8859-6
    iso8859-7 iso8859-8 iso8859-9 iso8859-15 koi8-r koi8-u cp437 cp737 cp850 cp852 cp857 cp862 cp866 mac-roman mac-greek
    mac-cyrillic mac-latin2 mac-turkish shift_jis cp932 euc-jp iso2022-jp-2 euc-kr cp949 gb18030 big5
    """.split()
_MULTIBYTE = set(
    """cp932 cp949 shift_jis shift_jis_2004 euc_jp euc_jis_2004 euc-jp euc_kr gb18030 big5 big5hkscs
    iso2022_jp_2 johab""".split()
)
_WIDER = {"iso8859-1": "cp1252", "iso8859-9": "cp1254"}  # what files that claim the one are written in
_WINDOWS = {
    "iso8859-2": "cp1250", "iso8859-6": "cp1256", "iso8859-7": "cp1253", "iso8859-8": "cp1255", "iso8859-15": "cp1252",
}  # fmt: skip
_NAMES = {
    "cp1250": "windows-1250, Central European", "cp1251": "windows-1251, Cyrillic",
    "cp1252": "windows-1252, Western European", "cp1253": "windows-1253, Greek", "cp1254": "windows-1254, Turkish",
    "cp1255": "windows-1255, Hebrew", "cp1256": "windows-1256, Arabic", "cp1257": "windows-1257, Baltic",
    "cp1258": "windows-1258, Vietnamese", "cp437": "DOS", "cp737": "DOS, Greek", "cp850": "DOS, Western European",
    "cp852": "DOS, Central European", "cp857": "DOS, Turkish", "cp862": "DOS, Hebrew", "cp866": "DOS, Cyrillic",
    "cp932": "Shift JIS", "shift_jis_2004": "Shift JIS",
}  # fmt: skip
_WESTERN = "cp1252"
_SAMPLE_BYTES = 64 << 10
_AROUND_BYTES = 200  # kept beside a byte that is not ASCII, when few are
_RARE = 100  # a byte is rare that is less than one in so many of those beyond ASCII
_FEW = 12  # bytes beyond ASCII that a choice can be made from
_CLEARLY = 1.05  # by how much it must be better than the next, where there are less than _MANY
_MANY = 30
_UNREADABLE = 0.01  # share of the bytes beyond ASCII: with more a choice was wrong
_HIGH = re.compile(rb"[\x80-\xff]+")
_C1 = re.compile(rb"[\x80-\x9f]")  # control characters in ISO encodings, which no text holds
_ASCII, _HIGH_BYTES = bytes(range(128)), bytes(range(128, 256))
_NOT_TEXT = bytes(set(range(32)) - set(b"\t\n\f\r\x1b"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]+")
_BLANKS = re.compile(rf"(?<!\s)\s{{{MOST_BLANKS + 1},}}")


def is_binary(data: bytes) -> bool:
    """True when the first 8 KB hold a NUL, or more control characters than any text has; UTF-16 is none."""
    head = data[:8192]
    if head.startswith(tuple(mark for mark, _ in _BOMS[1:])):
        return False
    if b"\0" in head:
        return _unmarked(data) is None
    return len(head) - len(head.translate(None, _NOT_TEXT)) > 0.02 * len(head)


def is_utf8(data: bytes) -> bool:
    """True when every byte is valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_encoding(name: str) -> str:
    """The name that Python has for an encoding that a user chose.

    Raises:
        ConfigError: there is none of this name.
    """
    try:
        found = codecs.lookup(name)
        codecs.getincrementaldecoder(found.name)("replace").decode(b"a", True).encode()  # not one from bytes to bytes
    except (LookupError, ValueError, AttributeError, TypeError, AssertionError) as error:  # some codecs assert
        raise ConfigError(f"encoding {name!r}: not known; give one such as utf-8, cp1251 or shift_jis") from error
    return found.name


def decode(
    data: bytes, name: str, *, encoding: str | None = None, cancelled: Cancelled = never
) -> tuple[str, str | None]:
    """Bytes to text with plain line ends, no control characters and no endless runs of blanks.

    Args:
        encoding: that the user chose; None finds it.

    Returns:
        The text, and a note for the user when the encoding had to be guessed, or something was left out.

    Raises:
        InputError: the bytes are no text.
        ConfigError: `encoding` is not known.
        CancelledError: `cancelled` said so.
    """
    if encoding is None and is_binary(data):
        raise InputError(f"{name}: a binary file, not text (it holds control bytes); add the text or PDF it came from")
    if encoding is None:
        start, encoding, note = _find(data, cancelled)
    else:
        start, encoding, note = 0, check_encoding(encoding), None
    notes = [note] if note else []
    pieces, shortened, wrong = [], False, 0
    for piece, cut in _clean(_decoded(data, start, encoding, cancelled)):
        pieces.append(piece)
        shortened = shortened or cut
        wrong += piece.count("\ufffd")
    if wrong and not (start or encoding == "utf-8" and note is None):
        notes.append(f"{wrong} bytes or places mean nothing in this encoding and show as \ufffd")
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
    if b"\x1b$" in data[:_SAMPLE_BYTES] and not high:  # Japanese mail: ASCII bytes that switch to other letters
        return 0, *_guess(data)
    if unmarked := _unmarked(data):
        return 0, unmarked, f"no mark of its encoding: read as {unmarked}"
    if not wrong:
        return 0, "utf-8", None
    if wrong * 20 < high:
        return 0, "utf-8", f"{wrong} places are not valid UTF-8"
    return 0, *_guess(data)


def _unmarked(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: the one under which the beginning is plain text, blanks and all."""
    head = data[:8192]
    if b"\0" not in head:
        return None
    best, most = None, 0
    for encoding, width in (("utf-32-le", 4), ("utf-32-be", 4), ("utf-16-le", 2), ("utf-16-be", 2)):
        cut = len(head) - len(head) % width
        try:
            text = codecs.getincrementaldecoder(encoding)("strict").decode(head[:cut])
        except UnicodeDecodeError:
            continue
        blanks = sum(text.count(blank) for blank in " \n\t\u3000、。")
        odd = sum(unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") and char not in "\t\n\r\f" for char in text)
        if odd == 0 and blanks * 50 >= len(text) and blanks > most:
            best, most = encoding, blanks
    return best


def _guess(data: bytes) -> tuple[str, str]:
    """(encoding, note) of a text that is not UTF-8."""
    sample, high = _sample(data), len(data) - len(data.translate(None, _HIGH_BYTES))
    ranking = _ranking(sample)
    best = ranking[0][0] if ranking else ""
    if _C1.search(sample):
        best = _WINDOWS.get(best, best)
    if best and (not high or _is_supported(ranking, sample, high)) and _fits(sample, best):
        return best, f"not UTF-8: read as {_named(best)}"
    if _fits(sample, _WESTERN) and (best == _WESTERN or b"\x81" not in sample):
        unsure = "" if best == _WESTERN and high > 2 else "encoding unknown: "
        wrong = ", so some letters may be wrong; another one can be chosen" if unsure else ""
        return _WESTERN, f"{unsure or 'not UTF-8: '}read as {_named(_WESTERN)}{wrong}"
    return "latin-1", "encoding unknown: read as latin-1, so some letters may be wrong; another one can be chosen"


def _sample(data: bytes) -> bytes:
    """The beginning, or where few bytes there are beyond ASCII what stands around those of the whole text."""
    head = data[:_SAMPLE_BYTES]
    if len(head) == len(data) or len(head) - len(head.translate(None, _HIGH_BYTES)) > _SAMPLE_BYTES // 100:
        return head.rpartition(b"\n")[0] or head
    found, size, end = [], 0, 0
    for match in _HIGH.finditer(data):
        if match.start() >= end:
            start = max(end, data.rfind(b" ", max(0, match.start() - _AROUND_BYTES), match.start()) + 1)
            end = data.find(b" ", match.end(), match.end() + _AROUND_BYTES) + 1 or match.end()
            found.append(data[start:end])
            size += end - start
        if size > _SAMPLE_BYTES:
            break
    return b" ".join(found)


def _ranking(sample: bytes) -> list[tuple[str, float]]:
    """Encodings that the sample may be in and how well each fits, best first.

    One stray byte keeps the right encoding out, so the sample is also looked at without its rarest bytes.
    """
    whole = _fit(sample)
    ranking = sorted(whole.items(), key=lambda item: (-item[1], item[0] != _WESTERN))
    if ranking and ranking[0][0] in _MULTIBYTE:
        return ranking  # their bytes mean nothing one by one
    counts = Counter(sample.translate(None, _ASCII))
    rare = bytes(byte for byte, count in counts.items() if count * _RARE <= counts.total())
    fits = _fit(sample.translate(None, rare)) if rare else {}
    best = max(fits, key=fits.__getitem__, default="")
    if not best or best in whole or (ranking and fits[best] <= fits.get(ranking[0][0], 0.0)):
        return ranking
    return sorted(fits.items(), key=lambda item: -item[1])


def _fit(sample: bytes) -> dict[str, float]:
    """How well each encoding fits that some bytes are valid in, best first."""
    from chardet import detect_all

    fits: dict[str, float] = {}
    for found in detect_all(sample, include_encodings=_CANDIDATES, compat_names=False):
        encoding = _WIDER.get(found["encoding"], found["encoding"])
        if encoding:
            fits[encoding] = max(found["confidence"], fits.get(encoding, 0.0))
    return fits


def _is_supported(ranking: list[tuple[str, float]], sample: bytes, high: int) -> bool:
    """Whether there is enough to choose from: many letters, or one encoding clearly better than each other reading."""
    if high >= _MANY:
        return True
    text = sample.decode(ranking[0][0], "replace")
    others = [score for name, score in ranking[1:] if sample.decode(name, "replace") != text]
    return high >= _FEW and (not others or ranking[0][1] >= _CLEARLY * others[0])


def _fits(sample: bytes, encoding: str) -> bool:
    """Whether nearly every byte means something."""
    wrong = sample.decode(encoding, "replace").count("\ufffd")
    return wrong <= max(1, _UNREADABLE * (len(sample) - len(sample.translate(None, _HIGH_BYTES))))


def _named(encoding: str) -> str:
    return f"{encoding} ({_NAMES[encoding]})" if encoding in _NAMES else encoding
