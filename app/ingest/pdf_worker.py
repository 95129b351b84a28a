"""What the child process does with one PDF: `events`, run by `app.ingest.worker`.

It tells first the structure, then each page; or `{"failed": kind, "detail": ...}` when the file cannot be opened.
"""

import logging
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from app.ingest.clean import SOFT_HYPHEN, unmapped

FEW_CHARACTERS = 20  # a page with fewer, and a picture, is a scan
WELL_READ = 0.02  # with more unmapped glyphs than this, the other reader has a try
MAX_PAGES = 50_000
MAX_OUTLINE = 10_000
_LINE_END_GLYPH = re.compile(r"(?<=[^\W\d_])[^\w\s](?=\r\n[^\W\d_])")


class Refused(Exception):
    """The file cannot be opened: `kind` is password, wrong-password, encryption, damaged or many-pages."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail)
        self.kind = kind


class Pdfium:
    """Text, page labels and outline from pypdfium2."""

    def __init__(self, path: str, password: str | None) -> None:
        import pypdfium2

        self._library = pypdfium2.raw
        try:
            try:
                self._document = pypdfium2.PdfDocument(path)
            except pypdfium2.PdfiumError as error:
                if error.err_code != self._library.FPDF_ERR_PASSWORD or not password:
                    raise
                self._document = pypdfium2.PdfDocument(path, password=password)
        except pypdfium2.PdfiumError as error:
            if error.err_code == self._library.FPDF_ERR_PASSWORD:
                raise Refused("wrong-password" if password else "password") from error
            if error.err_code == self._library.FPDF_ERR_SECURITY:
                raise Refused("encryption", "its security handler is not supported") from error
            raise Refused("damaged", str(error).rstrip(".")) from error
        self.count = len(self._document)

    def labels(self) -> list[str]:
        return [self._document.get_page_label(index) for index in range(self.count)]

    def outline(self) -> Iterator[tuple[int, int | None, str]]:
        """(level, page index, title) in reading order."""
        for bookmark in self._document.get_toc():
            target = bookmark.get_dest()
            yield bookmark.level, target.get_index() if target else None, bookmark.get_title()

    def text(self, index: int) -> tuple[str, float]:
        """The text of a page, and the share of its glyphs that have no Unicode value."""
        page = self._document[index]
        textpage = page.get_textpage()
        try:
            text = textpage.get_text_range()  # leaves control characters out; the bounded text keeps them
            share = _unmapped_share(textpage.get_text_bounded().replace("\x02", ""))  # U+0002: a hyphen
            return self._mark_hyphens(textpage, text), share
        finally:
            textpage.close()
            page.close()

    def has_image(self, index: int) -> bool:
        page = self._document[index]
        try:
            return any(True for _ in page.get_objects(filter=[self._library.FPDF_PAGEOBJ_IMAGE], max_depth=4))
        finally:
            page.close()

    def _mark_hyphens(self, textpage: Any, text: str) -> str:
        """Some writers (Typst) give the hyphen glyph no Unicode; pdfium then shows a wrong character."""

        def mark(match: re.Match[str]) -> str:
            units = len(text[: match.start()].encode("utf-16-le", "surrogatepass")) // 2
            char = self._library.FPDFText_GetCharIndexFromTextIndex(textpage, units)
            return SOFT_HYPHEN if self._library.FPDFText_HasUnicodeMapError(textpage, char) == 1 else match[0]

        return _LINE_END_GLYPH.sub(mark, text)


class Pypdf:
    """Text, page labels and outline from pypdf."""

    def __init__(self, path: str, password: str | None) -> None:
        import pypdf

        self._library = pypdf
        try:
            self._reader = pypdf.PdfReader(open(path, "rb"))
            if self._reader.is_encrypted and not (
                self._reader.decrypt("") or password and self._reader.decrypt(password)
            ):
                raise Refused("wrong-password" if password else "password")
            self.count = len(self._reader.pages)
        except pypdf.errors.DependencyError as error:
            raise Refused("encryption", str(error)) from error
        except (NotImplementedError, pypdf.errors.FileNotDecryptedError) as error:
            raise Refused("encryption", str(error)) from error
        except (FileNotFoundError, PermissionError, MemoryError, Refused):
            raise
        except Exception as error:  # pypdf raises nearly every built-in error on a broken file
            raise Refused("damaged", str(error).rstrip(".")) from error

    def labels(self) -> list[str]:
        return self._reader.page_labels if "/PageLabels" in self._reader.root_object else [""] * self.count

    def outline(self) -> Iterator[tuple[int, int | None, str]]:
        """(level, page index, title) in reading order."""
        levels = [iter(self._reader.outline)]
        while levels:
            entry = next(levels[-1], None)
            if entry is None:
                levels.pop()
            elif isinstance(entry, list):
                levels.append(iter(entry))
            else:
                yield len(levels) - 1, self._reader.get_destination_page_number(entry), str(entry.title)

    def text(self, index: int) -> tuple[str, float]:
        """The text of a page, and the share of its glyphs that have no Unicode value."""
        text = self._reader.pages[index].extract_text()
        return text, _unmapped_share(text)

    def has_image(self, index: int) -> bool:
        objects = self._reader.pages[index].get("/Resources", {}).get_object().get("/XObject", {}).get_object()
        return any(item.get_object().get("/Subtype") == "/Image" for item in objects.values())


READERS = {"pypdfium2": Pdfium, "pypdf": Pypdf}


def events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Open a PDF and read its pages from `request["first"]` on.

    Args:
        request: path, password, readers (names, in order of preference), first (page index).

    Yields:
        {"structure": {"count", "labels", "outline", "readers", "damage"}}, then {"page", "text", "image"} or
        {"page", "error"} for each page; or one {"failed", "detail"}.
    """
    try:
        readers, damage = _open(request)
        count = max(reader.count for reader in readers.values())
        if count > MAX_PAGES:
            raise Refused("many-pages", str(count))
    except Refused as error:
        yield {"failed": error.kind, "detail": str(error)}
        return
    except (OSError, MemoryError) as error:
        yield {"failed": "memory" if isinstance(error, MemoryError) else "system", "detail": str(error)}
        return
    order = list(readers.values())
    structure = {
        "count": count,
        "labels": _first_that_works([reader.labels for reader in reversed(order)], []),
        "outline": _first_that_works([lambda r=reader: _outline(r) for reader in reversed(order)], []),
        "readers": list(readers),
        "damage": damage,
    }
    yield {"structure": structure}
    for index in range(request["first"], count):
        yield _page(order, index)


