"""What the child process does with one picture: `events`, run by `app.ingest.worker`."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")
MOST_PAGES = 500  # of a TIFF; of a moving picture the first is taken
MOST_PIXELS = 100_000_000
PAGE_WIDTH = 612.0  # points: the page is as wide as a letter, whatever the picture says of itself
QUALITY = 92


def events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Write a picture as a PDF.

    Args:
        request: path; `made`, the PDF's.

    Yields:
        {"pages"} when it is written, or one {"failed", "detail"}.
    """
    from PIL import Image, ImageSequence

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # twice as many are an error
    try:
        with Image.open(request["path"], formats=FORMATS) as picture:
            count = MOST_PAGES if picture.format == "TIFF" else 1
            first, *others = (_on_white(page) for page in islice(ImageSequence.Iterator(picture), count))
        undated = {"title": None, "creationDate": None, "modDate": None}  # the same bytes every time
        dpi = 72 * first.width / PAGE_WIDTH
        options = {"resolution": dpi, "quality": QUALITY, "save_all": True, "append_images": others, **undated}
        first.save(request["made"], "PDF", **options)
    except Exception as error:  # a damaged file can break it in any way
        yield {"failed": "damaged", "detail": str(error).replace(repr(request["path"]), "the file").rstrip(".")}
        return
    yield {"pages": 1 + len(others)}


def _on_white(page: Any) -> Any:
    """A page as it is looked at: turned as the camera says, without holes."""
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(page).convert("RGBA")
    white = Image.new("RGBA", turned.size, "white")
    return Image.alpha_composite(white, turned).convert("RGB")
