"""Pictures of text, a screenshot or a photo, as PDFs that OCR can read and the viewer can show."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import InputError
from app.ingest import child, ocr
from app.ingest.files import Cancelled

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp")


@contextmanager
def as_pdf(path: Path, name: str, cancelled: Cancelled) -> Iterator[Path | None]:
    """A picture as a PDF with a page for each that it has, which goes afterwards; the same bytes give the same PDF.

    None for whatever is no picture by its name, and where no OCR is installed, which would be needed to read it.

    Raises:
        InputError: it cannot be opened, or is too large.
        CancelledError: `cancelled` said so.
    """
    if Path(name).suffix.lower() not in SUFFIXES or not ocr.available():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="lectern-") as folder:
        made = Path(folder) / "picture.pdf"
        request = {"module": "app.ingest.picture_worker", "path": str(path.absolute()), "made": str(made)}
        *_, last = child.events(request, cancelled, "picture")
        if "end" not in last:
            why = last.get("detail") or last.get("stopped")
            raise InputError(f"{name}: this picture cannot be opened ({why}); save it again as .png or .jpg")
        yield made