def _open(request: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The readers that are installed and can open the file, and what the others found damaged."""
    readers, refusals = {}, []
    for name in request["readers"]:
        try:
            readers[name] = READERS[name](request["path"], request["password"])
        except ImportError:
            continue
        except Refused as error:
            refusals.append(error)
    if not readers:
        locked = [error for error in refusals if "password" in error.kind]
        raise (locked or refusals or [Refused("damaged", "no PDF reader is installed")])[0]
    return readers, next((str(error) for error in refusals if error.kind == "damaged"), None)


def _first_that_works(attempts: list[Any], otherwise: Any) -> Any:
    """pypdf knows structure best and pdfium text; either may fail on a damaged file."""
    for attempt in attempts:
        try:
            return attempt()
        except Exception as error:
            logging.getLogger(__name__).info("structure: %s", error)
    return otherwise


def _outline(reader: Any) -> list[tuple[int, int | None, str]]:
    return list(islice(reader.outline(), MAX_OUTLINE))


def _page(readers: list[Any], index: int) -> dict[str, Any]:
    """The text of one page from the first reader that reads it well, otherwise from the better one."""
    best, lowest, error = None, 0.0, None
    for reader in readers:
        try:
            text, share = reader.text(index)
        except Exception as failure:
            error = error or failure
            continue
        if best is None or share < lowest:
            best, lowest = text, share
        if lowest < WELL_READ:
            break
    if best is None:
        return {"page": index, "error": _reason(error)}
    image = len(best.strip()) < FEW_CHARACTERS and _first_that_works([lambda: readers[0].has_image(index)], False)
    return {"page": index, "text": best, "image": image}


def _unmapped_share(text: str) -> float:
    return unmapped(text) / len(text) if text.strip() else 1.0


def _reason(error: Exception | None) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    return f"it is damaged ({str(error) or type(error).__name__})"
