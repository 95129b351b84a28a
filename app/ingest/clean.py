"""Clean the text that comes out of a PDF: characters, line-end hyphens, brackets of right-to-left lines."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

SOFT_HYPHEN = "\ufffe"  # pdfium writes it where a line ended in a hyphen, and joins the halves

# NFKC would turn 10² into 102, 2½ into 21⁄2, a lone accent into a space, and Korean letters into other ones.
_NOT_NFKC = re.compile(
    "([\u00a8\u00af\u00b2\u00b3\u00b4\u00b8\u00b9\u00bc-\u00be\u02d8-\u02dd\u2070-\u209c\u2150-\u215f"
    "\u2189\u3131-\u318e]+)"
)
# Control, zero-width and direction characters; noncharacters; halves of surrogate pairs.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\uffff\ud800-\udfff]"
)
_BULLETS = str.maketrans({"\uf0b7": "•", "\uf0a7": "▪", "\uf0d8": "➢", "\uf0fc": "✓"})  # Symbol and Wingdings

# What stands where a font gives no Unicode: control or private characters, pypdf's glyph names ("/g12/g7/g31").
_UNMAPPED = re.compile("[\x00-\x08\x0e-\x1f\ufffd\ue000-\uf8ff]|(?:/[A-Za-z]{1,3}[0-9]{1,5}){3,}")
NOISE_SHARE = 0.3  # of a line's characters: above it the line says nothing

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_BROKEN = re.compile(rf"([\w'’-]{{1,40}})(?: ?{SOFT_HYPHEN} *\n?|[-‐\u00ad] *\n) *(\w*)")  # bounded: linear time

_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_OPEN, _CLOSE = "([{", ")]}"
_MIRROR = str.maketrans(_OPEN + _CLOSE, _CLOSE + _OPEN)


def unmapped(text: str) -> int:
    """Count the characters that stand for glyphs without a Unicode value."""
    return sum(len(match) for match in _UNMAPPED.findall(text))


def clean_pages(raw: Sequence[str]) -> tuple[list[str], list[int]]:
    """Clean the pages of one document together, because its own words tell how to mend broken ones.

    Returns:
        The cleaned pages, and the indexes of pages where lines without Unicode values were left out.
    """
    pages, noisy = [], []
    for index, text in enumerate(raw):
        lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").split("\n")
        kept = [line for line in lines if unmapped(line.translate(_BULLETS)) <= max(2, NOISE_SHARE * len(line))]
        if len(kept) < len(lines):
            noisy.append(index)
        pages.append("\n".join(_mirror_brackets(line) for line in kept))
    words = _count_words(pages)
    return [_tidy(_BROKEN.sub(lambda broken: _mend(broken, words), page)) for page in pages], noisy


def normalise(text: str) -> str:
    """NFKC where it only changes the form of a letter, never where it would change a number's value."""
    if unicodedata.is_normalized("NFKC", text):
        return text
    pieces = _NOT_NFKC.split(text)
    return "".join(piece if i % 2 else unicodedata.normalize("NFKC", piece) for i, piece in enumerate(pieces))


def visible(text: str) -> str:
    """The text without control, zero-width and direction characters."""
    return _INVISIBLE.sub("", text)


def clean_line(text: str) -> str:
    """A label or title on one line, without invisible characters."""
    return " ".join(_INVISIBLE.sub("", normalise(text)).split())


def _tidy(page: str) -> str:
    text = _INVISIBLE.sub("", normalise(page.replace(SOFT_HYPHEN, "-").translate(_BULLETS)))
    lines = (re.sub(r"(?<=\S)[ \t]{2,}", " ", line.rstrip()) for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _count_words(pages: Sequence[str]) -> Counter[str]:
    """How often each whole word stands in the document; halves of broken words do not count."""
    words: Counter[str] = Counter()
    if any(_BROKEN.search(page) for page in pages):
        for page in pages:
            words.update(word.lower() for word in _WORD.findall(_BROKEN.sub(" ", page)))
    return words


def _mend(broken: re.Match[str], words: Counter[str]) -> str:
    """Join a word that was broken at a line end, or keep its hyphen where the document writes it with one."""
    left, right = broken.groups()
    joined, hyphened = (left + right).lower(), f"{left}-{right}".lower()
    capitalised = right[:1].isupper() and not (left.isupper() and right.isupper())
    if capitalised or not right[:1].isalpha():
        is_name = right and (words[hyphened] or left[0].isupper() or left[-1].isdigit())  # Jean-Paul, 747-8
        return f"{left}-{right}" if is_name else f"{left}-\n{right}"
    if words[joined] or words[hyphened]:
        return left + ("-" if words[hyphened] > words[joined] else "") + right
    both_words = len(left) > 2 and len(right) > 3 and words[left.lower()] and words[right.lower()]
    return left + ("-" if both_words else "") + right


def _balanced(line: str) -> bool:
    waiting = []
    for char in line:
        if char in _OPEN:
            waiting.append(_CLOSE[_OPEN.index(char)])
        elif char in _CLOSE and (not waiting or waiting.pop() != char):
            return False
    return not waiting


def _mirror_brackets(line: str) -> str:
    """Turn brackets round in a right-to-left line that was put in logical order without mirroring them."""
    if _RTL.search(line) and not _balanced(line) and _balanced(line.translate(_MIRROR)):
        return line.translate(_MIRROR)
    return line
