"""Rich Text Format: paragraphs, tables, list numbers and notes; what Word would not show is left out."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.ingest.blocks import About, Block, Refused
from app.ingest.text import MAX_TEXT_BYTES

DEEPEST = 2_000  # groups in groups

_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})?[ ]?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z'])|([{}])|([^\\{}\r\n]+)|[\r\n]+|\\'"
)
_CHARACTERS = {
    "par": "\n", "line": "\n", "lbr": "\n", "tab": "\t", "emdash": "—", "endash": "–", "lquote": "‘", "rquote": "’",
    "ldblquote": "“", "rdblquote": "”", "bullet": "•", "emspace": " ", "enspace": " ", "qmspace": " ", "nestcell": " ",
    "nestrow": "\n", "zwj": "\u200d", "zwnj": "\u200c",
}  # fmt: skip
_SYMBOLS = {b"~": " ", b"_": "-", b"-": "", b"\\": "\\", b"{": "{", b"}": "}", b"\n": "\n", b"\r": "\n", b"\t": "\t"}
_UNREAD = frozenset(
    """colortbl info pict header headerl headerr headerf footer footerl footerr footerf fldinst annotation atnid
    atnauthor atndate atnref objdata objclass objname listtable listoverridetable revtbl rsidtbl themedata
    colorschememapping datastore latentstyles xmlnstbl generator bkmkstart bkmkend datafield formfield sp shprslt
    nonshppict xe tc rxe
    pnseclvl pn background docvar filetbl template mmathPict userprops ftnsep ftnsepc ftncn aftnsep aftnsepc aftncn
    wgrffmtfilter falt panose pgptbl listname listpicture oldcprops oldpprops oldtprops oldsprops""".split()
)
_KEPT = frozenset("shpinst shptxt moMath moMathPara mmath ud fldrslt listtext pntext footnote shppict".split())
_PAGES = {  # character sets of fonts
    0: "cp1252", 2: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gb18030", 136: "cp950",
    161: "cp1253", 162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251",
    222: "cp874", 238: "cp1250", 254: "cp437", 255: "cp850",
}  # fmt: skip


@dataclass
class _State:
    """What a group inherits from the one around it."""

    target: str = "text"  # text, fonts, styles, note, box or none
    encoding: str | None = None
    skip: int = 1  # characters after \\u that are its form for old readers
    hidden: bool = False
    deleted: bool = False
    has_twin: bool = False  # its first group is the form for old readers of what the next says in Unicode


@dataclass
class _Paragraph:
    """A paragraph that is being read, or the text of a note or box."""

    text: list[str] = field(default_factory=list)
    level: int = 0
    style: int = 0
    in_table: bool = False
    listed: bool = False


def blocks(path: Path, about: About) -> Iterator[Block]:
    """The paragraphs and table rows of a file.

    Raises:
        Refused: it is no RTF, too large, or cut off before any text.
    """
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise Refused(f"larger than {MAX_TEXT_BYTES >> 20} MB, the most that can be read; save it without pictures")
    data = path.read_bytes()
    if not data.lstrip().startswith(b"{\\rtf"):
        raise Refused(f"no RTF, it starts with {data[:8]!r} instead of {{\\rtf; check what the file is")
    reader = _Reader()
    yield from reader.read(data, about)
    if reader.open_groups:
        about.notes.append("the file is cut off; what was there was read")
    if reader.comments:
        about.notes.append(f"{reader.comments:,} comments are not read")


class _Reader:
    """Reads tokens one by one.

    Attributes:
        open_groups: groups that never ended.
        comments: annotations that were left out.
    """

    def __init__(self) -> None:
        self.open_groups, self.comments = 0, 0
        self._state, self._stack = _State(), []
        self._page = "cp1252"
        self._fonts: dict[int, str] = {}
        self._font = 0
        self._styles: dict[int, int] = {}
        self._style_name: list[str] = []
        self._style = (0, 0)  # number and level of the one that is being defined
        self._bytes = bytearray()
        self._to_skip = 0
        self._starred = False
        self._now = _Paragraph()
        self._outer: list[_Paragraph] = []
        self._after: list[Block] = []  # notes and boxes of the open paragraph
        self._cells: list[str] = []
        self._notes = 0
        self._row_before = self._list_before = False

    def read(self, data: bytes, about: About) -> Iterator[Block]:
        """Every block in order."""
        at, about.total = 0, len(data)
        while at < len(data):
            found = _TOKEN.match(data, at)
            if found is None:
                at += 1
                continue
            at = found.end()
            about.done = at
            word, number, code, symbol, brace, text = found.groups()
            if code is not None:
                self._byte(int(code, 16))
                continue
            if text is not None:
                self._plain(text)
                continue
            if symbol == b"*":
                self._starred = True
                continue
            self._flush_bytes()
            if brace == b"{":
                self._open()
            elif brace == b"}":
                self._close()
            elif symbol is not None:
                self._put(_SYMBOLS.get(symbol, ""))
            elif word == b"bin":
                at += max(0, int(number or 0))
            elif word is not None:
                yield from self._word(word.decode("ascii"), None if number is None else int(number))
        self._flush_bytes()
        self.open_groups = len(self._stack)
        yield from self._end_paragraph()
        yield from self._end_row()

    def _open(self) -> None:
        self._stack.append(self._state)
        if len(self._stack) > DEEPEST:
            raise Refused(f"groups in it are nested more than {DEEPEST:,} deep; save it again where it was made")
        twin = self._state.has_twin
        self._state, self._starred = replace(self._state, has_twin=False), False
        if twin:
            self._state.target = "none"

    def _close(self) -> None:
        before = self._state
        if self._stack:
            self._state = self._stack.pop()
        if before.target != self._state.target and before.target in ("note", "box") and self._outer:
            text = "".join(self._now.text).strip()
            self._now = self._outer.pop()
            label = str(self._notes)
            if before.target == "note" and text:
                text = f"[{label}] " + " ".join(text.removeprefix(label).split())
            if text:
                self._after.append(Block(text, counted=False, joined=before.target == "note"))
        if before.target == "styles" and self._state.target == "styles":
            name = "".join(self._style_name).strip(" ;").lower()
            number, level = self._style
            digits = name.removeprefix("heading ")
            self._styles[number] = level or (int(digits) if name.startswith("heading ") and digits.isdecimal() else 0)
            self._style_name = []

    def _word(self, word: str, number: int | None) -> Iterator[Block]:
        starred, self._starred = self._starred, False
        state = self._state
        if word == "ud" and self._stack and self._stack[-1].has_twin:
            state.target = self._stack[-1].target
        if state.target == "none":
            return
        if word in _UNREAD or starred and word not in _KEPT:
            self.comments += word == "annotation"
            state.target = "none"
        elif word == "fonttbl":
            state.target = "fonts"
        elif word == "stylesheet":
            state.target = "styles"
        elif word == "upr":
            state.has_twin = True
        elif word in ("footnote", "shptxt", "dptxbxtext"):
            self._begin_inner("note" if word == "footnote" else "box")
        elif word in ("u", "uc"):
            self._unicode(word, number)
        elif word in ("v", "deleted"):
            setattr(state, "hidden" if word == "v" else "deleted", number != 0)
        elif word == "plain":
            state.hidden = state.deleted = False
        elif word in ("ansicpg", "mac", "pc", "pca"):
            pages = {"mac": "mac_roman", "pc": "cp437", "pca": "cp850"}
            self._page = pages.get(word) or _known(f"cp{number}") or self._page
        elif word in ("f", "fcharset", "cpg"):
            self._set_font(word, number or 0)
        else:
            yield from self._layout(word, number)

    def _layout(self, word: str, number: int | None) -> Iterator[Block]:
        now = self._now
        if self._state.target == "styles":
            if word in ("s", "cs", "ds", "ts"):
                self._style = (number or 0 if word == "s" else -1, 0)
            elif word == "outlinelevel":
                self._style = (self._style[0], (number or 0) + 1)
        elif word == "pard":
            now.level = now.style = 0
            now.in_table = now.listed = False
        elif word == "s":
            now.style = number or 0
        elif word == "outlinelevel":
            now.level = (number or 0) + 1 if (number or 0) < 9 else 0
        elif word == "intbl":
            now.in_table = True
        elif word in ("listtext", "pntext", "ls"):
            now.listed = True
        elif word == "chftn":
            self._put(f"[{self._notes + 1}]" if self._state.target == "text" else str(self._notes))
        elif word in ("cell", "row"):
            self._cells += ["".join(now.text)] if word == "cell" else []
            now.text = [] if word == "cell" else now.text
            if word == "row":
                yield from self._end_row()
        elif word in ("par", "sect", "page") and not self._outer:
            if now.in_table:
                self._put(" ")
            else:
                yield from self._end_paragraph()
        elif word in _CHARACTERS:
            self._put(_CHARACTERS[word])

    def _begin_inner(self, target: str) -> None:
        self._notes += target == "note"
        self._state.target = target
        self._outer.append(self._now)
        self._now = _Paragraph()

    def _set_font(self, word: str, number: int) -> None:
        if word == "f":
            self._font = number
            if self._state.target != "fonts":
                self._state.encoding = self._fonts.get(number)
        elif self._state.target == "fonts":
            page = _PAGES.get(number) if word == "fcharset" else _known(f"cp{number}")
            if page and not (word == "fcharset" and number in (0, 1)):  # these mean the page of the file
                self._fonts[self._font] = page

    def _unicode(self, word: str, number: int | None) -> None:
        if word == "uc":
            self._state.skip = max(0, number or 0)
            return
        code = (number or 0) % 65_536
        self._put(chr(code))
        self._to_skip = self._state.skip

    def _byte(self, value: int) -> None:
        if self._to_skip:
            self._to_skip -= 1
        else:
            self._bytes.append(value)

    def _plain(self, text: bytes) -> None:
        if self._to_skip:
            cut = min(self._to_skip, len(text))
            text, self._to_skip = text[cut:], self._to_skip - cut
        self._bytes += text

    def _flush_bytes(self) -> None:
        """Bytes wait until something else comes: two of them may be one character."""
        if self._bytes:
            text = self._bytes.decode(self._state.encoding or self._page, "replace")
            self._bytes.clear()
            if self._state.target == "styles":
                self._style_name.append(text)
            self._put(text)
        self._to_skip = 0

    def _put(self, text: str) -> None:
        state = self._state
        if text and state.target in ("text", "note", "box") and not state.hidden and not state.deleted:
            self._now.text.append(text)

    def _end_paragraph(self) -> Iterator[Block]:
        now = self._now
        text = _whole("".join(now.text)).strip("\n ")
        level = now.level or self._styles.get(now.style, 0)
        listed = now.listed
        if listed:
            text = re.sub(
                r"^\s*([^\t\n]{1,12})\t", lambda found: f"{'- ' if found[1] in '•·o▪-' else found[1] + ' '}", text
            )
        if text.strip():
            yield Block(text, text if level else None, counted=not level, joined=listed and self._list_before)
            self._list_before, self._row_before = listed, False
        now.text, now.listed = [], False
        after, self._after = self._after, []
        yield from after

    def _end_row(self) -> Iterator[Block]:
        cells = [" ".join(_whole(cell).split()) for cell in self._cells]
        self._cells = []
        if any(cells):
            yield Block(" | ".join(cells).strip(), counted=not self._row_before, joined=self._row_before)
            self._row_before, self._list_before = True, False
            after, self._after = self._after, []
            yield from after


def _whole(text: str) -> str:
    """Characters that came as two halves (surrogates) joined."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _known(page: str) -> str | None:
    try:
        return "".encode(page) and page or page
    except LookupError:
        return "utf-8" if page == "cp65001" else None
