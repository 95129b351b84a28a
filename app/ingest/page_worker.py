"""The child process that shows pages of PDFs: `python -m app.ingest.page_worker`, a request a line on standard input.

It stays, with the file that it opened last, so that turning a page need not open a book of a thousand pages again.
It answers each request with one JSON object, and ends with its parent.
"""

import base64
import io
import json
import os
import queue
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

from app.ingest.worker import limit_memory

WIDTH_PIXELS = 1_200
MOST_PIXELS = 6_000_000  # of a picture; a very long page is drawn smaller
QUALITY = 80
SCALE = 1_000_000  # of places on a page, which the library gives as whole numbers
SAME_LINE = 0.5  # of the lower one's height, that two rectangles share
GAP = 0.03  # of the page's width: rectangles of a line that are not farther apart are one


class Shower:
    """Draws pages and finds passages on them.

    Attributes:
        path: of the file that is open.
    """

    def __init__(self) -> None:
        self.path = ""
        self._document: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the page of a request is.

        Args:
            request: path, page (index); `passage`: (text of the page as the library has it, start, end), to find it.

        Returns:
            {"image"} as base64; or for a passage {"width", "height", "boxes": [left, top, right, bottom] in shares of
            the page}; or {"failed"}.
        """
        try:
            page = self._open(request["path"])[request["page"]]
            try:
                return _places(page, *request["passage"]) if "passage" in request else {"image": _drawn(page)}
            finally:
                page.close()
        except Exception as error:  # a damaged file can break it in any way
            return {"failed": str(error) or type(error).__name__}

    def _open(self, path: str) -> Any:
        import pypdfium2

        if path != self.path:
            if self._document is not None:
                self._document.close()
            self.path, self._document = "", None
            self._document = pypdfium2.PdfDocument(path)
            self.path = path
        return self._document


def _drawn(page: Any) -> str:
    width, height = page.get_size()
    scale = min(WIDTH_PIXELS / max(1.0, width), (MOST_PIXELS / max(1.0, width * height)) ** 0.5)
    picture = io.BytesIO()
    page.render(scale=scale).to_pil().convert("RGB").save(picture, "JPEG", quality=QUALITY)
    return base64.b64encode(picture.getvalue()).decode("ascii")


def _places(page: Any, text: str, start: int, end: int) -> dict[str, Any]:
    import pypdfium2

    width, height = page.get_size()
    found = {"width": width, "height": height, "boxes": []}
    if not text[start:end].strip():
        return found
    shown = page.get_textpage()
    try:
        chars = [chr(pypdfium2.raw.FPDFText_GetUnicode(shown, i)) for i in range(shown.count_chars())]
        boxes: list[list[float]] = []
        for first, last in _runs(matching(text, start, end, chars)):
            boxes += [_on_page(page, box) for box in _rectangles(shown, first, last + 1 - first)]
    finally:
        shown.close()
    return found | {"boxes": [[round(side, 5) for side in box] for box in lines(boxes)]}


def _rectangles(shown: Any, first: int, count: int) -> Iterator[tuple[float, ...]]:
    for number in range(shown.count_rects(first, count)):
        yield shown.get_rect(number)


def _on_page(page: Any, box: Sequence[float]) -> list[float]:
    """A rectangle of the page's own space, which may be turned or cut, in shares from the upper left corner."""
    from ctypes import byref, c_int

    import pypdfium2

    corners = []
    for x, y in ((box[0], box[1]), (box[2], box[3])):
        across, down = c_int(), c_int()
        pypdfium2.raw.FPDF_PageToDevice(page, 0, 0, SCALE, SCALE, 0, x, y, byref(across), byref(down))
        corners.append((across.value / SCALE, down.value / SCALE))
    (x, y), (other_x, other_y) = corners
    return [min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)]


def lines(boxes: Sequence[Sequence[float]]) -> list[list[float]]:
    """Join rectangles that follow each other on one line."""
    joined: list[list[float]] = []
    for box in boxes:
        left, top, right, bottom = box
        if joined:
            before = joined[-1]
            shared = min(bottom, before[3]) - max(top, before[1])
            lower = min(bottom - top, before[3] - before[1])
            if shared > SAME_LINE * lower and left - before[2] < GAP and before[0] - right < GAP:
                joined[-1] = [min(left, before[0]), min(top, before[1]), max(right, before[2]), max(bottom, before[3])]
                continue
        joined.append([left, top, right, bottom])
    return joined


def matching(text: str, start: int, end: int, chars: Sequence[str]) -> list[int]:
    """Indexes of the page's characters that characters [start, end) of the library's text were made of.

    The library's text has no line-end hyphens, other blanks, and not every line: letters and digits are compared.
    """
    ours, at = _letters(text)
    theirs, indexes = _letters(chars)
    wanted = [i for i, place in enumerate(at) if start <= place < end]
    if not wanted:
        return []
    first, last = wanted[0], wanted[-1] + 1
    passage, place = ours[first:last], -1
    for _ in range(ours.count(passage, 0, last)):  # the same words may stand on the page before
        place = theirs.find(passage, place + 1)
    if place >= 0:
        return indexes[place : place + len(passage)]
    return _alike(text, start, end, chars)


def _letters(text: Sequence[str]) -> tuple[str, list[int]]:
    """Letters and digits in one form, and the index of the character that each came from."""
    found, places = [], []
    for place, char in enumerate(text):
        for letter in unicodedata.normalize("NFKC", char):
            if letter.isalnum():
                found.append(letter)
                places.append(place)
    return "".join(found), places


def _alike(text: str, start: int, end: int, chars: Sequence[str]) -> list[int]:
    """As `matching`, word by word, where a line of the passage is not on the page as the library has it."""
    ours, theirs = _words(text), _words(chars)
    alike = SequenceMatcher(None, [word for word, _ in ours], [word for word, _ in theirs], autojunk=False)
    found: list[int] = []
    for first, other, size in alike.get_matching_blocks():
        for step in range(size):
            if start <= ours[first + step][1][0] < end:
                found += theirs[other + step][1]
    return found


def _words(text: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Runs of letters and digits, each with the places of its characters."""
    words = []
    for is_word, run in groupby(enumerate(text), key=lambda item: item[1].isalnum()):
        if is_word:
            places = list(run)
            words.append(("".join(char for _, char in places), [place for place, _ in places]))
    return words


def _runs(indexes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of the runs of indexes between which only blanks and marks can stand."""
    first = before = None
    for index in indexes:
        if first is None:
            first = index
        elif index - before > 12 or index < before:
            yield first, before
            first = index
        before = index
    if first is not None:
        yield first, before


def _requests() -> Iterator[dict[str, Any]]:
    """What the parent asks; this process ends when the parent does, whatever it is doing."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield json.loads(waiting.get())


def main() -> None:
    output, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not mix with the answers
    limit_memory(int(sys.argv[1]))
    shower = Shower()
    for request in _requests():
        output.write(json.dumps(shower.answer(request)) + "\n")
        output.flush()


if __name__ == "__main__":
    main()
