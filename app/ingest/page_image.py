"""A PDF's page as a picture, for the viewer that marks on it where OCR read a passage; a child process draws it."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.errors import InputError
from app.ingest import child
from app.ingest.files import never

WIDTH_PIXELS = 1_200
MOST_PIXELS = 6_000_000  # of a picture; a very long page is drawn smaller
QUALITY = 80


def draw(path: Path, page: int) -> bytes:
    """One page as JPEG, `WIDTH_PIXELS` wide.

    Args:
        page: its index, from 0.

    Raises:
        InputError: the file or the page cannot be drawn.
    """
    request = {"module": "app.ingest.page_image", "path": str(path.absolute()), "page": page}
    for event in child.events(request, never, "PDF"):
        if "image" in event:
            return base64.b64decode(event["image"])
        reason = event.get("failed") or event.get("stopped")
        if reason:
            raise InputError(f"{path.name}: page {page + 1} cannot be drawn ({reason}); its text can be read")
    raise InputError(f"{path.name}: page {page + 1} cannot be drawn; its text can be read")


def events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the child does, run by `app.ingest.worker`: {"image"} as base64, or {"failed"}."""
    import pypdfium2

    try:
        page = pypdfium2.PdfDocument(request["path"])[request["page"]]
        width, height = page.get_size()
        scale = min(WIDTH_PIXELS / max(1.0, width), (MOST_PIXELS / max(1.0, width * height)) ** 0.5)
        picture = io.BytesIO()
        page.render(scale=scale).to_pil().convert("RGB").save(picture, "JPEG", quality=QUALITY)
    except Exception as error:  # a damaged file can break it in any way
        yield {"failed": str(error) or type(error).__name__}
        return
    yield {"image": base64.b64encode(picture.getvalue()).decode("ascii")}
