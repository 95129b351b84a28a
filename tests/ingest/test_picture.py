"""Pictures of text become PDFs."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from app.errors import InputError
from app.ingest import ocr, picture
from app.ingest.files import never
from app.ingest.pdf import load_pdf
from app.ingest.picture_worker import MOST_PIXELS

pytestmark = pytest.mark.skipif(not ocr.available(), reason="no OCR is installed")

WORDS = "The harbour master kept a lantern."


def drawn(path: Path, mode: str = "RGB") -> Path:
    """A picture of the words, without a ground where the mode has holes."""
    page = Image.new(mode, (900, 200), (0, 0, 0, 0) if mode == "RGBA" else "white")
    ImageDraw.Draw(page).text((40, 60), WORDS, fill="black", font_size=40)
    page.save(path, **({"save_all": True, "append_images": [page]} if path.suffix == ".tif" else {}))
    return path


@pytest.mark.parametrize(
    ("name", "mode", "pages"), [("a.png", "RGBA", 1), ("b.JPG", "RGB", 1), ("c.tif", "L", 2), ("d.webp", "RGB", 1)]
)
def test_a_picture_is_read_by_ocr(tmp_path: Path, name: str, mode: str, pages: int) -> None:
    path = drawn(tmp_path / name, mode)
    with picture.as_pdf(path, name, never) as made:
        document = load_pdf(made, f"{name}.pdf", ocr_folder=tmp_path)
        assert document.title == name and [part.text for part in document.parts] == [WORDS] * pages
        assert document.keep_file
        first = made.read_bytes()
    assert not made.exists()
    with picture.as_pdf(path, name, never) as made:
        assert made.read_bytes() == first  # or the same picture would be two documents


def test_what_is_no_picture_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with picture.as_pdf(tmp_path / "a.pdf", "a.pdf", never) as made:
        assert made is None
    monkeypatch.setattr(ocr, "available", lambda: False)
    with picture.as_pdf(tmp_path / "a.png", "a.png", never) as made:
        assert made is None


def test_a_damaged_picture_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(drawn(tmp_path / "whole.png").read_bytes()[:300])
    with (
        pytest.raises(InputError, match="cut.png: this picture cannot be opened"),
        picture.as_pdf(path, path.name, never),
    ):
        pass
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="the file") as told, picture.as_pdf(path, path.name, never):
        pass
    assert str(tmp_path) not in str(told.value)


def test_a_picture_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (MOST_PIXELS // 100, 101)).save(path)
    with pytest.raises(InputError, match="exceeds limit"), picture.as_pdf(path, path.name, never):
        pass
